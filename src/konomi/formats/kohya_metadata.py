"""What a LoRA file says of itself: `ss_*` (sd-scripts), `sshs_*` (hashes) and `modelspec.*`
(ModelSpec 1.0.1).

Other tools show these, sort by them, and tell the family from them. Names only: no folder of the
trainer's machine.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import PurePosixPath, PureWindowsPath
from typing import Literal

from torch import Tensor

from konomi.adapters.adapter import Adapter
from konomi.families import known_family
from konomi.storage.hashing import SHORT_HASH_LENGTH, SHORT_HASH_START
from konomi.storage.tensor_file import serialised

_PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v"}
"""ModelSpec's words; it has none for flow matching."""


@dataclass(frozen=True, slots=True)
class TrainingFacts:
    """What a run knows about the file it writes. Everything but name and family may be left out."""

    name: str
    family: str
    prediction: Literal["epsilon", "v_prediction", "flow"] = "epsilon"
    kind: Literal["lora", "textual-inversion"] = "lora"
    base_name: str = ""
    """File or hub name of the base; a path is reduced to its last part."""
    base_short_hash: str = ""
    base_sha256: str = ""
    rank: int | None = None
    alpha: float | None = None
    network_module: str = "networks.lora"
    network_args: Mapping[str, object] = field(default_factory=dict)
    resolution: tuple[int, int] = (512, 512)
    """Width, height."""
    clip_skip: int | None = None
    tag_frequency: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Dataset folder -> tag -> number of images."""
    dataset_folders: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Folder -> {"n_repeats": ..., "img_count": ...}."""
    bucket_info: Mapping[str, object] = field(default_factory=dict)
    num_train_images: int | None = None
    num_prior_images: int | None = None
    steps: int | None = None
    epoch: int | None = None
    seed: int | None = None
    comment: str = ""
    trigger: str = ""
    extra: Mapping[str, object] = field(default_factory=dict)
    """Further `ss_*` entries without the prefix: learning_rate, optimizer, batch_size_per_device,
    ..."""
    finished: datetime | None = None


def training_metadata(facts: TrainingFacts) -> dict[str, str]:
    """Metadata of a trained file, without the hashes, which `write` adds. Values are texts, tables
    as JSON.
    """
    when = (facts.finished or datetime.now(UTC)).astimezone(UTC)
    width, height = facts.resolution
    family = known_family(facts.family)
    entries: dict[str, object] = {
        "ss_v2": ss_v2(facts.family),
        "ss_base_model_version": base_model_version(facts.family, facts.prediction),
        "ss_network_module": facts.network_module,
        "ss_network_dim": facts.rank,
        "ss_network_alpha": facts.alpha,
        "ss_network_args": dict(facts.network_args),
        "ss_output_name": facts.name,
        "ss_sd_model_name": last_part(facts.base_name),
        "ss_sd_model_hash": facts.base_short_hash,
        "ss_new_sd_model_hash": facts.base_sha256,
        "ss_resolution": f"({width}, {height})",
        "ss_clip_skip": facts.clip_skip,
        "ss_tag_frequency": {
            last_part(folder): dict(tags) for folder, tags in facts.tag_frequency.items()
        },
        "ss_dataset_dirs": {
            last_part(folder): dict(counts) for folder, counts in facts.dataset_folders.items()
        },
        "ss_bucket_info": dict(facts.bucket_info),
        "ss_num_train_images": facts.num_train_images,
        "ss_num_reg_images": facts.num_prior_images,
        "ss_steps": facts.steps,
        "ss_epoch": facts.epoch,
        "ss_seed": facts.seed,
        "ss_training_comment": facts.comment,
        "ss_training_finished_at": f"{when.timestamp():.0f}",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": architecture(facts.family, facts.prediction, facts.kind),
        "modelspec.implementation": None if family is None else family.implementation,
        "modelspec.title": facts.name,
        "modelspec.resolution": f"{width}x{height}",
        "modelspec.date": when.strftime("%Y-%m-%dT%H:%M:%S"),
        "modelspec.prediction_type": _PREDICTIONS.get(facts.prediction),
        "modelspec.trigger_phrase": facts.trigger,
    }
    entries |= {f"ss_{name}": value for name, value in facts.extra.items()}
    return {name: text(value) for name, value in entries.items() if value not in (None, "", {})}


def with_minimum(adapter: Adapter, family: str, title: str) -> dict[str, str]:
    """An adapter's own metadata, completed by the least that other tools need to sort the file."""
    metadata = {name: value for name, value in adapter.metadata.items() if name != "format"}
    if family:
        metadata.setdefault("ss_v2", ss_v2(family))
        metadata.setdefault("ss_base_model_version", base_model_version(family, "epsilon"))
        metadata.setdefault("modelspec.sai_model_spec", "1.0.1")
        metadata.setdefault("modelspec.architecture", architecture(family, "epsilon", "lora"))
        metadata.setdefault("modelspec.title", adapter.name or title)
    updates = adapter.layers.values()
    algos = {update.about.algo for update in updates} - {""}
    metadata.setdefault("ss_network_module", "lycoris.kohya" if algos else "networks.lora")
    ranks = [str(update.rank) for update in updates if update.rank is not None]
    alphas = [text(update.alpha) for update in updates if update.alpha is not None]
    for name, values in (("ss_network_dim", ranks), ("ss_network_alpha", alphas)):
        # A conversion on the way may have changed what the first program wrote here.
        if values and metadata.get(name) not in {*values, *(f"{value}.0" for value in values)}:
            metadata[name] = statistics.mode(values)
    metadata.setdefault("ss_network_args", text({"algo": min(algos)} if len(algos) == 1 else {}))
    metadata.setdefault("ss_output_name", adapter.name or title)
    return metadata


def with_hashes(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Add `sshs_model_hash`, `sshs_legacy_hash` and `modelspec.hash_sha256`, as sd-scripts defines
    them.
    """
    completed = {name: value for name, value in metadata.items() if not name.startswith("sshs_")}
    model_hash = hashlib.sha256()
    blocks = serialised(tensors, {})
    next(blocks)
    for block in blocks:
        model_hash.update(block)
    # The legacy hash is of a file that carries the ss_* entries only, so that later notes do not
    # change it.
    training = {name: value for name, value in completed.items() if name.startswith("ss_")}
    completed["sshs_model_hash"] = model_hash.hexdigest()
    completed["sshs_legacy_hash"] = _short_hash(tensors, training)
    if "modelspec.sai_model_spec" in completed:
        completed["modelspec.hash_sha256"] = f"0x{model_hash.hexdigest()}"
    return completed


def base_model_version(family: str, prediction: str) -> str:
    """`ss_base_model_version`; the name itself of a family that is not known."""
    known = known_family(family)
    return family if known is None else known.variant(prediction).base_model_version


def ss_v2(family: str) -> str:
    """`True` or `False`: of the one family that sd-scripts has an argument for."""
    known = known_family(family)
    return str(known is not None and known.ss_v2)


def architecture(family: str, prediction: str, kind: str) -> str:
    """ModelSpec's words for family and kind, with a slash between."""
    known = known_family(family)
    return f"{family if known is None else known.variant(prediction).architecture}/{kind}"


def last_part(name: str) -> str:
    """A path of any system, reduced to its last part; other names as they are."""
    if PureWindowsPath(name).is_absolute():
        return PureWindowsPath(name).name
    looks_like_path = name.startswith(("/", ".", "~")) or "\\" in name
    return PurePosixPath(name.replace("\\", "/")).name if looks_like_path else name


def text(value: object) -> str:
    """A metadata value: texts as they are, tables and lists as JSON, whole numbers without a
    fraction.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, dict | list | tuple):
        return json.dumps(value, ensure_ascii=False)
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _short_hash(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    digest, position, end = hashlib.sha256(), 0, SHORT_HASH_START + SHORT_HASH_LENGTH
    for block in serialised(tensors, metadata):
        first, last = max(0, SHORT_HASH_START - position), end - position
        if first < last:
            digest.update(memoryview(block)[first:last])
        position += len(block)
        if position >= end:
            break
    return digest.hexdigest()[:8]

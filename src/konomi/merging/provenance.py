"""What a merged file says of where it comes from: A1111's `sd_merge_recipe` and `sd_merge_models`,
ModelSpec's `merged_from`, and everything konomi was told.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from konomi.config.parse import parse_json
from konomi.merging.model_file import ModelFile
from konomi.models.noise_config import prediction_word
from konomi.storage.hashing import sha256_file, short_hash

RECIPE = "sd_merge_recipe"
MODELS = "sd_merge_models"
_UNKNOWN = "0" * 64
"""Stands for a hash until it is known."""
_WEBUI_NAMES = {"weighted_sum": "Weighted sum", "add_difference": "Add difference"}
_RANKS = ("primary", "secondary", "tertiary")
_OUTDATED = ("sshs_", "modelspec.hash_sha256", "modelspec.date", "modelspec.title", "sd_merge_")
"""Beginnings of what the first model's metadata says of its own file alone."""


class Hashes:
    """SHA-256 of model files, computed beside other work."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._pool = ThreadPoolExecutor(max_workers=2)
        self._found: dict[Path, Future[str]] = {
            path: self._pool.submit(model_hash, path) for path in dict.fromkeys(paths)
        }

    def of(self, path: Path) -> str:
        """Waits until it is known."""
        return self._found[path].result()

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


def model_hash(path: Path) -> str:
    """SHA-256 of a file; of a folder, of the hashes of the weight files in it by name."""
    if path.is_file():
        return sha256_file(path)
    digest = hashlib.sha256()
    files = [p for p in path.rglob("*") if p.suffix in (".safetensors", ".bin") and p.is_file()]
    for file in sorted(files):
        name = file.relative_to(path).as_posix()
        digest.update(f"{name}\0{sha256_file(file)}\n".encode())
    return digest.hexdigest()


def merge_metadata(
    models: Sequence[ModelFile],
    output: Path,
    settings: Mapping[str, Any],
    *,
    dtype: torch.dtype | None,
    vae: str,
    hashes: Hashes | None = None,
) -> dict[str, str]:
    """The metadata of a result.

    settings: `how`, `alpha` and what else was told.
    vae: name of the VAE that was put in, or "".
    hashes: of the models; None puts texts of the same length in their place.
    """
    found = [_UNKNOWN if hashes is None else hashes.of(model.path) for model in models]
    first = models[0]
    metadata = {
        name: value for name, value in first.metadata.items() if not name.startswith(_OUTDATED)
    }
    metadata |= _spec(first, models, output)
    how = str(settings["how"])
    recipe: dict[str, Any] = {
        "type": "webui",
        **{f"{rank}_model_hash": None for rank in _RANKS},
        **{f"{rank}_model_hash": value for rank, value in zip(_RANKS, found, strict=False)},
        "interp_method": _WEBUI_NAMES.get(how, how),
        "multiplier": settings.get("alpha"),
        "save_as_half": dtype == torch.float16,
        "custom_name": output.stem,
        "config_source": 0,
        "bake_in_vae": vae or "None",
        "discard_weights": "",
        "is_inpainting": first.base.inpainting,
        "is_instruct_pix2pix": False,
        "konomi": {**settings, "models": [model.path.name for model in models]},
    }
    metadata[RECIPE] = json.dumps(recipe, ensure_ascii=False)
    metadata[MODELS] = json.dumps(_ancestors(models, found), ensure_ascii=False)
    return metadata


def _spec(first: ModelFile, models: Sequence[ModelFile], output: Path) -> dict[str, str]:
    base, side = first.base, first.base.resolution
    prediction = base.process.prediction
    told = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": base.spec.variant(prediction).architecture,
        "modelspec.prediction_type": prediction,
        "modelspec.resolution": first.metadata.get("modelspec.resolution", f"{side}x{side}"),
        "modelspec.title": output.stem,
        "modelspec.merged_from": ", ".join(model.path.stem for model in models),
    }
    configs = first.metadata.get("konomi.configs")
    if configs is not None:
        table = parse_json(configs)
        if isinstance(table, dict) and "prediction_type" in table.get("scheduler", {}):
            table["scheduler"]["prediction_type"] = prediction_word(prediction)
            told["konomi.configs"] = json.dumps(table, sort_keys=True)
    return told


def _ancestors(models: Sequence[ModelFile], hashes: Sequence[str]) -> dict[str, Any]:
    """Hash -> what is known of it, for these models and for those that they were merged of."""
    table: dict[str, Any] = {}
    for model in models:
        table |= _table(model.metadata.get(MODELS))
    for number, (model, found) in enumerate(zip(models, hashes, strict=True)):
        legacy = short_hash(model.path) if model.path.is_file() else None
        # Before hashes are known, each still needs a place of its own.
        key = found if found != _UNKNOWN else f"{number:0>64}"
        table[key] = {
            "name": model.path.name,
            "legacy_hash": legacy,
            "sd_merge_recipe": _table(model.metadata.get(RECIPE)) or None,
        }
    return table


def _table(text: str | None) -> dict[str, Any]:
    """A table that a file states; {} where it is damaged, because nothing depends on it."""
    if text is None:
        return {}
    try:
        table = parse_json(text)
    except ValueError:
        return {}
    return table if isinstance(table, dict) else {}

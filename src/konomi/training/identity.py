"""Whether a run that is resumed is still the same run."""

import hashlib
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch

from konomi.config.recipe import Recipe
from konomi.config.sections import SourceConfig
from konomi.data.containers import read_bytes
from konomi.data.kohya_dataset import read_dataset_toml
from konomi.data.manifest import Record
from konomi.diffusion.random import stable_hash
from konomi.errors import RunError
from konomi.hardware.garbage_collection import gc_paused
from konomi.training.schedules import schedule_length

FREE = (
    "run.steps",
    "run.epochs",
    "run.output",
    "run.device",
    "run.checkpoint_every",
    "run.keep_checkpoints",
    "run.save_every",
    "run.save_every_epochs",
    "run.preview_every",
    "run.validate_every",
    "run.trackers",
    "optimizer.schedule_steps",
    "memory.accumulation",
    "memory.gradient_checkpointing",
    "memory.offload",
    "memory.compile",
    "memory.channels_last",
    "preview.",
    "evaluation.",
    "prior.clip",
    "save.",
    "data.workers",
    "data.cache.",
)
"""Settings that may change between sittings without making it another run. Which images are held
out shows in what is trained on."""


PICTURES = "the pictures"
MEASURED = "the validation images"


def flat(value: object, prefix: str = "") -> dict[str, Any]:
    """A recipe as {dotted name: plain value}."""
    if is_dataclass(value) and not isinstance(value, type):
        pairs = [(f.name, getattr(value, f.name)) for f in fields(value)]
    elif isinstance(value, tuple | list):
        pairs = [(str(index), item) for index, item in enumerate(value)]
    else:
        return {prefix.rstrip("."): value}
    result: dict[str, Any] = {}
    for name, item in pairs:
        result.update(flat(item, f"{prefix}{name}."))
    return result


def run_identity(
    recipe: Recipe,
    records: Sequence[Record],
    held_out: Sequence[Record],
    base_fingerprint: str,
    total_steps: int,
    *,
    attached: Sequence[str] = (),
) -> dict[str, Any]:
    """What must be the same for a resumed run to go on bit for bit. Reads the masks.

    Args:
        records: the images that are trained on, class images among them.
        held_out: those that are measured.
        attached: adapters that stay on the base, with their weights and hashes.
    """
    import konomi

    return {
        "recipe": flat(recipe),
        "data": data_identity(records, held_out),
        "dataset_files": {
            s.path: _dataset_values(s) for s in recipe.data.sources if s.path.endswith(".toml")
        },
        "base": base_fingerprint,
        "adapters": list(attached),
        "total_steps": total_steps,
        "schedule_steps": schedule_length(recipe.optimizer, total_steps),
        "versions": {
            "konomi": konomi.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


@gc_paused()
def data_identity(records: Sequence[Record], held_out: Sequence[Record]) -> dict[str, str]:
    """What a run learns from, by kind: how many and a hash, so that a difference can be named."""
    subjects = [record for record in records if record.role == "train"]
    priors = [record for record in records if record.role == "prior"]
    masked = [record for record in records if record.mask or record.attention]
    settings = [
        (
            r.name,
            r.repeats,
            r.role,
            r.trigger,
            r.class_noun,
            r.template,
            r.keep_tokens,
            r.shuffle,
            r.trigger_first,
        )
        for r in records
    ]
    return {
        PICTURES: _digest((r.content, r.name, r.width, r.height) for r in subjects),
        "the class images": _digest((r.content, r.name) for r in priors),
        "the captions": _digest((r.name, r.captions) for r in records),
        "the masks": _digest((r.name, _file(r.mask), _file(r.attention)) for r in masked),
        "what is said of single images (repeats, trigger, class, template, tags kept)": _digest(
            settings
        ),
        MEASURED: _digest(
            (r.content, r.captions, r.trigger, r.class_noun, r.template) for r in held_out
        ),
    }


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Changes that make it another run, in words. `then` may come from elsewhere."""
    found = []
    old, new = _table(then, "recipe"), now["recipe"]
    for name in sorted(set(old) | set(new)):
        if old.get(name) != new.get(name) and not name.startswith(FREE):
            found.append(f"{name} was {old.get(name)!r}, is {new.get(name)!r}")
    learned = _table(then, "data")
    changed = [
        name
        for name, state in now["data"].items()
        if learned.get(name) != state and _counts(name, learned, now)
    ]
    if changed:
        what = "; ".join(
            f"{name}, was {learned.get(name, 'not noted')}, is {now['data'][name]}"
            for name in changed
        )
        found.append(f"the images or captions changed ({what})")
    files = _table(then, "dataset_files")
    for path, values in now["dataset_files"].items():
        before = files.get(path)
        before = before if isinstance(before, dict) else {}
        for name in sorted(set(before) | set(values)):
            if before.get(name) != values.get(name):
                found.append(
                    f"{path} said {name} = {before.get(name)!r}, says {values.get(name)!r}"
                )
    if then.get("adapters", []) != now["adapters"]:
        before = ", ".join(map(str, _list(then, "adapters"))) or "none"
        found.append(
            f"the attached adapters changed (were {before}, are "
            f"{', '.join(now['adapters']) or 'none'})"
        )
    elif then.get("base") != now["base"]:
        found.append(f"the base model changed (was {then.get('base')}, is {now['base']})")
    for name, version in _table(then, "versions").items():
        if name in ("konomi", "torch") and now["versions"][name] != version:
            found.append(f"{name} was {version}, is {now['versions'][name]}")
    return found


def same_measured(then: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether the images that are validated on are the same."""
    return bool(_table(then, "data").get(MEASURED) == now["data"][MEASURED])


def _counts(name: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Validation may be switched on and off: that changes nothing of what is learned."""
    none = _digest(())
    return name != MEASURED or none not in (then.get(name, none), now["data"][name])


def _table(identity: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = identity.get(name)
    return found if isinstance(found, dict) else {}


def _list(identity: Mapping[str, Any], name: str) -> list[Any]:
    found = identity.get(name)
    return found if isinstance(found, list) else []


def _digest(items: Iterable[object]) -> str:
    listed = list(items)
    return f"{len(listed)}: {stable_hash(*listed) & 0xFFFFFFFFFFFFFFFF:016x}"


def _file(locator: str) -> str:
    return hashlib.sha256(read_bytes(locator)).hexdigest() if locator else ""


def _dataset_values(source: SourceConfig) -> dict[str, Any]:
    return dict(read_dataset_toml(source.path, source).recipe_values)


def check_same_run(
    then: Mapping[str, Any], now: Mapping[str, Any], *, allow_changes: bool
) -> list[str]:
    """The differences, if allowed. Raises RunError listing them otherwise."""
    found = differences(then, now)
    if found and not allow_changes:
        raise RunError(
            f"this is no longer the run that was stopped: {'; '.join(found[:6])}. "
            "Undo the change, or resume with --allow-changes if you mean it."
        )
    return found

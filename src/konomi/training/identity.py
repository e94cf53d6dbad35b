"""Whether a run that is resumed is still the same run."""

import platform
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch

from konomi.config.recipe import Recipe
from konomi.data.manifest import Manifest
from konomi.diffusion.random import stable_hash
from konomi.errors import RunError

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
    "memory.",
    "preview.",
    "prior.clip",
    "save.",
    "data.workers",
    "data.cache.",
)
"""Settings that may change between sittings without making it another run."""


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


def run_identity(recipe: Recipe, manifest: Manifest, base_fingerprint: str) -> dict[str, Any]:
    """What must be the same for a resumed run to go on bit for bit."""
    import konomi

    images = [(r.content, r.name, r.repeats, r.role, r.captions) for r in manifest.records]
    return {
        "recipe": flat(recipe),
        "data": f"{len(images)} images, {stable_hash(*images) & 0xFFFFFFFFFFFFFFFF:016x}",
        "base": base_fingerprint,
        "versions": {"konomi": konomi.__version__, "torch": torch.__version__, "python": platform.python_version()},
    }


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Changes that make it another run, in words."""
    found = []
    old, new = then["recipe"], now["recipe"]
    for name in sorted(set(old) | set(new)):
        if old.get(name) != new.get(name) and not name.startswith(FREE):
            found.append(f"{name} was {old.get(name)!r}, is {new.get(name)!r}")
    for name, words in (("data", "the images or captions"), ("base", "the base model")):
        if then[name] != now[name]:
            found.append(f"{words} changed (was {then[name]}, is {now[name]})")
    for name, version in then["versions"].items():
        if name != "python" and now["versions"][name] != version:
            found.append(f"{name} was {version}, is {now['versions'][name]}")
    return found


def check_same_run(then: Mapping[str, Any], now: Mapping[str, Any], *, allow_changes: bool) -> list[str]:
    """The differences, if allowed. Raises RunError listing them otherwise."""
    found = differences(then, now)
    if found and not allow_changes:
        raise RunError(
            f"this is no longer the run that was stopped: {'; '.join(found[:6])}. "
            "Undo the change, or resume with --allow-changes if you mean it."
        )
    return found

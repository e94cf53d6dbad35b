"""PEFT folders of other kinds of update than LoRA, for kinds that say how PEFT has them
(`About.peft`).

One kind fills a folder: PEFT's settings are those of one kind, and hold for all layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from konomi.adapters.adapter import Adapter
from konomi.adapters.kinds import KINDS, Kind, LayerUpdate
from konomi.errors import FileFormatError
from konomi.families.foreign_names import part_of_folder
from konomi.formats.layers import LayerError, layer_from_parts, part_of
from konomi.formats.source import Parsed, Source, fault

_PREFIX = "base_model.model."
_ABOUT_PLACE = frozenset((
    "auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "exclude_modules",
    "inference_mode", "layers_pattern", "layers_to_transform", "peft_type", "peft_version",
    "revision", "runtime_config", "target_modules", "task_type", "init_weights", "r",
))  # fmt: skip
"""Fields that say how and where it was trained, which the tensors show."""
_USUAL: dict[str, Any] = {"bias": "none", "modules_to_save": None, "fan_in_fan_out": False}


def kind_of_config(table: Mapping[str, Any]) -> Kind | None:
    """The kind of a parsed `adapter_config.json`, where it is one that is read here."""
    declared = table.get("peft_type")
    return next((k for k in KINDS if k.about.peft and k.about.peft_type == declared), None)


def read_kind(
    kind: Kind, part: str, source: Source, table: Mapping[str, Any], where: str
) -> Parsed:
    """The layers of one part's folder; `part`: of the model, "" for what the layers tell.

    Raises FileFormatError for settings that mean something that konomi does not do, and for layers
    that do not fit together.
    """
    form = kind.about.peft
    assert form is not None
    for name, usual in {**_USUAL, **form.refused}.items():
        if table.get(name) and table[name] != usual:
            raise FileFormatError(
                f"{where}: {name} is {str(table[name])[:80]}, and konomi does not do that."
            )
    groups: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for name, tensor in source.tensors().items():
        path, _, ending = name.removeprefix(_PREFIX).rpartition(".")
        if ending in ("weight", "default"):
            path, _, ending = path.rpartition(".")
        if path and part_of(ending) in kind.about.parts:
            groups.setdefault(path, {})[part_of(ending)] = tensor
        else:
            unknown.append(name)
    layers: dict[str, LayerUpdate] = {}
    for path, parts in groups.items():
        try:
            layers[canonical(path, part)] = form.read(layer_from_parts(parts), table)
        except LayerError as error:
            raise fault(source.path, f"{path}.{error.part}".rstrip("."), error.what) from error
    known = _ABOUT_PLACE | form.settings | _USUAL.keys() | form.refused.keys()
    ignored = {
        name: "a setting that konomi does not know"
        for name, value in table.items()
        if value and name not in known
    }
    return Parsed(Adapter(layers), tuple(sorted(unknown)), ignored, used=frozenset(source.shapes))


def canonical(path: str, part: str) -> str:
    """The key of a module as PEFT names it; its part is told by its beginning, by `part`, or by the
    names that text encoders have.
    """
    folders = part_of_folder()
    component, _, inner = path.partition(".")
    if component in folders and inner:
        part, path = folders[component], inner
    elif not part:
        text = "self_attn." in path or "mlp.fc" in path
        part = "text_encoder" if text else "denoiser"
    if part != "denoiser" and path.startswith(("encoder.", "embeddings.", "final_layer_norm")):
        path = f"text_model.{path}"
    return f"{part}.{path}"


def kind_to_write(adapter: Adapter) -> Kind | None:
    """The one kind of all layers, where PEFT has it and it is no LoRA; None for the usual way."""
    kinds = {type(update) for update in adapter.layers.values()}
    if len(kinds) != 1:
        return None
    (kind,) = kinds
    return kind if kind.about.peft is not None else None


def by_part(adapter: Adapter) -> dict[str, dict[str, LayerUpdate]]:
    """Part -> module path -> update."""
    parts: dict[str, dict[str, LayerUpdate]] = {}
    for key, update in adapter.layers.items():
        part, _, path = key.partition(".")
        parts.setdefault(part, {})[path] = update
    return parts


def tensors_and_config(
    kind: Kind, layers: Mapping[str, LayerUpdate], base_name: str, where: Path
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What a folder of one part holds; `layers`: module path -> update. Raises FileFormatError
    where PEFT has no such layers, or not with one setting for all.
    """
    form = kind.about.peft
    assert form is not None
    try:
        parts, settings = form.write(layers)
    except LayerError as error:
        raise FileFormatError(
            f"{where}: {error.part} {error.what}. To make a LoRA of it, with the error said: "
            "konomi resize FILE -o OUT --rank R --base BASE."
        ) from error
    tensors = {
        f"{_PREFIX}{path}.{name}": tensor
        for path, layer in parts.items()
        for name, tensor in layer.items()
    }
    config = {
        "base_model_name_or_path": base_name or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_weights": True,
        "modules_to_save": None,
        "peft_type": kind.about.peft_type,
        "target_modules": sorted(layers),
        "task_type": None,
    }
    return tensors, config | settings

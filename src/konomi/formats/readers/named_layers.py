"""The layers that a LoRA file names, in whose dialect, with which parts: what every reader's rules
look at.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from konomi.adapters.kinds import KINDS
from konomi.families.family import DENOISER
from konomi.families.foreign_names import kohya_prefix, part_of_folder, part_of_kohya_prefix
from konomi.formats.kohya_keys import key_of, layout_of
from konomi.formats.layers import KNOWN_PARTS, kind_of_parts, part_of
from konomi.formats.ldm_keys import UNetLayout

Dialect = Literal[
    "kohya", "lycoris", "comfyui", "diffusers", "diffusers 2023", "peft", "bundle", "unknown"
]
"""`lora_unet_X_Y`, `lycoris_X_Y`, `diffusion_model.X.Y`, `unet.X.Y.lora_A`,
`X.processor.to_q_lora`, `base_model.model.X.Y`, `bundle_emb.WORD`."""

_NAMES = sorted({*KNOWN_PARTS, *(name for kind in KINDS for name in kind.about.spellings)})
_PART = re.compile(
    r"(?P<layer>.+?)(?:\.(?P<part>"
    r"lora_[AB](?:\.(?!weight$|bias$)[^.]+)?\.(?:weight|bias)|lora_magnitude_vector.*|bias"
    rf"|{'|'.join(map(re.escape, _NAMES))}|(?:glora|oft|boft)_\w+|[ab][12]\.weight)"
    r"|_lora\.(?P<old>(?:up|down)\.weight))"
)
_OLD = {"up.weight": "lora_up.weight", "down.weight": "lora_down.weight"}
"""After `to_q_lora`."""
_LDM = re.compile(r"(input_blocks|output_blocks|middle_block|time_embed_|label_emb|out_[02]$)")


@dataclass(frozen=True, slots=True)
class NamedLayer:
    """One layer of a file."""

    name: str
    """As the file has it, without the part."""
    dialect: Dialect
    key: str
    """`denoiser.…`, `text_encoder.…`; "" where the name names no module that konomi knows."""
    parts: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Part as named in the file -> shape."""

    @property
    def is_text(self) -> bool:
        return self.key.startswith("text_encoder") or self.name.startswith(
            ("lora_te", "text_encoder")
        )

    @property
    def kind(self) -> str:
        """What kind of update its parts make, by its name in reports; "" where none is complete."""
        names = set(self.parts)
        axes = {_OLD.get(name, part_of(name)): len(shape) for name, shape in self.parts.items()}
        if found := kind_of_parts(axes, axes):
            return found.about.name
        prefix = next(
            (name.split("_")[0] for name in names if name.startswith(("oft_", "boft_", "glora_"))),
            "",
        )
        return prefix or ("glora" if "a1.weight" in names else "")

    @property
    def writes_original_names(self) -> bool:
        """Whether the UNet's layer is named as the original code names it (`input_blocks`), not as
        diffusers does.
        """
        flat = re.sub(r"^(lora_unet_|lycoris_|diffusion_model\.|unet\.)", "", self.name).replace(
            ".", "_"
        )
        return self.key.startswith("denoiser.") and _LDM.match(flat) is not None


def layers_of(shapes: Mapping[str, tuple[int, ...]]) -> tuple[NamedLayer, ...]:
    """Group a file's tensors by layer. A tensor that has no known part is a layer of dialect
    "unknown" by itself.
    """
    grouped: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        if name.startswith("bundle_emb."):
            layer, part = (
                name.rsplit(".", 2)[0]
                if name.endswith(".string_to_param.*")
                else name.rsplit(".", 1)[0],
                "emb",
            )
        elif match := _PART.fullmatch(name):
            layer, part = match["layer"], match["part"] or match["old"]
            part = re.sub(r"^(lora_[AB])\.[^.]+\.(weight|bias)$", r"\1.\2", part)
        else:
            layer, part = name, ""
        grouped.setdefault(layer, {})[part] = shape
    layout = layout_of(_as_kohya(name) for name in grouped)
    return tuple(_named(layer, parts, layout) for layer, parts in grouped.items())


def _named(layer: str, parts: Mapping[str, tuple[int, ...]], layout: UNetLayout) -> NamedLayer:
    if layer.startswith("bundle_emb."):
        return NamedLayer(layer, "bundle", "", parts)
    if layer.startswith("base_model.model."):
        dialect: Dialect = "peft"
    elif layer.startswith(tuple(part_of_kohya_prefix())):
        dialect = "kohya"
    elif layer.startswith("lycoris_"):
        dialect = "lycoris"
    elif layer.startswith("diffusion_model."):
        dialect = "comfyui"
    elif {"up.weight", "down.weight"} & set(parts) or ".processor" in layer:
        dialect = "diffusers 2023"
    elif layer.startswith(tuple(f"{folder}." for folder in part_of_folder())):
        dialect = "diffusers"
    else:
        dialect = "unknown"
    key = "" if dialect == "unknown" or "" in parts else key_of(_as_kohya(layer), layout) or ""
    return NamedLayer(layer, dialect, key, parts)


def _as_kohya(layer: str) -> str:
    """The name as kohya would write it."""
    name = layer.removeprefix("base_model.model.").replace(".processor.", ".")
    denoiser = kohya_prefix(DENOISER, "")
    prefixes = {f"{folder}.": kohya_prefix(part, "") for folder, part in part_of_folder().items()}
    for prefix, new in {"lycoris_": denoiser, "diffusion_model.": denoiser, **prefixes}.items():
        if name.startswith(prefix):
            return f"{new}_{name.removeprefix(prefix).replace('.', '_')}"
    return name if name.startswith("lora_") else f"{denoiser}_{name.replace('.', '_')}"

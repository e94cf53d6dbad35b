"""LoRA as ComfyUI names it: `diffusion_model.` and the model's own path for the denoiser, for text
encoders `text_encoders.clip_l.transformer.` and the path in transformers; halves as `lora_A` or
`lora_down`, and the parts of kohya's and LyCORIS' files (`alpha`, `diff`, `diff_b`, `set_weight`
...).
"""

from __future__ import annotations

from konomi.adapters.adapter import Adapter
from konomi.families.family import DENOISER
from konomi.families.foreign_names import part_of_comfyui_name, path_words
from konomi.formats.family import family_of
from konomi.formats.grouping import assemble, group
from konomi.formats.kohya import context_widths
from konomi.formats.kohya_keys import layout_for
from konomi.formats.layers import split_name
from konomi.formats.ldm_keys import UNetLayout, unet_to_diffusers
from konomi.formats.source import Parsed, Source

NAME = "comfyui"
_DENOISER = "diffusion_model."
_TEXT = {
    f"{root}{name}.transformer.": part
    for root in ("text_encoders.", "")
    for name, part in part_of_comfyui_name().items()
}
_DIFFUSERS = path_words(DENOISER)
"""What a path begins with under diffusers' names; others are the original ones."""


def recognise(source: Source) -> bool:
    """Whether parts of updates stand under ComfyUI's names."""
    return any(
        name.startswith((_DENOISER, *_TEXT)) and split_name(name) is not None
        for name in source.shapes
    )


def parse(source: Source) -> Parsed:
    """Read it. Raises FileFormatError naming the layer whose tensors do not fit together."""
    tensors = source.tensors()
    grouped = group(source.path, tensors, split_name)
    layout = layout_for(
        [name.replace(".", "_") for name in grouped.parts], context_widths(grouped.parts)
    )
    layers, unknown = assemble(source.path, grouped, lambda name: _key(name, layout))
    adapter = Adapter(layers, {}, dict(source.metadata), "", source.name)
    adapter = Adapter(layers, {}, dict(source.metadata), family_of(adapter), source.name)
    return Parsed(adapter, tuple(sorted(unknown)), used=frozenset(tensors))


def _key(name: str, layout: UNetLayout) -> str | None:
    if name.startswith(_DENOISER):
        path: str | None = name.removeprefix(_DENOISER)
        assert path is not None
        if path.partition(".")[0] not in _DIFFUSERS:
            path = unet_to_diffusers(path, layout)
        return None if path is None else f"denoiser.{path}"
    for prefix, part in _TEXT.items():
        if name.startswith(prefix):
            return f"{part}.{name.removeprefix(prefix)}"
    return None

"""LoRA as ComfyUI names it: `diffusion_model.` and the model's own path for the denoiser, for text encoders
`text_encoders.clip_l.transformer.` and the path in transformers; halves as `lora_A` or `lora_down`,
and the parts of kohya's and LyCORIS' files (`alpha`, `diff`, `diff_b`, `set_weight` ...).
"""

from __future__ import annotations

from torch import Tensor

from konomi.adapters.adapter import Adapter, LayerUpdate
from konomi.formats.family import family_of
from konomi.formats.kohya import context_widths
from konomi.formats.kohya_keys import layout_for
from konomi.formats.layers import LayerError, layer_from_parts, split_name
from konomi.formats.ldm_keys import UNetLayout, unet_to_diffusers
from konomi.formats.source import Parsed, Source, fault

NAME = "comfyui"
_DENOISER = "diffusion_model."
_TEXT = {
    "text_encoders.clip_l.transformer.": "text_encoder",
    "text_encoders.clip_h.transformer.": "text_encoder",
    "text_encoders.clip_g.transformer.": "text_encoder_2",
    "clip_l.transformer.": "text_encoder",
    "clip_h.transformer.": "text_encoder",
    "clip_g.transformer.": "text_encoder_2",
}
_DIFFUSERS = ("down_blocks.", "up_blocks.", "mid_block.", "conv_", "time_embedding.", "add_embedding.")


def recognise(source: Source) -> bool:
    """Whether parts of updates stand under ComfyUI's names."""
    return any(name.startswith((_DENOISER, *_TEXT)) and split_name(name) is not None for name in source.shapes)


def parse(source: Source) -> Parsed:
    """Read it. Raises FileFormatError naming the layer whose tensors do not fit together."""
    tensors = source.tensors()
    grouped: dict[str, dict[str, Tensor]] = {}
    names: dict[str, list[str]] = {}
    unknown = []
    for name, tensor in tensors.items():
        found = split_name(name)
        if found is None:
            unknown.append(name)
        elif found[1] in grouped.setdefault(found[0], {}):
            raise fault(source.path, name, "stands for what another tensor of this layer is, too")
        else:
            grouped[found[0]][found[1]] = tensor
            names.setdefault(found[0], []).append(name)
    layout = layout_for([name.replace(".", "_") for name in grouped], context_widths(grouped))
    layers: dict[str, LayerUpdate] = {}
    for name, parts in grouped.items():
        key = _key(name, layout)
        if key is None:
            unknown += names[name]
            continue
        if key in layers:
            raise fault(source.path, name, f"names the same layer as another entry ({key})")
        try:
            layers[key] = layer_from_parts(parts)
        except LayerError as error:
            raise fault(source.path, f"{name}.{error.part}".rstrip("."), error.what) from error
    adapter = Adapter(layers, {}, dict(source.metadata), "", source.name)
    adapter = Adapter(layers, {}, dict(source.metadata), family_of(adapter), source.name)
    return Parsed(adapter, tuple(sorted(unknown)), used=frozenset(tensors))


def _key(name: str, layout: UNetLayout) -> str | None:
    if name.startswith(_DENOISER):
        path: str | None = name.removeprefix(_DENOISER)
        assert path is not None
        if not path.startswith(_DIFFUSERS):
            path = unet_to_diffusers(path, layout)
        return None if path is None else f"denoiser.{path}"
    for prefix, part in _TEXT.items():
        if name.startswith(prefix):
            return f"{part}.{name.removeprefix(prefix)}"
    return None

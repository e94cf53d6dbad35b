"""The first Stable Diffusion LoRA format (cloneofsimo/lora, 2022): halves in a row, without names.

Their order is that of the modules in the model: blocks down, up, mid; in each transformer block
the first attention's q, k, v, out, the feed-forward's GEGLU projection (not in older files), the
second attention's q, k, v, out; in each text layer k, v, q, out. The scale is 1.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from konomi.adapters.adapter import Adapter
from konomi.adapters.kinds import LayerUpdate
from konomi.config.parse import parse_json
from konomi.errors import FileFormatError
from konomi.formats.embedding_metadata import vectors
from konomi.formats.layers import LayerError, layer_from_parts
from konomi.formats.peft_config import named
from konomi.formats.source import Parsed, Source, fault
from konomi.storage.pickles import read_pickle
from konomi.storage.sniff import FileKind

NAME = "cloneofsimo"
_TENSOR = re.compile(r"(unet|text_encoder):(\d{1,6}):(up|down)")
_PARTS = {"unet": "denoiser", "text_encoder": "text_encoder"}
_WIDTHS = (320, 640, 1280)
_CONTEXT_WIDTHS = (768, 1024)


def recognise(source: Source) -> bool:
    """Whether tensors are numbered instead of named, or the file is a bare list of matrices."""
    if source.kind is FileKind.SAFETENSORS:
        return any(_TENSOR.fullmatch(name) for name in source.shapes)
    value = source.value
    return (
        isinstance(value, list)
        and len(value) > 1
        and all(isinstance(item, Tensor) for item in value)
    )


def parse(source: Source) -> Parsed:
    """Read either form, with the companions `X.text_encoder.pt` and `X.ti.pt` of an `X.pt`.

    Raises FileFormatError where the number of layers or their widths are not those of SD1 or SD2.
    """
    unknown: list[str] = []
    embeddings: dict[str, dict[str, Tensor]] = {}
    if source.kind is FileKind.SAFETENSORS:
        layers = _from_table(source, embeddings, unknown)
    else:
        layers = _from_list(source.path, source.value)
        layers |= _companions(source.path, layers, embeddings)
    adapter = named(Adapter(layers, embeddings, {}, "", source.name))
    if not adapter.family:
        # The format is older than SDXL, so a text encoder alone tells the family by its width.
        adapter = replace(
            adapter,
            family="sd2"
            if any(update.input_width == 1024 for update in layers.values())
            else "sd1",
        )
    return Parsed(adapter, tuple(sorted(unknown)), used=frozenset(source.names))


def unet_paths(*, with_geglu: bool) -> list[str]:
    """Module paths of SD1's and SD2's UNet in the order of the file: 144, or 128 without GEGLU."""
    blocks = [f"down_blocks.{block}.attentions.{layer}" for block in range(3) for layer in range(2)]
    blocks += [
        f"up_blocks.{block}.attentions.{layer}" for block in range(1, 4) for layer in range(3)
    ]
    blocks.append("mid_block.attentions.0")
    inner = [f"attn1.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")]
    inner += ["ff.net.0.proj"] if with_geglu else []
    inner += [f"attn2.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")]
    return [f"{block}.transformer_blocks.0.{name}" for block in blocks for name in inner]


def text_paths(count: int) -> list[str]:
    """Module paths of a CLIP text encoder in the order of the file, four for each layer."""
    names = ("k_proj", "v_proj", "q_proj", "out_proj")
    return [
        f"text_model.encoder.layers.{layer}.self_attn.{name}"
        for layer in range(count // 4)
        for name in names
    ]


def _from_table(
    source: Source, embeddings: dict[str, dict[str, Tensor]], unknown: list[str]
) -> dict[str, LayerUpdate]:
    numbered: dict[str, dict[int, dict[str, Tensor]]] = {}
    for name, tensor in source.tensors().items():
        match = _TENSOR.fullmatch(name)
        if match:
            side = numbered.setdefault(match[1], {}).setdefault(int(match[2]), {})
            side[f"lora_{match[3]}.weight"] = tensor
        elif source.metadata.get(name) == "<embed>":
            embeddings[name] = {"text_encoder": vectors(source.path, name, tensor)}
        else:
            unknown.append(name)
    layers: dict[str, LayerUpdate] = {}
    for component, sides in numbered.items():
        if sorted(sides) != list(range(len(sides))):
            missing = next(index for index in range(len(sides)) if index not in sides)
            raise fault(
                source.path,
                f"{component}:{missing}",
                "is missing, so the order of the layers is unknown",
            )
        classes = _classes(source, component)
        if component == "unet" and not classes <= {"CrossAttention", "Attention", "GEGLU"}:
            raise fault(
                source.path,
                component,
                f"was trained on {sorted(classes)}, whose order is not known",
            )
        ordered = [sides[index] for index in range(len(sides))]
        layers |= _placed(source.path, component, ordered, _PARTS[component])
    return layers


def _classes(source: Source, component: str) -> set[str]:
    try:
        found = parse_json(source.metadata.get(component, "[]"))
    except ValueError as error:
        raise fault(source.path, f"metadata {component}", f"is not JSON ({error})") from error
    return {str(item) for item in found} if isinstance(found, list) else set()


def _from_list(path: Path, value: list[Tensor]) -> dict[str, LayerUpdate]:
    if len(value) % 2:
        raise FileFormatError(f"{path}: a list of {len(value)} matrices; every down needs its up.")
    value = [item.detach() for item in value]
    pairs = [
        {"lora_up.weight": up, "lora_down.weight": down}
        for up, down in zip(value[::2], value[1::2])
    ]
    widths = {up.shape[0] for up in value[::2] if up.dim()}
    is_text = len(widths) == 1 and widths <= set(_CONTEXT_WIDTHS)
    component = "text_encoder" if is_text else "unet"
    return _placed(path, component, pairs, _PARTS[component])


def _placed(
    path: Path, component: str, pairs: list[dict[str, Tensor]], part: str
) -> dict[str, LayerUpdate]:
    if component == "unet":
        if len(pairs) not in (128, 144):
            raise FileFormatError(
                f"{path}: {len(pairs)} layers for the UNet; 144, or 128 without GEGLU, are known."
            )
        paths = unet_paths(with_geglu=len(pairs) == 144)
    else:
        if len(pairs) not in (48, 92, 96):
            raise FileFormatError(
                f"{path}: {len(pairs)} layers for the text encoder; 48 (SD1) or 92 (SD2) are known."
            )
        paths = text_paths(len(pairs))
    layers: dict[str, LayerUpdate] = {}
    for index, (name, parts) in enumerate(zip(paths, pairs, strict=True)):
        where = f"{component}:{index}"
        try:
            layer = layer_from_parts(parts)
        except LayerError as error:
            raise fault(path, f"{where}:{error.part}", error.what) from error
        up, down = parts["lora_up.weight"], parts["lora_down.weight"]
        if component == "unet" and not _fits(name, up.shape[0], down.shape[1]):
            raise fault(
                path, where, f"is {up.shape[0]} x {down.shape[1]}, which does not fit {name}"
            )
        layers[f"{part}.{name}"] = layer
    return layers


def _fits(name: str, outputs: int, inputs: int) -> bool:
    """Whether a matrix has the width of the module at its place; a guard against a wrong order."""
    block, number = name.split(".")[:2]
    width = (
        1280
        if block == "mid_block"
        else _WIDTHS[int(number)]
        if block == "down_blocks"
        else _WIDTHS[3 - int(number)]
    )
    if name.endswith(("attn2.to_k", "attn2.to_v")):
        return outputs == width and inputs in _CONTEXT_WIDTHS
    if name.endswith("ff.net.0.proj"):
        return outputs == 8 * width and inputs == width
    return outputs == width == inputs


def _companions(
    path: Path, layers: dict[str, LayerUpdate], embeddings: dict[str, dict[str, Tensor]]
) -> dict[str, LayerUpdate]:
    if not any(key.startswith("denoiser.") for key in layers):
        return {}
    tokens = path.with_suffix(".ti.pt")
    if tokens.is_file():
        embeddings |= read_tokens(tokens, read_pickle(tokens))
    text = path.with_suffix(".text_encoder.pt")
    if not text.is_file():
        return {}
    value = read_pickle(text)
    if not isinstance(value, list) or not all(isinstance(item, Tensor) for item in value):
        raise FileFormatError(f"{text}: must be a list of matrices.")
    return _from_list(text, value)


def read_tokens(path: Path, value: Any) -> dict[str, dict[str, Tensor]]:
    """Token -> vectors, of a table of bare vectors ([d] or [n, d])."""
    if not isinstance(value, dict) or not all(
        isinstance(item, Tensor) and item.dim() in (1, 2) for item in value.values()
    ):
        raise FileFormatError(f"{path}: must be a table of tokens and their vectors.")
    return {
        str(token): {"text_encoder": vectors(path, str(token), item)}
        for token, item in value.items()
    }

"""From a base's text encoder into the space in which CLIP compares pictures and texts.

Bases keep of CLIP what conditions the denoiser: one that reads states alone leaves out the
projection, and one that reads the last layer but one the last layer too. Both come from the CLIP
that the text encoder is of, of which only these tensors are read. A text encoder whose pooled
vector is read has all its parts.

Shapes: D width of the text encoder, P width of the shared space.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from konomi.config.sections import TextConfig
from konomi.errors import ModelError
from konomi.families.family import TextEncoderSpec
from konomi.models.architecture import NO_TOKENS, AddedTokens, LoadedTextEncoder
from konomi.models.base import BaseModel
from konomi.models.clip import clip_folder
from konomi.models.clip_text import Layer, TextEncoder
from konomi.models.load import BUILTIN
from konomi.models.tensor_files import TensorFile, open_component, read_json
from konomi.models.text_encoding import text_features

_PROJECTION = "text_projection.weight"
_LAYERS = "text_model.encoder.layers"


@dataclass(frozen=True, slots=True)
class TextTower:
    """A text encoder of a base with what leads from its last layer into the shared space."""

    encoder: LoadedTextEncoder
    projection_PD: Tensor
    """Float32; frozen."""
    tail: tuple[nn.Module, ...] = ()
    """CLIP's layers that the base lacks, float32; frozen."""
    is_whole: bool = True
    """All its parts are the base's own."""

    @property
    def width(self) -> int:
        """P."""
        return self.projection_PD.shape[0]

    def features(
        self, prompt: str, text: TextConfig, tokens: AddedTokens = NO_TOKENS
    ) -> tuple[Tensor, Tensor]:
        """Unit vectors [N, P] of a prompt's chunks and their shares [N]: see `text_features`."""
        return text_features(
            self.encoder,
            prompt,
            text,
            tail=self.tail,
            projection_PD=self.projection_PD,
            tokens=tokens,
        )


def clip_of(base: BaseModel, spec: TextEncoderSpec) -> str:
    """The CLIP that a text encoder of a base is of: a hub id, or `tiny` where the base draws what
    `tiny` draws; "" if it is no CLIP's.
    """
    return "tiny" if spec.clip and base.width < base.published_width else spec.clip


def text_tower(base: BaseModel, width: int, clip: str = "") -> TextTower:
    """The text encoder of a base whose space is `width` wide.

    clip: a folder or hub id of the CLIP that the missing parts come from; by default the one of the
    family. A text encoder that has all its parts does without.

    Raises ModelError where no text encoder of the base is of such a CLIP, or the CLIP cannot be
    had.
    """
    known: list[int] = []
    for spec, encoder in zip(base.spec.text_encoders, base.loaded_encoders(), strict=True):
        tower = None
        if (own := _own_projection(encoder)) is not None:
            tower = TextTower(encoder, own)
        elif isinstance(encoder.module, TextEncoder) and (clip or _may_be(spec, base, width)):
            tower = _completed(encoder, clip or clip_of(base, spec), base.device)
        if tower is not None and tower.width == width:
            return tower
        known.append(spec.width if tower is None else tower.width)
    widths = " and ".join(map(str, dict.fromkeys(known)))
    raise ModelError(
        f"{base.name} ({base.spec.title}): its text encoders are of CLIPs whose features are "
        f"{widths} wide, and the embedding is {width} wide. Take one that was made with such a "
        "CLIP."
    )


def _may_be(spec: TextEncoderSpec, base: BaseModel, width: int) -> bool:
    """Published CLIPs of these families project to their own width; that spares a download."""
    return bool(spec.clip) and (base.width < base.published_width or spec.width == width)


def _own_projection(encoder: LoadedTextEncoder) -> Tensor | None:
    projection = getattr(encoder.module, "text_projection", None)
    return None if projection is None else projection.weight.detach().float()


def _completed(encoder: LoadedTextEncoder, source: str, device: torch.device) -> TextTower | None:
    """None where the CLIP's text encoder is of another width or of fewer layers."""
    files, config = _opened(source)
    model = encoder.module.text_model
    width = int(model.final_layer_norm.normalized_shape[0])
    there = len(model.encoder.layers) - encoder.missing_layers
    total = int(config.get("num_hidden_layers", 12))
    if int(config.get("hidden_size", 512)) != width or total < there:
        return None
    tail = tuple(
        _layer(files, config, width, number, source).to(device) for number in range(there, total)
    )
    (projection,) = _read(files, [_PROJECTION], source)
    return TextTower(encoder, projection.float().to(device), tail, is_whole=False)


def _opened(source: str) -> tuple[Sequence[TensorFile], Mapping[str, Any]]:
    """The files of a CLIP and its text encoder's settings."""
    if source == "tiny":
        root = BUILTIN / "tiny"
        return open_component(root / "clip", ("model",)), read_json(
            root / "text_encoder" / "config.json"
        )
    folder: Path = clip_folder(source)
    config = read_json(folder / "config.json").get("text_config")
    if not isinstance(config, dict):
        raise ModelError(f"{folder}: its config describes no text encoder, so it is no CLIP.")
    return open_component(folder, ("model", "pytorch_model")), config


def _layer(
    files: Sequence[TensorFile], config: Mapping[str, Any], width: int, number: int, source: str
) -> nn.Module:
    try:
        layer = Layer(config, width)
    except (TypeError, ValueError) as error:
        raise ModelError(f"{source}: the config describes no CLIP ({error}).") from error
    names = list(layer.state_dict())
    tensors = _read(files, [f"{_LAYERS}.{number}.{name}" for name in names], source)
    layer.load_state_dict(
        {name: tensor.float() for name, tensor in zip(names, tensors, strict=True)}
    )
    return layer.requires_grad_(False).eval()


def _read(files: Sequence[TensorFile], names: Sequence[str], source: str) -> list[Tensor]:
    found: dict[str, Tensor] = {}
    for file in files:
        found |= file.read([name for name in names if name in file.shapes])
    if missing := [name for name in names if name not in found]:
        raise ModelError(f"{source}: has no {missing[0]}, so it is not a CLIP with both encoders.")
    return [found[name] for name in names]

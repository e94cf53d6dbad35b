"""An adapter: learned tensors and what they mean, in one key scheme.

Canonical keys are `PART.PATH`: PART is `denoiser`, `text_encoder` or `text_encoder_2`; PATH is the
module's path in the diffusers (denoiser) or transformers (text encoder, always with `text_model.`)
layout, e.g. `denoiser.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q`,
`text_encoder.text_model.encoder.layers.0.self_attn.q_proj`.

What a layer's update can be is in `kinds/`.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from konomi.adapters.kinds import LayerUpdate
from konomi.diffusion.conditioning import Conditioning

PARTS = ("denoiser", "text_encoder", "text_encoder_2")


@dataclass(frozen=True, slots=True)
class Perceptron:
    """A small network beside an attention layer's key or value projection (D is the width it reads
    and returns).
    """

    tensors: dict[str, Tensor]
    """`linear.{i}.weight`, `linear.{i}.bias`: i counts linear layers, activations, norms and
    dropouts as web UIs do."""


@dataclass(frozen=True, slots=True)
class Hypernetwork:
    """k = to_k(c + N_k(c)), v = to_v(c + N_v(c)), one pair of networks for all attention layers of
    a width.
    """

    pairs: dict[int, tuple[Perceptron, Perceptron]]
    """Width D of what is attended to -> (N_k, N_v)."""
    structure: tuple[float, ...] = (1.0, 2.0, 1.0)
    """Widths of the layers in multiples of D."""
    activation: str = "linear"
    activate_output: bool = False
    """Whether the last layer is followed by the activation too."""
    layer_norm: bool = False
    dropout: tuple[float, ...] = ()
    """Rate after each linear layer, for training alone; the positions count in the tensors'
    names."""
    facts: dict[str, str] = field(default_factory=dict)
    """What else the file says (`step`, `sd_checkpoint`, `weight_initialization`, ...)."""


@dataclass(frozen=True, slots=True, eq=False)
class Edit:
    """The two text states of one edited picture (Imagic): B = 1."""

    prompt: str
    """What the target state says."""
    target: Conditioning = field(repr=False)
    """The text encoder's states of the prompt."""
    found: Conditioning = field(repr=False)
    """Those found from it that draw the picture itself."""
    size: tuple[int, int] = (0, 0)
    """Width, height in pixels at which the picture was learned."""

    def between(self, target: Conditioning, eta: float) -> Conditioning:
        """eta target + (1 - eta) found (Kawar et al. 2022, equation 4); any eta. `target`: the
        edit's own, or of another prompt, with as many positions."""

        def mixed(found: Tensor, wanted: Tensor) -> Tensor:
            found = found.to(wanted.device, torch.float32)
            return (eta * wanted.float() + (1 - eta) * found).to(wanted.dtype)

        pooled = None
        if target.pooled is not None and self.found.pooled is not None:
            pooled = mixed(self.found.pooled, target.pooled)
        return replace(target, states=mixed(self.found.states, target.states), pooled=pooled)


@dataclass(frozen=True, slots=True)
class Adapter:
    """What one training run learned, independent of any file format."""

    layers: dict[str, LayerUpdate] = field(default_factory=dict)
    """Canonical key -> update."""
    embeddings: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """Token -> {PART of the text encoder: vectors [n, D]}. A token `X-neg` belongs into the
    negative prompt wherever `X` is used (DreamArtist)."""
    metadata: dict[str, str] = field(default_factory=dict)
    """What the file said of itself, or what konomi will say in it (`ss_*`, `modelspec.*`)."""
    family: str = ""
    """Name of the family, or "" where the file does not tell."""
    name: str = ""
    """File stem or output name."""
    hypernetwork: Hypernetwork | None = None
    negative: "Adapter | None" = None
    """What acts in the negative branch of guidance; `layers` then act in the positive branch alone
    (DreamArtist++). Only its layers count: learned tokens of both branches are all in
    `embeddings`."""
    edit: Edit | None = None
    """What draws one picture edited; `layers` were trained around its found state (Imagic)."""
    notes: tuple[str, ...] = ()
    """What a person should know of the file it was read from: a line each on what was not used or
    had to be assumed."""

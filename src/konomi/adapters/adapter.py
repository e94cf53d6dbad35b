"""An adapter: learned tensors and what they mean, in one key scheme.

Canonical keys are `PART.PATH`: PART is `denoiser`, `text_encoder` or `text_encoder_2`; PATH is the module's path in the
diffusers (denoiser) or transformers (text encoder, always with `text_model.`) layout, e.g.
`denoiser.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q`,
`text_encoder.text_model.encoder.layers.0.self_attn.q_proj`.

Shapes: O output, I input channels or features, K kernel, R rank. A weight is [O, I] or [O, I, K, K].
"""

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

PARTS = ("denoiser", "text_encoder", "text_encoder_2")


@dataclass(frozen=True, slots=True)
class LowRank:
    """dW = up @ down * alpha / R (LoRA, Hu et al. 2021); LoCon's mid (Tucker); DoRA's magnitude (Liu et al. 2024)."""

    down: Tensor
    """[R, I] or [R, I, K, K]; with `mid` [R, I, 1, 1]."""
    up: Tensor
    """[O, R] or [O, R, 1, 1]."""
    alpha: float
    """Numerator of the scale; alpha = R means scale 1."""
    mid: Tensor | None = None
    """[R, R, K, K]."""
    magnitude: Tensor | None = None
    """DoRA: [O, 1(, 1, 1)] norms per output, or [1, I(, 1, 1)] norms per input."""
    bias: Tensor | None = None
    """db [O], given outright (PEFT's `lora_bias` with its scale multiplied in, `diff_b` of ComfyUI and LyCORIS)."""

    @property
    def scale(self) -> float:
        """alpha / R."""
        return self.alpha / self.down.shape[0]


@dataclass(frozen=True, slots=True)
class Hadamard:
    """LoHa: dW = (w1_a @ w1_b) * (w2_a @ w2_b) * alpha / R (Hyeon-Woo et al. 2021)."""

    w1_a: Tensor
    w1_b: Tensor
    w2_a: Tensor
    w2_b: Tensor
    alpha: float
    t1: Tensor | None = None
    t2: Tensor | None = None
    magnitude: Tensor | None = None
    bias: Tensor | None = None
    """db [O], given outright."""


@dataclass(frozen=True, slots=True)
class Kronecker:
    """LoKr: dW = kron(w1, w2) * scale; each factor is full, a product a @ b, or (w2) a Tucker product with t2."""

    w1: Tensor | None = None
    w1_a: Tensor | None = None
    w1_b: Tensor | None = None
    w2: Tensor | None = None
    w2_a: Tensor | None = None
    w2_b: Tensor | None = None
    t2: Tensor | None = None
    alpha: float | None = None
    magnitude: Tensor | None = None
    bias: Tensor | None = None
    """db [O], given outright."""


@dataclass(frozen=True, slots=True)
class Rescale:
    """(IA)^3: W' = W * (1 + weight), on output rows or input columns (Liu et al. 2022)."""

    weight: Tensor
    on_input: bool


@dataclass(frozen=True, slots=True)
class Difference:
    """dW and db given outright; norms too."""

    weight: Tensor | None = None
    bias: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Replacement:
    """W' = weight, whatever W is: a layer that is given whole (Custom Diffusion)."""

    weight: Tensor
    origin: Tensor | None = None
    """The W it stands in for, where that is known: only then can the change be told without the base."""
    bias: Tensor | None = None


def axis_of_magnitude(magnitude: Tensor) -> Literal["output", "input"]:
    """Whose lengths a DoRA magnitude holds, by its shape, as ComfyUI and Forge tell it: [1, I(, 1, 1)] is per input;
    [O, 1(, 1, 1)], also of a square layer, and [O] are per output."""
    return "input" if magnitude.dim() >= 2 and magnitude.shape[0] == 1 else "output"


LayerUpdate = LowRank | Hadamard | Kronecker | Rescale | Difference | Replacement


@dataclass(frozen=True, slots=True)
class Perceptron:
    """A small network beside an attention layer's key or value projection (D is the width it reads and returns)."""

    tensors: dict[str, Tensor]
    """`linear.{i}.weight`, `linear.{i}.bias`: i counts linear layers, activations, norms and dropouts as web UIs do."""


@dataclass(frozen=True, slots=True)
class Hypernetwork:
    """k = to_k(c + N_k(c)), v = to_v(c + N_v(c)), one pair of networks for all attention layers of a width."""

    pairs: dict[int, tuple[Perceptron, Perceptron]]
    """Width D of what is attended to -> (N_k, N_v)."""
    structure: tuple[float, ...] = (1.0, 2.0, 1.0)
    """Widths of the layers in multiples of D."""
    activation: str = "linear"
    activate_output: bool = False
    """Whether the last layer is followed by the activation too."""
    layer_norm: bool = False
    dropout: tuple[float, ...] = ()
    """Rate after each linear layer, for training alone; the positions count in the tensors' names."""
    facts: dict[str, str] = field(default_factory=dict)
    """What else the file says (`step`, `sd_checkpoint`, `weight_initialization`, ...)."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """What one training run learned, independent of any file format."""

    layers: dict[str, LayerUpdate] = field(default_factory=dict)
    """Canonical key -> update."""
    embeddings: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """Token -> {PART of the text encoder: vectors [n, D]}. A token `X-neg` belongs into the negative prompt wherever
    `X` is used (DreamArtist)."""
    metadata: dict[str, str] = field(default_factory=dict)
    """What the file said of itself, or what konomi will say in it (`ss_*`, `modelspec.*`)."""
    family: str = ""
    """`sd1`, `sd2`, `sdxl`, or "" where the file does not tell."""
    name: str = ""
    """File stem or output name."""
    hypernetwork: Hypernetwork | None = None
    negative: "Adapter | None" = None
    """What acts in the negative branch of guidance; `layers` then act in the positive branch alone (DreamArtist++).
    Only its layers count: learned words of both branches are all in `embeddings`."""
    notes: tuple[str, ...] = ()
    """What a person should know of the file it was read from: a line each on what was not used or had to be assumed."""

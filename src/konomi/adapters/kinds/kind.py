"""What every kind of update answers. A kind is a frozen data class; an update of one layer is an
instance of it.

Shapes: O output, I input channels or features, K kernel, R rank. A weight is [O, I] or [O, I, K,
K].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import Field, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self, runtime_checkable

from torch import Tensor, nn

from konomi.diffusion.random import Rng

if TYPE_CHECKING:
    from konomi.adapters.kinds.low_rank import LowRank


@dataclass(frozen=True, slots=True)
class LayerSettings:
    """What a recipe says of one layer's update, whatever its kind. A kind uses what it names in
    `Training.uses`.
    """

    rank: int
    alpha: float
    dropout: float = 0.0
    """Chance of each input value being left out of the update."""
    rank_dropout: float = 0.0
    """Chance of each direction (of low rank) or each output (of other kinds, as LyCORIS has it)
    being left out of the update, per sample."""
    module_dropout: float = 0.0
    """Chance of the whole update being left out, per sample."""
    rs_lora: bool = False
    """Scale by alpha / sqrt(R) in place of alpha / R."""
    dora: bool = False
    """Also learn the lengths of weights (DoRA)."""
    max_norm: float = 0.0
    """The largest Frobenius norm of the update; 0: none."""
    dora_axis: Literal["output", "input"] = "output"
    """Whose lengths: each output's weights (the paper, PEFT, diffusers) or each input's (A1111,
    LyCORIS' first)."""
    init: Literal["zero", "pissa", "olora"] = "zero"
    """Where low-rank factors start."""
    own: Any = None
    """The kind's own settings, of `Training.settings`; None: all as usual."""

    @property
    def scale(self) -> float:
        """Of the update: alpha / R."""
        return self.alpha / (math.sqrt(self.rank) if self.rs_lora else self.rank)

    @property
    def has_dropout(self) -> bool:
        """Whether the layer draws anything in a step."""
        return self.dropout > 0 or self.rank_dropout > 0 or self.module_dropout > 0


Use = Literal[
    "rank",
    "alpha",
    "scaling",
    "dropout",
    "rank_dropout",
    "module_dropout",
    "dora",
    "b_rate_ratio",
    "max_norm",
    "init",
]
"""A setting that acts on some kinds and not on others, as recipes name it."""


@dataclass(frozen=True, slots=True)
class Training:
    """How a kind is trained: an algorithm, in LyCORIS' words."""

    algorithm: str
    """Its name in recipes and on the command line."""
    spec: Callable[[LayerSettings], LayerSpec]
    """From a layer's settings to what makes its trained layer."""
    uses: frozenset[Use] = frozenset()
    """What of the shared settings acts on it; the rest is named as without effect."""
    settings: type[Any] | None = None
    """Its own settings: a frozen dataclass, and a section of the recipe that is called like the
    algorithm."""
    learning_rate: float = 1e-4
    """The usual one, of the denoiser."""
    trains_bias: bool = False
    """Biases are trained as well."""
    b_factors: frozenset[str] = frozenset()
    """The parameters whose steps `b_rate_ratio` makes larger."""
    network_module: str = ""
    """`ss_network_module` of its files, where sd-scripts has one of its own; "" for what the kinds
    of layers tell."""


@dataclass(frozen=True, slots=True)
class PeftForm:
    """How PEFT's folders have a kind, where they hold it. Its parts are among the kind's."""

    read: Callable[[Any, Mapping[str, Any]], Any]
    """(update of its parts, `adapter_config.json`) -> what it means there. Raises LayerError."""
    write: Callable[[Mapping[str, Any]], tuple[dict[str, dict[str, Tensor]], dict[str, Any]]]
    """Module path -> update, of all layers -> (path -> PEFT's names and tensors, settings for all).
    Raises LayerError (path, reason) where PEFT has no such layers."""
    settings: frozenset[str]
    """What `read` looks at, and what says only how it was trained."""
    refused: Mapping[str, Any] = field(default_factory=dict)
    """Settings with which the tensors mean something that konomi does not do -> usual value."""


@dataclass(frozen=True, slots=True)
class About:
    """What is known of a kind without an update: what it is called, here and elsewhere, and how it
    is trained.
    """

    name: str
    """In reports: `lora`, `loha`, ..."""
    parts: Mapping[str, tuple[int, ...]]
    """Its tensors as kohya's and LyCORIS' files name them -> how many axes each may have; () for
    any number."""
    complete: tuple[frozenset[str], ...]
    """Sets of parts that make an update; any of them does."""
    spellings: Mapping[str, str] = field(default_factory=dict)
    """How other programs call the same parts -> kohya's name."""
    peft_type: str = ""
    """In PEFT's `adapter_config.json`; "" where PEFT has no such kind."""
    peft: PeftForm | None = None
    """How it is read and written there; None where it is not, and for LoRA, which has formats of
    its own."""
    algo: str = ""
    """In LyCORIS' network arguments; "" for what kohya's own `networks.lora` trains."""
    training: Training | None = None
    """How it is trained; None where konomi does not train it."""
    also_trained: tuple[Training, ...] = ()
    """Other algorithms whose result is the same kind of update."""
    nearest: Callable[[Tensor, int], Any] | None = None
    """(change of a weight [O, ...], rank) -> the update of this kind that comes nearest to it; None
    where there is no closed form."""
    at_strength: Callable[[Any, float], Any] | None = None
    """(update, strength) -> the update at it, where that is not strength times the change; None
    where it is."""


class LayerUpdate(Protocol):
    """The update of one layer."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    about: ClassVar[About]

    @classmethod
    def from_parts(cls, parts: Mapping[str, Tensor]) -> Self:
        """Assemble it of a layer's tensors, whose types and numbers of axes have been checked.

        Raises LayerError for halves that are missing or do not fit together.
        """
        ...

    def to_parts(self, *, norm: bool) -> dict[str, Tensor]:
        """The way back. `norm`: the module is a normalisation. Raises FileFormatError where
        kohya's files lack it.
        """
        ...

    @property
    def alpha(self) -> float | None:
        """Numerator of the scale, where there is one."""
        ...

    @property
    def magnitude(self) -> Tensor | None:
        """DoRA's learned lengths, see `magnitude`."""
        ...

    @property
    def bias(self) -> Tensor | None:
        """What is done to the bias, [O]; see `bias_delta`."""
        ...

    @property
    def whole(self) -> Tensor | None:
        """W' itself, where it is given outright."""
        ...

    @property
    def rank(self) -> int | None:
        """Inner dimension of the factors; None where there is none."""
        ...

    @property
    def input_width(self) -> int | None:
        """I of the weight that it belongs to; None where its tensors do not tell. Of a convolution
        it may be I K K, where one axis holds both.
        """
        ...

    def delta(self, weight: Tensor) -> Tensor:
        """W' - W, of the untouched weight's shape; all tensors are of the weight's dtype and on
        its device.

        Raises ModelError where the update is of another shape.
        """
        ...

    def bias_delta(self, bias: Tensor) -> Tensor | None:
        """b' - b [O], in the untouched bias' dtype and on its device; None where it is left
        alone.
        """
        ...

    def difference(self) -> Tensor | None:
        """W' - W at least in float32, where it is told without W; None where W is needed."""
        ...

    def as_low_rank(self) -> LowRank | None:
        """The same update as two factors, for formats that hold nothing else; None where it is
        none.
        """
        ...

    def norm(self) -> float | None:
        """Frobenius norm of W' - W, where it is cheaply told; DoRA's lengths do not count."""
        ...


Kind = type[LayerUpdate]


def not_available(update: object) -> None:
    """For members of `LayerUpdate` that a kind's tensors do not tell: `norm = not_available`."""


class LayerSpec(Protocol):
    """How one layer's update is trained: rank, scale, dropout and the like."""

    @property
    def has_dropout(self) -> bool:
        """Whether the layer draws anything in a step."""
        ...

    def layer(self, key: str, module: nn.Module, *, seed: int) -> TrainableLayer:
        """The layer for a module of the base, at a start that depends on (seed, key) only and
        changes nothing.

        Raises RecipeError for settings that the module does not allow, ModelError for a module of
        another sort.
        """
        ...


class TrainableLayer(Protocol):
    """An `nn.Module` whose `forward` stands in for that of one frozen module of the base while it
    is attached.

    Its parameters are float32 whatever the base computes in; the base is no part of it.
    """

    rng: Rng | None
    """This step's randomness, a key per sample; dropout acts while it is set and the base's module
    is in training."""

    @property
    def base(self) -> nn.Module: ...

    @property
    def spec(self) -> LayerSpec: ...

    def forward(self, x: Tensor) -> Tensor:
        """The base module's answer with the update."""
        ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...

    def export(self) -> LayerUpdate:
        """A float32 copy."""
        ...

    def load(self, update: LayerUpdate) -> None:
        """Go on from an earlier update. Raises ModelError where it is of another kind, rank or
        shape.
        """
        ...


@runtime_checkable
class LimitsNorm(Protocol):
    """A trained layer whose update can be kept from growing beyond a norm."""

    def limit_norm(self) -> None:
        """Scale the parameters back where the update is larger than `LayerSettings.max_norm`; a
        second time in a row it does nothing.
        """
        ...


def tensors_of(update: LayerUpdate) -> dict[str, Tensor]:
    """Field name -> tensor, for walking over any kind of update."""
    found = ((name, getattr(update, name)) for name in update.__dataclass_fields__)
    return {name: value for name, value in found if isinstance(value, Tensor)}

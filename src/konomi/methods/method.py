"""What a method is: which parameters it trains, against which loss, and what it leaves behind."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Protocol, TypeVar, runtime_checkable

from torch import Tensor, nn

from konomi.adapters.adapter import Adapter
from konomi.adapters.apply import Strengths, attach
from konomi.adapters.live import LiveAdapter
from konomi.config.prior import PriorSource
from konomi.config.rates import highest_rate
from konomi.config.recipe import Recipe
from konomi.config.sections import OptimizerConfig
from konomi.data.batch import Batch, Examples
from konomi.diffusion.random import Rng
from konomi.families.family import Part
from konomi.formats.writer import Content
from konomi.methods.chosen_layers import ChosenLayers
from konomi.models.base import BaseModel


@dataclass(frozen=True, slots=True)
class ParameterGroup:
    """Parameters that share a learning rate."""

    name: str
    parameters: Mapping[str, nn.Parameter]
    """Stable name -> parameter; checkpoints store them under these names."""
    learning_rate: float
    weight_decay: float | None = None
    """None: the optimizer section's."""


@dataclass(frozen=True, slots=True)
class Phase:
    """One stretch of training. Most methods have one; the loop runs them one after another."""

    name: str
    groups: tuple[ParameterGroup, ...]
    loss: Callable[[Batch, Rng], Tensor]
    """Mean loss of a batch, a scalar with gradient. Pure but for the parameters: all chance comes
    from the Rng."""
    per_example: Callable[[Examples, Rng, Tensor], Tensor] | None = None
    """Loss of each example [B] at given timesteps [B], for validation; None: the plain denoising
    loss. The base is in evaluation mode, with everything that is trained attached."""
    num_steps: int | None = None
    """Steps of this phase; None takes `share`, or what the run has left."""
    share: float | None = None
    """Share of the run's steps."""
    modules: tuple[nn.Module, ...] = field(default=())
    """Modules to put in training mode (dropout, checkpointing) during the phase."""

    def length(self, total_steps: int) -> int:
        """Steps in a run of `total_steps`, if it is the only phase."""
        if self.num_steps is not None:
            return self.num_steps
        return total_steps if self.share is None else round(self.share * total_steps)


@dataclass(frozen=True, slots=True)
class Needs:
    """What a method asks of the base and the data: decided before anything is loaded or cached."""

    trains_text: bool = False
    """Text states change during training, so they must not be cached."""
    pixels: bool = False
    """Pixels are needed in every step, not latents alone."""
    makes: Content | Literal["model"] = "lora"
    """What comes out, a whole model or which kind of adapter: decides which result formats there
    are."""
    prior: PriorSource = "none"
    """What `prior.source = "auto"` means to the method."""
    predicts_prior: bool = False
    """Whether it can ask the untouched base in training (`prior.source = "prediction"`)."""
    identifier: bool = False
    """It gives a meaning to an identifier and needs both that and a class noun: captions are "a
    [identifier] [class]" where images have none, and an identifier that is no rare single token is
    spoken about."""
    edits_towards: str = ""
    """The target text of a method that edits a single image, and trains on no other beside it; ""
    for all others."""
    float32_parts: tuple[Part, ...] = ()
    """Parts whose own weights are trained: kept in float32 whatever the precision of the
    computation."""
    unused: Mapping[str, str] = field(default_factory=dict)
    """Settings, of the method's own section and others, that do nothing as they stand: path ->
    why, in a sentence. Told before the first step where they are not at their default."""
    for_bare_images: tuple[str, ...] = ()
    """Settings that act on images without caption alone."""
    notes: tuple[str, ...] = ()
    """What else should be known before the first step, a sentence each."""
    chosen: ChosenLayers | None = None
    """What a choice of layers comes to; None where the recipe makes none."""


@dataclass(frozen=True, slots=True)
class Weights:
    """Whole parts of a base, as a method that trains them leaves them: canonical
    `PART.PATH.weight` -> tensor.
    """

    tensors: dict[str, Tensor]


Result = Adapter | Weights


Default = TypeVar("Default")


def rate_for_width(default: float, base: BaseModel) -> float:
    """A rate meant for a family's published weights, for a base of another width.

    Adam's steps on inner weights want to be as one over the width (Yang et al. 2022, "Tensor
    Programs V", table 3): fivefold on `tiny`, unchanged on every published model.
    """
    return default * base.published_width / base.width


def for_width(base: BaseModel, *, published: Default, narrow: Default) -> Default:
    """A default: what papers and practice say of models of published width and more, and what was
    measured on `tiny` for narrower ones, which learn what they can in fewer and larger steps."""
    return published if base.width >= base.published_width else narrow


def learning_rates(optimizer: OptimizerConfig, default: float) -> tuple[float, float]:
    """Rates for the denoiser's and the text encoder's parameters, where the recipe leaves them
    open.

    Prodigy finds its own step and wants 1 (Mishchenko & Defazio 2023); Lion a fifth (Chen et al.
    2023, section 5).
    """
    scale = {"prodigy": 1.0 / default, "lion": 0.2}.get(optimizer.kind, 1.0)
    rate = default * scale if optimizer.learning_rate is None else optimizer.learning_rate
    if optimizer.rates:
        # The schedule takes shares of the highest.
        rate = highest_rate(optimizer.rates)
    if optimizer.text_learning_rate is not None:
        return rate, optimizer.text_learning_rate
    return rate, rate if optimizer.kind == "prodigy" else rate / 2


def placed(reasons: Mapping[str, str], section: str) -> dict[str, str]:
    """`Needs.unused` of a method that works inside another one, whose settings lie in `section`
    there.
    """
    return {
        path.replace("method.", f"{section}."): why.replace("method.", f"{section}.")
        for path, why in reasons.items()
    }


def own_rate(optimizer: OptimizerConfig, rate: float, default: float) -> float:
    """The rate of what has a setting of its own beside `optimizer.learning_rate`, whose default is
    `default`.

    Such settings are step sizes for Adam. Prodigy takes shares of what it finds for all, Lion a
    fifth.
    """
    return rate * {"prodigy": 1.0 / default, "lion": 0.2}.get(optimizer.kind, 1.0)


@runtime_checkable
class RewordsCaptions(Protocol):
    """A method that trains on other captions than the data has: validation does the same, for the
    base too.
    """

    def captioned(self, examples: Examples, rng: Rng) -> Examples:
        """Examples with the captions of one step. `rng` is the step's. Works before `plan`."""
        ...


def begin_step(live: LiveAdapter, batch: Batch, rng: Rng) -> None:
    """Give what is trained the randomness of a step. `rng` is the step's.

    It follows the subjects, so that a batch in several micro-batches drops the same. To be
    called once for all losses of a step: gradient checkpointing computes the first forward pass
    again after the second.
    """
    live.begin_step(rng.fork("dropout").for_samples(batch.subject.sample_ids))


class Method(Protocol):
    """The interface every method file implements. Asked what it needs, and built, before the base
    is loaded.
    """

    config_type: ClassVar[type[Any]]
    default_learning_rate: ClassVar[float]

    def __init__(self, config: Any, base: BaseModel, recipe: Recipe) -> None:
        """`config`: of `config_type`; `recipe`: the whole recipe, whose method section may be
        another method's that works with this one. Nothing of the base is loaded yet.
        """
        ...

    @staticmethod
    def needs(config: Any, base: BaseModel, recipe: Recipe) -> Needs:
        """What training with these settings asks of base and data: known before the data is looked
        at, so that the prior and the captions can be decided by it. Raises RecipeError for
        settings that cannot be followed.
        """
        ...

    def default_steps(self, num_images: int) -> int:
        """Length of a run whose recipe names neither steps nor epochs."""
        ...

    def plan(self) -> tuple[Phase, ...]:
        """Attach what will be trained to the base, and say how it is trained."""
        ...

    def export(self) -> Result:
        """What has been learned so far: copies, float32."""
        ...

    def as_loaded(self, result: Result) -> AbstractContextManager[None]:
        """Inside, the base behaves as if `result` had been read from its file: what previews are
        drawn with.
        """
        ...

    def close(self) -> None:
        """Detach from the base for good."""
        ...


class AdapterMethod:
    """What methods have in common that train something beside a frozen base: they say what, as
    `live`, and what they leave behind, how that looks on the base and how it comes off follow from
    it.
    """

    base: BaseModel
    live: LiveAdapter
    """What is trained, attached; from `plan` on."""

    def export(self) -> Adapter:
        learned, family = self.live.export(), self.base.family
        negative = None if learned.negative is None else replace(learned.negative, family=family)
        return replace(learned, negative=negative, family=family)

    @contextmanager
    def as_loaded(self, result: Result) -> Iterator[None]:
        if not isinstance(result, Adapter):
            raise TypeError(f"{type(self).__name__} exports an Adapter")
        with self.live.pause(), attach(self.base, [(result, Strengths())], keep_on_cpu=True):
            yield

    def close(self) -> None:
        self.live.detach()

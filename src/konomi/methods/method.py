"""What a method is: which parameters it trains, against which loss, and what it leaves behind."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from konomi.adapters.adapter import Adapter
from konomi.data.batch import Batch
from konomi.diffusion.random import Rng


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
    """Mean loss of a batch, a scalar with gradient. Pure but for the parameters: all chance comes from the Rng."""
    num_steps: int | None = None
    """Steps of this phase; None takes what the run has left."""
    modules: tuple[nn.Module, ...] = field(default=())
    """Modules to put in training mode (dropout, checkpointing) during the phase."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What a method asks of the data: decided before anything is cached."""

    trains_text: bool = False
    """Text states change during training, so they must not be cached."""
    pixels: bool = False
    """Pixels are needed in every step, not latents alone."""


@dataclass(frozen=True, slots=True)
class Weights:
    """Whole parts of a base, as a method that trains them leaves them: canonical `PART.PATH.weight` -> tensor."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)


class Method(Protocol):
    """The interface every method file implements. Built as `SomeMethod(base, recipe)`."""

    config_type: type[Any]
    default_learning_rate: float

    @property
    def needs(self) -> Needs: ...

    def plan(self) -> tuple[Phase, ...]:
        """Attach what will be trained to the base, and say how it is trained."""
        ...

    def export(self) -> Adapter | Weights:
        """What has been learned so far, as tensors of its own (no aliasing of live parameters), float32."""
        ...

    def pause(self) -> Any:
        """Context manager: the base behaves untouched inside it (for previews, validation of the base, priors)."""
        ...

    def close(self) -> None:
        """Detach from the base for good."""
        ...

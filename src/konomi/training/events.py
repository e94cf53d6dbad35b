"""What a run tells. The loop yields these; whoever iterates it draws, logs or streams them.
Closing it cancels.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Started:
    """The run is ready; steps begin."""

    first_step: int
    """Steps already done (0, or where a resumed run goes on)."""
    total_steps: int
    steps_per_epoch: int
    trainable_parameters: int
    device: str
    precision: str


@dataclass(frozen=True, slots=True)
class Prepared:
    """One piece of work before training: encoding images or captions."""

    what: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Step:
    """One optimiser step is done."""

    step: int
    """1 for the first."""
    epoch: int
    loss: float
    learning_rate: float
    seconds: float
    samples_seen: int
    memory: float
    """Peak MiB so far: of the device on CUDA, of the process elsewhere."""
    parts: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Validated:
    """Loss on held-out images, of the model in training and of the untouched base."""

    step: int
    loss: float
    base_loss: float


@dataclass(frozen=True, slots=True)
class Previewed:
    step: int
    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Saved:
    """A result file is on disk."""

    step: int
    path: str
    works: tuple[str, ...] = ()
    """Of the finished result: how much of it ComfyUI, A1111 and diffusers use, and what each would
    ignore."""


@dataclass(frozen=True, slots=True)
class Checkpointed:
    """A state to resume from is on disk."""

    step: int
    path: str


@dataclass(frozen=True, slots=True)
class Warned:
    """Something the user should know; the run goes on."""

    message: str


@dataclass(frozen=True, slots=True)
class Finished:
    step: int
    path: str
    """The result file."""
    interrupted: bool = False
    pictures: tuple[str, ...] = ()
    """The last previews."""
    next_commands: tuple[str, ...] = ()
    """What to type now."""
    report: str = ""
    """The page to look at."""
    card: str = ""
    """The picture that carries the recipe."""


Event = Started | Prepared | Step | Validated | Previewed | Saved | Checkpointed | Warned | Finished

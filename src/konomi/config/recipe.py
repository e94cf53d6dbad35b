"""The recipe: everything a run needs, typed and immutable."""

from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from konomi.config.evaluation import EvaluationConfig
from konomi.config.prior import PriorConfig
from konomi.config.sections import (
    DataConfig,
    MemoryConfig,
    ObjectiveConfig,
    OptimizerConfig,
    PreviewConfig,
    RunConfig,
    SaveConfig,
    TextConfig,
    ValidationConfig,
)


@runtime_checkable
class MethodConfig(Protocol):
    """A method's own section: a frozen dataclass that lives beside the method and is told apart by
    `kind`.
    """

    @property
    def kind(self) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One run. A TOML file, a command line and a web form are three ways to write it."""

    base: str
    """The model to start from: `tiny` (built in), a diffusers folder, a .safetensors or .ckpt
    file, or a hub id."""
    vae: str = ""
    """A VAE to use instead of the base's own, or if its file contains none: a file, a folder or a
    hub id."""
    prediction: Literal["auto", "epsilon", "v_prediction", "sample"] = "auto"
    """What the base predicts (diffusers' `prediction_type`), if its file does not say so or is
    wrong."""
    adapters: tuple[str, ...] = ()
    """Adapters that stay attached to the base during training, `FILE` or `FILE:0.8`: what is
    learned is learned on top of them, and belongs on a base that has them too. Any kind that
    `generate --add` takes; on the command line `--with FILE:0.8`."""
    method: MethodConfig
    """What is trained, and how."""
    data: DataConfig = field(default_factory=DataConfig)
    """Images and captions."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """What the denoiser learns to predict, and how its error is weighted."""
    prior: PriorConfig = field(default_factory=PriorConfig)
    """Prior preservation: what keeps the class unchanged while a subject of it is learned."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """How the weights are updated."""
    run: RunConfig = field(default_factory=RunConfig)
    """Length, output and intervals."""
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    """Trade speed for memory."""
    text: TextConfig = field(default_factory=TextConfig)
    """How captions are encoded."""
    preview: PreviewConfig = field(default_factory=PreviewConfig)
    """The pictures generated during training."""
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    """The loss on images that are not trained on."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """How finished files are measured, and which images are held out for it."""
    save: SaveConfig = field(default_factory=SaveConfig)
    """The result file."""

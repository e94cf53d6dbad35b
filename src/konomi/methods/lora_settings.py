"""What a recipe says of a LoRA, or of another update in its place, and what of it does nothing."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, get_args

from pydantic import Field

from konomi.adapters.kinds import KINDS, Training
from konomi.adapters.kinds.dylora import DyloraSettings
from konomi.adapters.kinds.kind import Kind, Use
from konomi.adapters.kinds.kronecker import LokrSettings
from konomi.adapters.kinds.rescale import Ia3Settings
from konomi.adapters.kinds.rotation import RotationSettings
from konomi.config.blocks import LoraBlocks
from konomi.config.bounds import STRICT, Fraction
from konomi.errors import RecipeError
from konomi.families.family import Family
from konomi.methods.lora_start import Start

ALGORITHMS: Mapping[str, Training] = {
    training.algorithm: training
    for kind in KINDS
    for training in (kind.about.training, *kind.about.also_trained)
    if training is not None
}
"""Every kind of update that can be trained, by its name in a recipe."""
TRAINED_KINDS: Mapping[str, Kind] = {
    training.algorithm: kind
    for kind in KINDS
    for training in (kind.about.training, *kind.about.also_trained)
    if training is not None
}
"""The kind of update that each of them ends as."""
if TYPE_CHECKING:
    Algorithm = str
else:
    Algorithm = Literal[tuple(ALGORITHMS)]
Rank = Annotated[int, Field(ge=0, le=1024)]
Alpha = Annotated[float, Field(gt=0, le=1024)]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraConfig:
    """Low-rank updates (LoRA) in a small file that is used with the base; the usual choice."""

    __pydantic_config__ = STRICT
    shorthands: ClassVar[Mapping[str, Mapping[str, str]]] = {
        name: {"algorithm": name} for name in ALGORITHMS if name != "lora"
    }
    """What `konomi train NAME` stands for besides `konomi train lora`."""

    kind: Literal["lora"] = "lora"
    algorithm: Algorithm = "lora"
    """What the update of a layer is: `lora`, two thin factors, or another kind in its place.
    docs/methods/lora_family.md says when which is worth a try."""
    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    """Rank of the update. A higher rank learns more and overfits sooner."""
    alpha: Alpha | None = None
    """The update is scaled by alpha / rank; by default alpha = rank."""
    targets: tuple[str, ...] = ("transformer",)
    """Which layers are trained: `attention`, `attention.kv`, `attention.k`, `attention.v`,
    `cross_attention`, `cross_attention.kv`, `feed_forward`, `projection`, or `transformer` for all
    linear layers of the transformer blocks; also blocks (`IN04`, `MID`, `OUT03-OUT05`, `TE*` of the
    text encoder), patterns of names (`*.attn2.to_k`), those joined by `:` (`OUT*:conv`), and `!` in
    front of what is left out."""
    conv_rank: Rank = 0
    """Rank for convolutions (LoCon), in the blocks that `targets` names; 0 leaves them unchanged.
    Of an algorithm without ranks any other number trains them."""
    conv_alpha: Alpha | None = None
    """Alpha for convolutions; by default `conv_rank`."""
    text_rank: Rank = 0
    """Rank for the text encoder; 0 leaves it unchanged, so that captions need to be encoded only
    once. Of an algorithm without ranks any other number trains it."""
    text_alpha: Alpha | None = None
    """Alpha for the text encoder; by default `text_rank`."""
    dropout: Fraction = 0.0
    """Probability of dropping each input of an update during training."""
    rank_dropout: Fraction = 0.0
    """Probability of dropping each rank during training; of algorithms other than lora, each output
    of the update, as in LyCORIS."""
    module_dropout: Fraction = 0.0
    """Probability of skipping a layer's whole update during training."""
    max_norm: Annotated[float, Field(ge=0, le=1000)] = 0.0
    """The largest norm (Frobenius) of a layer's update; what is larger is scaled back after each
    step (`scale_weight_norms` of sd-scripts, 1 there), which keeps files usable together. 0: no
    bound."""
    b_rate_ratio: Annotated[float, Field(ge=1, le=64)] = 1.0
    """Ratio of B's learning rate to A's (LoRA+: 16)."""
    scaling: Literal["rank", "sqrt_rank"] = "rank"
    """Divide alpha by the rank, or by its square root (rsLoRA), which keeps the updates of high
    ranks from becoming too small."""
    dora: bool = False
    """Train the magnitude of the weights separately from their direction (DoRA)."""
    dora_axis: Literal["auto", "input", "output"] = "auto"
    """One magnitude per `input`, as A1111 reads kohya's files (Forge, ComfyUI and LyCORIS read
    both), or per `output`, as in the paper, PEFT and diffusers. auto: the one that every reader of
    `save.format` understands."""
    init: Literal["zero", "pissa", "olora"] = "zero"
    """Where the two factors start: from nothing (`zero`), or along the directions that the base's
    weights themselves have, their largest ones (`pissa`) or their first columns (`olora`). Those
    often learn faster at low ranks; their file is a plain LoRA of twice the rank."""
    blocks: LoraBlocks = field(default_factory=LoraBlocks)
    """Ranks, scales and learning rates by block."""
    start: str = ""
    """An adapter's file to continue from instead of starting at zero (`--start FILE`). Its layers
    keep their ranks and scales, including those in the text encoder and convolutions, unless the
    recipe names ranks: then they are truncated (SVD) or widened. Other layers are trained in
    addition if `targets`, `conv_rank` or `text_rank` ask for them. Files of other kinds are
    converted; what is lost is said."""
    lokr: LokrSettings = field(default_factory=LokrSettings)
    """Of the algorithm lokr."""
    ia3: Ia3Settings = field(default_factory=Ia3Settings)
    """Of the algorithm ia3."""
    oft: RotationSettings = field(default_factory=RotationSettings)
    """Of the algorithm oft."""
    boft: RotationSettings = field(default_factory=RotationSettings)
    """Of the algorithm boft."""
    dylora: DyloraSettings = field(default_factory=DyloraSettings)
    """Of the algorithm dylora."""

    @property
    def training(self) -> Training:
        """How the algorithm trains."""
        return ALGORITHMS[self.algorithm]

    def uses(self, use: Use) -> bool:
        """Whether a setting acts on the algorithm."""
        return use in self.training.uses

    @property
    def has_dora(self) -> bool:
        """Whether lengths are learned."""
        return self.dora and self.uses("dora")


def trains_text(config: LoraConfig, start: Start | None, family: Family) -> bool:
    """For a recipe that names groups of layers alone."""
    named = any(
        name in encoder.selectors for encoder in family.text_encoders for name in config.targets
    )
    return config.text_rank > 0 or named or (start is not None and start.has_text)


def unused_settings(config: LoraConfig, start: Start | None, *, text: bool) -> dict[str, str]:
    """Settings that another one switches off. `text`: the text encoder is trained."""
    found = _of_other_algorithms(config)
    if not config.targets:
        found |= {f"method.{name}": "method.targets is empty." for name in ("rank", "alpha")}
    if start is not None:
        kept = "the layers of method.start keep their scale, and no others are trained."
        only = config.targets == LoraConfig().targets
        found |= {"method.alpha": kept, "method.init": kept} if only else {}
    if config.init != "zero" and config.uses("init"):
        found["method.max_norm"] = "method.init starts from factors that are not small."
    if not config.conv_rank:
        found["method.conv_alpha"] = "method.conv_rank is 0, so convolutions are left alone."
    if not config.text_rank:
        found["method.text_alpha"] = "method.text_rank is 0, so the text encoder is left alone."
        if not text:
            found["optimizer.text_learning_rate"] = (
                "method.text_rank is 0, so the text encoder is not trained."
            )
    if start is None and {
        config.rank if config.targets else 0,
        config.conv_rank,
        config.text_rank,
    } <= {0, 1}:
        found["method.scaling"] = "a rank of 1 is its own root."
    if not config.has_dora and (start is None or not start.is_dora):
        found.setdefault("method.dora_axis", "method.dora is false, so no magnitudes are learned.")
    return found


def _of_other_algorithms(config: LoraConfig) -> dict[str, str]:
    """What the algorithm has not, and the own settings of all others."""
    why = f'method.algorithm is "{config.algorithm}", which has no such setting.'
    missing = [use for use in get_args(Use) if not config.uses(use)]
    paths = [f"method.{use}" for use in missing]
    if "rank" in missing:
        paths.append("method.blocks.ranks")
    if "alpha" in missing:
        paths += ["method.conv_alpha", "method.text_alpha", "method.blocks.alphas"]
    if "dora" in missing:
        paths.append("method.dora_axis")
    for name, training in ALGORITHMS.items():
        if training.settings is not None and name != config.algorithm:
            paths += [f"method.{name}.{own.name}" for own in fields(training.settings)]
    return dict.fromkeys(paths, why)


def dora_axis(config: LoraConfig, file_format: str) -> Literal["input", "output"]:
    """Whose magnitudes DoRA learns, so that every reader of the file computes what was trained.

    Raises RecipeError where an axis is asked for that some reader of the format would take for the
    other, or drop.
    """
    reads: Literal["input", "output"] = (
        "output" if file_format in ("diffusers", "peft") else "input"
    )
    if config.has_dora and config.dora_axis not in ("auto", reads):
        others = (
            "diffusers and PEFT hold" if reads == "output" else "A1111 reads all kohya files with"
        )
        raise RecipeError(
            f"method.dora_axis is {config.dora_axis}, but {others} DoRA magnitudes per {reads}: a "
            f"file of save.format {file_format} would mean something else there. Leave "
            "method.dora_axis out, or choose another save.format."
        )
    return reads


def check_format(config: LoraConfig, file_format: str) -> None:
    """Raises RecipeError where a run's updates are not saved in a format."""
    if config.algorithm != "lora" and file_format in ("diffusers", "peft"):
        raise RecipeError(
            f"save.format is {file_format!r}, in which a run saves LoRA alone, and "
            f"method.algorithm is \"{config.algorithm}\". Use 'kohya'; konomi convert writes other "
            "formats that hold it."
        )

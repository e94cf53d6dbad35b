"""LoRA: learn a low-rank change of the weights (Hu et al. 2021, "LoRA: Low-Rank Adaptation of
Large Language Models").

W' = W + (alpha / rank) B A with A [rank, in] random and B [out, rank] zero: training starts from
the base itself, and only A and B are learned. Also here, as switches: a larger step for B (LoRA+,
Hayou et al. 2024), alpha / sqrt(rank) (rsLoRA, Kalajdzievski 2023), and learned magnitudes (DoRA,
Liu et al. 2024).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from konomi.adapters.kinds.low_rank import LoraSpec
from konomi.adapters.layers import inject
from konomi.config.bounds import STRICT, Fraction
from konomi.config.recipe import Recipe
from konomi.data.batch import Batch
from konomi.diffusion.random import Rng
from konomi.errors import RecipeError
from konomi.families.selectors import check_selectors, selects
from konomi.methods.denoising import DenoisingLoss
from konomi.methods.layer_selectors import check_base_has_layers, selected_layers
from konomi.methods.lora_start import Start, read_start
from konomi.methods.method import (
    AdapterMethod,
    Needs,
    ParameterGroup,
    Phase,
    begin_step,
    for_width,
    learning_rates,
    rate_for_width,
)
from konomi.methods.preservation import PreservingLoss
from konomi.models.base import BaseModel

Rank = Annotated[int, Field(ge=0, le=1024)]
Alpha = Annotated[float, Field(gt=0, le=1024)]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraConfig:
    """Low-rank updates (LoRA) in a small file that is used with the base; the usual choice."""

    __pydantic_config__ = STRICT

    kind: Literal["lora"] = "lora"
    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    """Rank of the update. A higher rank learns more and overfits sooner."""
    alpha: Alpha | None = None
    """The update is scaled by alpha / rank; by default alpha = rank."""
    targets: tuple[str, ...] = ("transformer",)
    """Which layers are trained: `attention`, `attention.kv`, `attention.k`, `attention.v`,
    `cross_attention`, `cross_attention.kv`, `feed_forward`, `projection`, or `transformer` for all
    linear layers of the transformer blocks."""
    conv_rank: Rank = 0
    """Rank for convolutions (LoCon); 0 leaves them unchanged."""
    conv_alpha: Alpha | None = None
    """Alpha for convolutions; by default `conv_rank`."""
    text_rank: Rank = 0
    """Rank for the text encoder; 0 leaves it unchanged, so that captions need to be encoded only
    once."""
    text_alpha: Alpha | None = None
    """Alpha for the text encoder; by default `text_rank`."""
    dropout: Fraction = 0.0
    """Probability of dropping each input of an update during training."""
    rank_dropout: Fraction = 0.0
    """Probability of dropping each rank during training."""
    module_dropout: Fraction = 0.0
    """Probability of skipping a layer's whole update during training."""
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
    start: str = ""
    """A LoRA file to continue from instead of starting at zero. Its layers keep their ranks and
    scales, including those in the text encoder and convolutions; other layers are trained in
    addition if `targets`, `conv_rank` or `text_rank` ask for them."""


class Lora(AdapterMethod):
    """Trains low-rank updates beside the frozen base."""

    config_type: ClassVar = LoraConfig
    default_learning_rate: ClassVar = 1e-4

    def __init__(
        self, config: LoraConfig, base: BaseModel, recipe: Recipe, *, section: str = "method"
    ) -> None:
        """`section`: where the recipe has these settings, for messages."""
        self.base = base
        self.recipe = recipe
        self.section = section
        self.config = config
        self.dora_axis = dora_axis(config, recipe.save.format)
        self.start = read_start(config.start, section, base) if config.start else None
        check_selectors(base.spec, config.targets)
        self.start_specs = {} if self.start is None else self._specs_of(self.start)
        self.trains_text = _trains_text(config, self.start)
        self.denoising = DenoisingLoss(base, recipe)
        self.preserving = PreservingLoss(
            base,
            recipe,
            self.denoising,
            original_base=lambda: self.live.pause(),
            trains_text=self.trains_text,
        )

    @staticmethod
    def needs(
        config: LoraConfig, base: BaseModel, recipe: Recipe, *, section: str = "method"
    ) -> Needs:
        dora_axis(config, recipe.save.format)
        check_selectors(base.spec, config.targets)
        selectors = [
            *config.targets,
            *["conv"] * bool(config.conv_rank),
            *["text"] * bool(config.text_rank),
        ]
        check_base_has_layers(base, selectors, LoraConfig().targets)
        start = read_start(config.start, section, base) if config.start else None
        return Needs(
            trains_text=_trains_text(config, start),
            pixels=base.inpainting,
            predicts_prior=True,
            unused=_unused(config, start),
            notes=() if start is None else _start_notes(start),
        )

    def default_steps(self, num_images: int) -> int:
        # The seed deck's run: 1,400 steps for 14 images. diffusers' DreamBooth guide: 500 for 5.
        least, each, most = for_width(self.base, published=(500, 100, 3000), narrow=(400, 80, 2000))
        return min(max(each * num_images, least), most)

    def plan(self) -> tuple[Phase, ...]:
        specs = self._specs()
        self.live = self.layers = inject(
            {key: self.base.module(key) for key in specs},
            specs.__getitem__,
            seed=self.recipe.run.seed,
        )
        if self.start is not None:
            self.layers.load(self.start.layers)
        return (
            Phase(
                name="lora", groups=self._groups(), loss=self.loss, modules=tuple(self._modules())
            ),
        )

    def loss(self, batch: Batch, rng: Rng) -> Tensor:
        begin_step(self.layers, batch, rng)
        return self.preserving(batch, rng)

    def _specs(self) -> dict[str, LoraSpec]:
        """Canonical key -> what is trained there."""
        config, start = self.config, self.start
        # What a file was trained on is gone on with, unless the recipe names layers itself.
        targets = (
            () if start is not None and config.targets == LoraConfig().targets else config.targets
        )
        specs = {}
        for selector in targets:
            specs.update(
                dict.fromkeys(
                    selected_layers(self.base, selector), self._spec(config.rank, config.alpha)
                )
            )
        for selector, rank, alpha in (
            ("conv", config.conv_rank, config.conv_alpha),
            ("text", config.text_rank, config.text_alpha),
        ):
            if rank:
                specs.update(
                    dict.fromkeys(selected_layers(self.base, selector), self._spec(rank, alpha))
                )
        specs |= self.start_specs
        if not specs:
            where = f"{self.section}.targets"
            raise RecipeError(
                f"{where} is empty and so are conv_rank and text_rank: nothing would be trained."
            )
        return specs

    def _specs_of(self, start: Start) -> dict[str, LoraSpec]:
        """Of the layers that a file brings along."""
        config, usual = self.config, LoraConfig()
        specs = {}
        for key in start.layers:
            if not key.startswith("denoiser."):
                setting, given = "text_rank", config.text_rank
            elif selects(self.base.spec, "conv", key):
                setting, given = "conv_rank", config.conv_rank
            else:
                setting, given = "rank", 0 if config.rank == usual.rank else config.rank
            specs[key] = start.spec(key, self._spec(1, 1.0), setting=setting, given=given)
        return specs

    def _spec(self, rank: int, alpha: float | None) -> LoraSpec:
        config = self.config
        return LoraSpec(
            rank=rank,
            alpha=float(rank) if alpha is None else alpha,
            dropout=config.dropout,
            rank_dropout=config.rank_dropout,
            module_dropout=config.module_dropout,
            rs_lora=config.scaling == "sqrt_rank",
            dora=config.dora,
            dora_axis=self.dora_axis,
        )

    def _groups(self) -> tuple[ParameterGroup, ...]:
        """One group per learning rate: denoiser or text, A or B."""
        default = rate_for_width(self.default_learning_rate, self.base)
        rate, text_rate = learning_rates(self.recipe.optimizer, default)
        members: dict[tuple[str, str], dict[str, nn.Parameter]] = {}
        for name, parameter in self.layers.parameters.items():
            part = "denoiser" if name.startswith("denoiser.") else "text"
            members.setdefault((part, "b" if name.endswith(".up") else "a"), {})[name] = parameter
        return tuple(
            ParameterGroup(
                name=f"{part}.{half}",
                parameters=parameters,
                learning_rate=(rate if part == "denoiser" else text_rate)
                * (self.config.b_rate_ratio if half == "b" else 1.0),
            )
            for (part, half), parameters in members.items()
        )

    def _modules(self) -> Iterator[nn.Module]:
        yield from self.layers.modules
        yield self.base.denoiser
        if self.trains_text:
            yield from self.base.text_encoders.values()


def _trains_text(config: LoraConfig, start: Start | None) -> bool:
    return config.text_rank > 0 or (start is not None and start.has_text)


def _unused(config: LoraConfig, start: Start | None) -> dict[str, str]:
    """Settings that another one switches off."""
    found: dict[str, str] = {}
    if not config.targets:
        found |= {f"method.{name}": "method.targets is empty." for name in ("rank", "alpha")}
    if start is not None:
        kept = "the layers of method.start keep their scale, and no others are trained."
        found |= {"method.alpha": kept} if config.targets == LoraConfig().targets else {}
    if not config.conv_rank:
        found["method.conv_alpha"] = "method.conv_rank is 0, so convolutions are left alone."
    if not config.text_rank:
        found["method.text_alpha"] = "method.text_rank is 0, so the text encoder is left alone."
        if start is None or not start.has_text:
            found["optimizer.text_learning_rate"] = (
                "method.text_rank is 0, so the text encoder is not trained."
            )
    if start is None and {
        config.rank if config.targets else 0,
        config.conv_rank,
        config.text_rank,
    } <= {0, 1}:
        found["method.scaling"] = "a rank of 1 is its own root."
    if not config.dora and (start is None or not start.is_dora):
        found["method.dora_axis"] = "method.dora is false, so no magnitudes are learned."
    return found


def dora_axis(config: LoraConfig, file_format: str) -> Literal["input", "output"]:
    """Whose magnitudes DoRA learns, so that every reader of the file computes what was trained.

    Raises RecipeError where an axis is asked for that some reader of the format would take for the
    other, or drop.
    """
    reads: Literal["input", "output"] = (
        "output" if file_format in ("diffusers", "peft") else "input"
    )
    if config.dora and config.dora_axis not in ("auto", reads):
        others = (
            "diffusers and PEFT hold" if reads == "output" else "A1111 reads all kohya files with"
        )
        raise RecipeError(
            f"method.dora_axis is {config.dora_axis}, but {others} DoRA magnitudes per {reads}: a "
            f"file of save.format {file_format} would mean something else there. Leave "
            "method.dora_axis out, or choose another save.format."
        )
    return reads


def _start_notes(start: Start) -> tuple[str, ...]:
    ranks = sorted({update.down.shape[0] for update in start.layers.values()})
    shown = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
    parts = "the text encoder too" if start.has_text else "without the text encoder"
    notes = [f"goes on from {start.path}: {len(start.layers)} layers of {shown}, {parts}."]
    if start.words:
        notes.append(
            f"{start.path} also holds learned words ({', '.join(start.words)}), which are not "
            "trained on."
        )
    return (*notes, *start.notes)

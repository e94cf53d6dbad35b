"""LoRA: learn a low-rank change of the weights (Hu et al. 2021, "LoRA: Low-Rank Adaptation of
Large Language Models").

W' = W + (alpha / rank) B A with A [rank, in] random and B [out, rank] zero: training starts from
the base itself, and only A and B are learned. Also here, as switches: a larger step for B (LoRA+,
Hayou et al. 2024), alpha / sqrt(rank) (rsLoRA, Kalajdzievski 2023), and learned magnitudes (DoRA,
Liu et al. 2024). Another kind of update in its place is trained the same way: what it computes is
in its file in `adapters/kinds/`.
"""

from collections.abc import Iterator
from typing import ClassVar
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from konomi.adapters.kinds import LayerUpdate
from konomi.adapters.layers import inject
from konomi.config.recipe import Recipe
from konomi.data.batch import Batch
from konomi.diffusion.random import Rng
from konomi.methods.denoising import DenoisingLoss
from konomi.methods.layer_selectors import check_base_has_layers
from konomi.methods.lora_choice import LoraChoice, choose_layers
from konomi.methods.lora_layers import layers_of_start, rank_named, trained_layers
from konomi.methods.lora_settings import (
    TRAINED_KINDS,
    LoraConfig,
    check_format,
    dora_axis,
    trains_text,
    unused_settings,
)
from konomi.methods.lora_start import Start, Wish, read_start
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

__all__ = ["Lora", "LoraConfig"]


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
        self.choice = choose_layers(config, base, section)
        self.start = _start_of(config, section, base, self.choice)
        # Where file and recipe disagree, before images are encoded for a day.
        self.start_layers = layers_of_start(config, self.start, self.dora_axis)
        self.trains_text = _trains_text(config, self.start, self.choice, base)
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
        check_format(config, recipe.save.format)
        choice = choose_layers(config, base, section)
        if choice is None:
            further = {"conv": config.conv_rank, "text": config.text_rank}
            selectors = [*config.targets, *(name for name, rank in further.items() if rank)]
            check_base_has_layers(base, selectors, LoraConfig().targets)
        start = _start_of(config, section, base, choice)
        text = _trains_text(config, start, choice, base)
        return Needs(
            trains_text=text,
            pixels=base.inpainting,
            predicts_prior=True,
            unused=unused_settings(config, start, text=text),
            notes=(
                *(() if start is None else _start_notes(start, choice)),
                *(() if choice is None else (choice.summary.note,)),
            ),
            chosen=None if choice is None else choice.summary,
        )

    def default_steps(self, num_images: int) -> int:
        # The seed deck's run: 1,400 steps for 14 images. diffusers' DreamBooth guide: 500 for 5.
        least, each, most = for_width(self.base, published=(500, 100, 3000), narrow=(400, 80, 2000))
        return min(max(each * num_images, least), most)

    def plan(self) -> tuple[Phase, ...]:
        config = self.config
        layers = trained_layers(
            config,
            self.base,
            self.start_layers,
            self.dora_axis,
            choice=self.choice,
            section=self.section,
        )
        specs = {key: config.training.spec(settings) for key, settings in layers.items()}
        self.live = self.layers = inject(
            {key: self.base.module(key) for key in specs},
            specs.__getitem__,
            seed=self.recipe.run.seed,
        )
        if self.start is not None:
            self.layers.load(self._started(self.start))
        return (
            Phase(
                name="lora", groups=self._groups(), loss=self.loss, modules=tuple(self._modules())
            ),
        )

    def loss(self, batch: Batch, rng: Rng) -> Tensor:
        begin_step(self.layers, batch, rng)
        return self.preserving(batch, rng)

    def _started(self, start: Start) -> dict[str, LayerUpdate]:
        """What the file's layers begin with."""
        trained = {key: layer for key, layer in self.layers.layers.items() if key in start.layers}
        return {
            key: start.widened_like(key, dict(layer.named_parameters()))
            for key, layer in trained.items()
        }

    def _groups(self) -> tuple[ParameterGroup, ...]:
        """One group per learning rate: denoiser or text, and the factors with larger steps."""
        training = self.config.training
        default = rate_for_width(training.learning_rate, self.base)
        rate, text_rate = learning_rates(self.recipe.optimizer, default)
        factors = {} if self.choice is None else self.choice.factors
        members: dict[tuple[str, str, float], dict[str, nn.Parameter]] = {}
        for name, parameter in self.layers.parameters.items():
            part = "denoiser" if name.startswith("denoiser.") else "text"
            key, _, last = name.rpartition(".")
            half = "b" if last in training.b_factors else "a"
            members.setdefault((part, half, factors.get(key, 1.0)), {})[name] = parameter
        return tuple(
            ParameterGroup(
                name=(f"{part}.{half}" if training.b_factors else part)
                + ("" if factor == 1 else f" x {factor:g}"),
                parameters=parameters,
                learning_rate=(rate if part == "denoiser" else text_rate)
                * (self.config.b_rate_ratio if half == "b" else 1.0)
                * factor,
            )
            # The rate that is shown is the first one's.
            for (part, half, factor), parameters in sorted(
                members.items(), key=lambda member: member[0][2] != 1
            )
        )

    def _modules(self) -> Iterator[nn.Module]:
        yield from self.layers.modules
        yield self.base.denoiser
        if self.trains_text:
            yield from self.base.text_encoders.values()


def _trains_text(
    config: LoraConfig, start: Start | None, choice: LoraChoice | None, base: BaseModel
) -> bool:
    if choice is None:
        return trains_text(config, start, base.spec)
    return choice.has_text or (start is not None and start.has_text)


_starts: WeakKeyDictionary[BaseModel, dict[str, Start]] = WeakKeyDictionary()
"""What was converted for a base that is still in use: `needs` asks for it, then the method."""


def _start_of(
    config: LoraConfig, section: str, base: BaseModel, choice: LoraChoice | None
) -> Start | None:
    """Raises RecipeError where the file holds nothing that can be gone on with."""
    if not config.start:
        return None
    known, name = _starts.setdefault(base, {}), f"{section} {config!r}"
    if name not in known:
        wish = Wish(
            kind=TRAINED_KINDS[config.algorithm],
            algorithm=config.algorithm,
            rank_of=lambda key: rank_named(config, base, choice, key),
            usual_rank=config.rank,
            trains_bias=config.training.trains_bias,
        )
        known[name] = read_start(config.start, section, base, wish)
    return known[name]


def _start_notes(start: Start, choice: LoraChoice | None) -> tuple[str, ...]:
    left_out = [key for key in start.layers if choice is not None and key in choice.excluded]
    found = {
        key: start.widened.get(key, update.rank or 0)
        for key, update in start.layers.items()
        if key not in left_out
    }
    ranks = sorted(set(found.values()))
    shown = "no rank" if not any(ranks) else f"ranks {ranks[0]} to {ranks[-1]}"
    shown = f"rank {ranks[0]}" if len(ranks) == 1 and ranks[0] else shown
    parts = "the text encoder too" if start.has_text else "without the text encoder"
    notes = [f"goes on from {start.path}: {len(found)} layers of {shown}, {parts}."]
    if left_out:
        notes.append(
            f"{len(left_out)} layers of {start.path} are not to be trained: what they learned is "
            "left out."
        )
    if start.words:
        notes.append(
            f"{start.path} also holds learned words ({', '.join(start.words)}), which are not "
            "trained on."
        )
    return (*notes, *start.notes)

"""Hypernetwork: learn small networks that change what attention reads (NovelAI 2022, "NovelAI
Improvements on Stable Diffusion"; the files of A1111's web UI). Not the networks that write other
networks' weights (Ha et al. 2016), which lent the name.

k = to_k(c + N_k(c)), v = to_v(c + N_v(c)): before the key and value projections of attention, a
perceptron adds to the states c that are attended to. One pair (N_k, N_v) serves all attention
layers whose c has a certain width; the base stays as it is, and only the pairs learn. They begin
almost at zero: linear layers N(0, 0.01), biases 0.

NovelAI found that shallow layers overfit first and penalised them during training; how was not
published. Here, with `shallow_penalty` p, p * mean(N(c)^2) is added to the loss: the mean over
images, positions and channels of what N_k and N_v add, and over the shallow layers, which are the
first quarter of all attention layers in the order in which they compute (those of the first blocks
on the way down). The networks are shared, so this asks them to be quiet where the input looks like
that of shallow layers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from konomi.adapters.adapter import Hypernetwork
from konomi.adapters.hypernetwork import HALVES, LiveHypernetwork, Network, make_network, width_of
from konomi.config.bounds import STRICT
from konomi.config.recipe import Recipe
from konomi.data.batch import Batch
from konomi.diffusion.random import Rng, stable_hash
from konomi.errors import RecipeError
from konomi.families.selectors import depth_of
from konomi.methods.base_requirements import require_layers
from konomi.methods.denoising import DenoisingLoss
from konomi.methods.lora_start import adapter_to_continue, trained_for_notes
from konomi.methods.method import (
    AdapterMethod,
    Needs,
    ParameterGroup,
    Phase,
    begin_step,
    for_width,
    learning_rates,
)
from konomi.methods.preservation import PreservingLoss
from konomi.models.base import BaseModel

Activation = Literal[
    "linear", "relu", "leakyrelu", "elu", "swish", "tanh", "sigmoid", "celu", "gelu", "hardshrink",
    "hardsigmoid",
    "hardswish", "hardtanh", "logsigmoid", "mish", "prelu", "relu6", "selu", "silu", "softplus",
    "softshrink",
    "softsign", "tanhshrink",
]  # fmt: skip
"""All that konomi computes but rrelu, whose slopes are drawn by a generator that no checkpoint
holds."""

Initialization = Literal[
    "normal", "xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal"
]
_FILE_WORDS: dict[Initialization, str] = {
    "normal": "Normal",
    "xavier_uniform": "XavierUniform",
    "xavier_normal": "XavierNormal",
    "kaiming_uniform": "KaimingUniform",
    "kaiming_normal": "KaimingNormal",
}

_STRUCTURE = ("structure", "activation", "activate_output", "layer_norm", "dropout")
"""What a file of networks says of them."""

Multiple = Annotated[float, Field(gt=0, le=64)]
Rate = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class HypernetworkConfig:
    """Small networks in front of the keys and values of attention; for styles, and for the web UIs
    of 2022.
    """

    __pydantic_config__ = STRICT

    kind: Literal["hypernetwork"] = "hypernetwork"
    structure: Annotated[tuple[Multiple, ...], Field(min_length=2, max_length=16)] = (1.0, 2.0, 1.0)
    """Layer widths as multiples of the attention layer's width; the first and the last must be 1.
    `1,2,2,1` learns more."""
    activation: Activation = "relu"
    """Activation after each layer but the last. `swish` is what web UIs call by that name (torch's
    hardswish)."""
    activate_output: bool = False
    """Apply the activation after the last layer too."""
    layer_norm: bool = False
    """Layer normalisation after each layer."""
    dropout: tuple[Rate, ...] = ()
    """Dropout after each layer during training: one probability for each number of `structure`, the
    first and the last being 0, as in `0,0.3,0`. Empty for none."""
    initialization: Initialization = "normal"
    """Initialisation of the linear layers. normal: N(0, 0.01), which changes the base least. Biases
    always start at 0, the weights of layer norms at N(0, 0.01)."""
    layers: Literal["all", "cross"] = "all"
    """all: self- and cross-attention, as in A1111. cross: only networks as wide as the text
    embeddings, as in NovelAI. In files, layers are told apart by width alone."""
    widths: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Train only networks of these widths (such as 320, 640, 768, 1280); empty for all that
    `layers` selects."""
    shallow_penalty: Annotated[float, Field(ge=0)] = 0.0
    """Weight of a penalty on the mean square of what the networks add in the first quarter of the
    attention layers, which overfit first; 0 for none."""
    start: str = ""
    """A hypernetwork file to continue from. Its structure, activation, widths and the like are used
    for settings left at their defaults here."""


class HypernetworkMethod(AdapterMethod):
    """Trains networks before the projections of the frozen base."""

    config_type: ClassVar = HypernetworkConfig
    default_learning_rate: ClassVar = 1e-5
    """The practice with Stable Diffusion's widths, the seed deck's and web UIs';
    `narrow_learning_rate` on `tiny`."""
    narrow_learning_rate: ClassVar = 3e-4

    def __init__(self, config: HypernetworkConfig, base: BaseModel, recipe: Recipe) -> None:
        self.base = base
        self.recipe = recipe
        self.config = config
        self.started, _ = _read_start(config, base)
        self.spec = _spec(config)
        if self.started is not None:
            self.spec = replace(
                self.spec, **{name: getattr(self.started, name) for name in _STRUCTURE}
            )
        if self.started is not None or self.config.widths:
            # What does not fit is said before anything is loaded or encoded.
            self._widths(base.meta_copy())
        self.denoising = DenoisingLoss(base, recipe)
        self.preserving = PreservingLoss(
            base, recipe, self.denoising, original_base=lambda: self.live.pause(), trains_text=False
        )

    @staticmethod
    def needs(config: HypernetworkConfig, base: BaseModel, recipe: Recipe) -> Needs:
        require_layers(base, config.kind, ("attention.kv", "attention.v", "cross_attention.kv"))
        _spec(config)
        _, notes = _read_start(config, base)
        return Needs(
            pixels=base.inpainting,
            makes="hypernetwork",
            predicts_prior=True,
            unused=_unused(config),
            notes=notes,
        )

    def default_steps(self, num_images: int) -> int:
        # Thirty times smaller steps than on `tiny` need more of them: web UIs' guides go to ten
        # thousand.
        least, each, most = for_width(
            self.base, published=(2000, 400, 10_000), narrow=(400, 80, 2000)
        )
        return min(max(each * num_images, least), most)

    def plan(self) -> tuple[Phase, ...]:
        layers = self.base.select_layers("attention.kv")
        started = self.started
        pairs = {}
        for width in self._widths(self.base):
            like = next(layer.weight for layer in layers.values() if width_of(layer) == width)
            assert isinstance(like, Tensor)
            k, v = (self._network(width, half, like) for half in HALVES)
            if started is not None:
                k.load_state_dict(started.pairs[width][0].tensors)
                v.load_state_dict(started.pairs[width][1].tensors)
            pairs[width] = (k, v)
        for layer in layers.values():
            layer.requires_grad_(False)
        values = self.base.select_layers("attention.v")
        self.live = self.networks = LiveHypernetwork(layers, pairs, self.spec, values=values)
        self.shallow = self._shallow()
        default = for_width(
            self.base, published=self.default_learning_rate, narrow=self.narrow_learning_rate
        )
        rate, _ = learning_rates(self.recipe.optimizer, default)
        group = ParameterGroup(
            name="hypernetwork", parameters=self.networks.parameters, learning_rate=rate
        )
        modules = (*(network for pair in pairs.values() for network in pair), self.base.denoiser)
        return (Phase(name="hypernetwork", groups=(group,), loss=self.loss, modules=modules),)

    def loss(self, batch: Batch, rng: Rng) -> Tensor:
        begin_step(self.networks, batch, rng)
        if self.config.shallow_penalty == 0:
            return self.preserving(batch, rng)
        with self.networks.recording(self.shallow) as added:
            loss = self.preserving(batch, rng)
        squares = [states.float().square().mean() for states in added]
        return loss + self.config.shallow_penalty * torch.stack(squares).mean() if squares else loss

    def _network(self, width: int, half: str, like: Tensor) -> Network:
        """A network at its start, which depends on seed, width and half only."""
        network = make_network(width, self.spec, like)
        seed = stable_hash("hypernetwork", self.recipe.run.seed, width, half) & (2**63 - 1)
        initialise(
            network,
            self.config.initialization,
            self.config.activation,
            torch.Generator().manual_seed(seed),
        )
        return network

    def _widths(self, base: BaseModel) -> tuple[int, ...]:
        """Those that are trained, in order. Raises RecipeError for widths that the base has not."""
        word = "attention.kv" if self.config.layers == "all" else "cross_attention.kv"
        known = sorted({width_of(layer) for layer in base.select_layers(word).values()})
        for width in self.config.widths:
            if width not in known:
                raise RecipeError(
                    f"method.widths names {width}; with method.layers = {self.config.layers!r}, "
                    f"{self.base.name} has attention of width {', '.join(map(str, known))}."
                )
        wanted = self.config.widths or (
            known if self.started is None else tuple(self.started.pairs)
        )
        chosen = tuple(width for width in known if width in wanted)
        if self.started is not None:
            self._check_widths(self.started, chosen, known)
        return chosen

    def _check_widths(
        self, found: Hypernetwork, chosen: tuple[int, ...], known: Sequence[int]
    ) -> None:
        """Raises RecipeError where the file to go on from has not what is to be trained, or fits
        another base.
        """
        theirs = ", ".join(map(str, sorted(found.pairs)))
        if missing := [width for width in chosen if width not in found.pairs]:
            raise RecipeError(
                f"method.start: {self.config.start} has networks of width {theirs}, none of width "
                f"{missing[0]}. Set method.widths to what the file has, or leave it out."
            )
        foreign = [width for width in found.pairs if width not in known]
        if foreign and not self.config.widths:
            raise RecipeError(
                f"method.start: {self.config.start} has networks of width {theirs}; with "
                f"method.layers = {self.config.layers!r}, {self.base.name} has attention of width "
                f"{', '.join(map(str, known))}, none of {foreign[0]}. Set method.widths to those "
                "to go on with."
            )

    def _shallow(self) -> frozenset[str]:
        """Keys of the projections of the first quarter of the attention layers."""
        pairs = list(
            zip(
                self.base.select_layers("attention.k"),
                self.base.select_layers("attention.v"),
                strict=True,
            )
        )
        pairs.sort(key=lambda pair: depth_of(self.base.spec, pair[0]))
        return frozenset(key for pair in pairs[: math.ceil(len(pairs) / 4)] for key in pair)


def initialise(
    network: nn.Module, initialization: Initialization, activation: str, generator: torch.Generator
) -> None:
    """Start values (Glorot & Bengio 2010; He et al. 2015), drawn on the CPU. Activations keep
    their own.
    """
    gain: Literal["leaky_relu", "relu"] = "leaky_relu" if activation == "leakyrelu" else "relu"
    for layer in network.modules():
        if not isinstance(layer, nn.Linear | nn.LayerNorm):
            continue
        weight = torch.empty(layer.weight.shape)
        if initialization == "normal" or isinstance(layer, nn.LayerNorm):
            nn.init.normal_(weight, std=0.01, generator=generator)
        elif initialization == "xavier_uniform":
            nn.init.xavier_uniform_(weight, generator=generator)
        elif initialization == "xavier_normal":
            nn.init.xavier_normal_(weight, generator=generator)
        elif initialization == "kaiming_uniform":
            nn.init.kaiming_uniform_(weight, nonlinearity=gain, generator=generator)
        else:
            nn.init.kaiming_normal_(weight, nonlinearity=gain, generator=generator)
        with torch.no_grad():
            layer.weight.copy_(weight)
            layer.bias.zero_()


def _spec(config: HypernetworkConfig) -> Hypernetwork:
    """The structure as files tell it. Raises RecipeError where it makes no sense."""
    if config.structure[0] != 1 or config.structure[-1] != 1:
        raise RecipeError(
            f"method.structure is {_written(config.structure)}; it begins and ends with 1, as in "
            "1,2,1."
        )
    rates, count = config.dropout, len(config.structure)
    if rates and (len(rates) != count or rates[0] != 0 or rates[-1] != 0):
        raise RecipeError(
            f"method.dropout is {_written(rates)}; it takes {count} numbers, one for each of "
            "method.structure, the first and the last 0: "
            f"{_written((0.0, *[0.3] * (count - 2), 0.0))}."
        )
    return Hypernetwork(
        pairs={},
        structure=config.structure,
        activation=config.activation,
        activate_output=config.activate_output,
        layer_norm=config.layer_norm,
        dropout=rates if any(rates) else (),
        facts={"weight_initialization": _FILE_WORDS[config.initialization]},
    )


def _read_start(
    config: HypernetworkConfig, base: BaseModel
) -> tuple[Hypernetwork | None, tuple[str, ...]]:
    """The networks to go on from, and what of their file is not used. Raises RecipeError where the
    recipe asks for another structure.
    """
    if not config.start:
        return None, ()
    adapter = adapter_to_continue(config.start, base)
    found = adapter.hypernetwork
    if found is None:
        raise RecipeError(f"method.start: {config.start} is not a hypernetwork.")
    asked, usual = _spec(config), _spec(HypernetworkConfig())
    for name in _STRUCTURE:
        theirs, ours = getattr(found, name), getattr(asked, name)
        if ours not in (theirs, getattr(usual, name)):
            raise RecipeError(
                f"method.start: {config.start} has {name} {_written(theirs)}, the recipe "
                f"{_written(ours)}. Leave method.{name} out to go on with the file's."
            )
    return found, (*adapter.notes, *trained_for_notes(config.start, adapter, base))


def _unused(config: HypernetworkConfig) -> dict[str, str]:
    """Settings that have nothing to act on."""
    found = {"optimizer.text_learning_rate": "a hypernetwork trains no text encoder."}
    if len(config.structure) == 2 and not config.activate_output:
        found["method.activation"] = (
            "there is no layer between the first and the last, and activate_output is off."
        )
    if not any(config.dropout):
        found["method.dropout"] = "every rate is 0."
    if config.start:
        found["method.initialization"] = "the networks go on from method.start."
    return found


def _written(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(f"{number:g}" for number in value) or "empty"
    return str(value).lower() if isinstance(value, bool) else repr(value)

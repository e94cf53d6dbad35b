"""A trained layer for any kind whose change is a closed form: its parameters are the tensors of an
update, and what the layer computes is what that update says.

A kind brings the update that training starts from, which changes nothing; dropout, DoRA, types and
devices are the same for all. The layer replaces the `forward` of one Linear or Conv2d of the base
and touches nothing else; its parameters are float32 whatever the base computes in.

Shapes: I input, O output features or channels, K kernel, B samples.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from konomi.adapters.dropout import dropout, for_batch, keep_mask, keep_scale
from konomi.adapters.kinds.change_product import Pullback, changed_product, product
from konomi.adapters.kinds.kind import LayerSettings, LayerUpdate, tensors_of
from konomi.adapters.kinds.magnitude import gain_of, lengths_of, load_lengths, with_gain
from konomi.adapters.kinds.max_norm import shrink, shrinking
from konomi.adapters.kinds.module import copy_into, generator_of, linear_or_conv
from konomi.adapters.kinds.window import Window, window_of
from konomi.diffusion.random import Rng
from konomi.errors import ModelError

BIAS = "bias"
"""Field of an update that changes the bias, [O], and nothing else."""
Start = Callable[[str, nn.Linear | nn.Conv2d, LayerSettings, torch.Generator], Any]
"""(key, module of the base, settings, chance) -> an update of the module's shape that changes
nothing, in float32 on the CPU. Raises RecipeError for settings that the module does not allow."""

Structured = Callable[[Any, Tensor, Tensor, Tensor | None, Window | None], Tensor | None]
"""(update, x, weight, bias, window) -> what the layer returns, computed without dW; None where that
is not the faster way."""
Shortcut = Callable[[Any, Tensor, Sequence[Tensor]], tuple[Tensor, Pullback]]
"""(update, weight, parameters) -> W + dW and how gradients go back: what `delta` and autograd tell,
in fewer passes over the weight."""


@dataclass(frozen=True, slots=True)
class ChangeSpec:
    """How a layer of such a kind is trained."""

    algorithm: str
    settings: LayerSettings
    start: Start
    structured: Structured | None = None
    shortcut: Shortcut | None = None

    @property
    def has_dropout(self) -> bool:
        return self.settings.has_dropout

    def layer(self, key: str, module: nn.Module, *, seed: int) -> "ChangeLayer":
        """Raises RecipeError for settings that the module does not allow, ModelError where it takes
        no such layer.
        """
        return ChangeLayer(key, linear_or_conv(key, module), self, seed=seed)


class ChangeLayer(nn.Module):
    """The update of one layer. Its parameters are called as the fields of the update; for DoRA
    there is `magnitude` [O, 1(, 1, 1)] or [1, I(, 1, 1)] besides.
    """

    magnitude: nn.Parameter | None

    def __init__(
        self, key: str, base: nn.Linear | nn.Conv2d, spec: ChangeSpec, *, seed: int
    ) -> None:
        super().__init__()
        # In a tuple, so that the base does not become a part of this module.
        self._base = (base,)
        self.key = key
        self.spec = spec
        self.rng: Rng | None = None
        self.window: Window | None = None
        if isinstance(base, nn.Conv2d):
            self.window = window_of(key, base)
        settings, device = spec.settings, base.weight.device
        generator = generator_of(spec.algorithm, seed, key)
        self.update: LayerUpdate = spec.start(key, base, settings, generator)
        self.names = tuple(tensors_of(self.update))
        for name, tensor in tensors_of(self.update).items():
            self.register_parameter(name, nn.Parameter(tensor.to(device)))
        self._changed: Tensor | None = None
        self.magnitude = None
        if settings.dora:
            lengths = lengths_of(base.weight.detach().float(), settings.dora_axis)
            self.magnitude = nn.Parameter(lengths)

    @property
    def base(self) -> nn.Linear | nn.Conv2d:
        return self._base[0]

    def forward(self, x: Tensor) -> Tensor:
        """The base layer's answer with the update."""
        return with_gain(
            self._plain,
            x,
            self._gain(),
            self.base.bias,
            axis=self.spec.settings.dora_axis,
            is_conv=self.window is not None,
        )

    def _plain(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Without DoRA's lengths."""
        weight = self.base.weight
        whole, self._changed = self._changed, None
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            x, weight = x.to(dtype), weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        if self.rng is not None and self.base.training:
            return self._with_dropout(x, weight, bias)
        bias = self._changed_bias(bias)
        parameters = self._of_weight()
        if self.spec.structured is not None:
            now = self._with(self._named(parameters))
            y = self.spec.structured(now, x, weight, bias, self.window)
            if y is not None:
                return y
        return changed_product(x, weight, bias, self.window, self, parameters, changed=whole)

    def _of_weight(self) -> list[nn.Parameter]:
        """What makes the change of the weight, which is all but that of the bias."""
        return [self.get_parameter(name) for name in self.names if name != BIAS]

    def _named(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        return dict(zip((name for name in self.names if name != BIAS), tensors, strict=True))

    def change(self, weight: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        """dW, of the weight's shape, in float32 also where autocast would round its products."""
        update = self._with(self._named(parameters))
        with torch.autocast(weight.device.type, enabled=False):
            return update.delta(weight.to(torch.float32)).view(weight.shape)

    def changed(self, weight: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        """W + dW in float32."""
        weight = weight.to(torch.float32)
        if self.spec.shortcut is None:
            return weight + self.change(weight, parameters)
        with torch.autocast(weight.device.type, enabled=False):
            return self.spec.shortcut(self.update, weight, parameters)[0]

    def changed_and_pullback(
        self, weight: Tensor, parameters: Sequence[Tensor]
    ) -> tuple[Tensor, Pullback]:
        """The same, and how its gradient goes back to the parameters."""
        if self.spec.shortcut is not None:
            # A backward pass knows no autocast.
            return self.spec.shortcut(self.update, weight, parameters)
        with torch.enable_grad():
            leaves = [parameter.detach().requires_grad_() for parameter in parameters]
            change = self.change(weight, leaves)
        return weight + change.detach(), partial(torch.autograd.grad, change, leaves)

    def _changed_bias(self, bias: Tensor | None) -> Tensor | None:
        if bias is None or BIAS not in self.names:
            return bias
        return bias + self.get_parameter(BIAS).to(bias.dtype)

    def _with(self, tensors: Mapping[str, Tensor]) -> LayerUpdate:
        """The update with other tensors than those of the start."""
        return replace(self.update, **tensors)

    def _gain(self) -> Tensor | None:
        if self.magnitude is None:
            return None
        with torch.no_grad():
            changed = self.changed(self.base.weight, self._of_weight())
        # The product that follows needs it again.
        self._changed = changed
        return gain_of(self.magnitude, changed, self.spec.settings.dora_axis)

    def _with_dropout(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        assert self.rng is not None
        settings, rng = self.spec.settings, for_batch(self.rng, x.shape[0])
        inputs = x
        if settings.dropout > 0:
            inputs = dropout(x, settings.dropout, rng.fork("dropout"))
        change = self.change(weight, self._of_weight())
        added = product(inputs, change.to(x.dtype), None, self.window)
        ones = [1] * (x.dim() - 1)
        if settings.rank_dropout > 0:
            outputs = list(ones)
            outputs[-1 if self.window is None else 0] = weight.shape[0]
            keep = keep_mask(outputs, settings.rank_dropout, rng.fork("rank_dropout"))
            added = added * keep * keep_scale(settings.rank_dropout)
        if settings.module_dropout > 0:
            added = added * keep_mask(ones, settings.module_dropout, rng.fork("module_dropout"))
        return product(x, weight, self._changed_bias(bias), self.window) + added

    def export(self) -> LayerUpdate:
        """A float32 copy."""
        by = dict.fromkeys((name for name in self.names if name != BIAS), self._shrinking())
        return self._with(
            {name: tensor.detach() * by.get(name, 1.0) for name, tensor in self.named_parameters()}
        )

    def limit_norm(self) -> None:
        """Of kinds whose change is a product of all parameters; see `Training.uses`."""
        shrink(self._of_weight(), self._shrinking())

    @torch.no_grad()
    def _shrinking(self) -> float:
        parameters = [parameter.detach() for parameter in self._of_weight()]

        def norm() -> float:
            found = self._with(self._named(parameters)).norm()
            return found or float(self.change(self.base.weight, parameters).norm())

        return shrinking(norm, self.spec.settings.max_norm, len(parameters))

    @torch.no_grad()
    def load(self, update: LayerUpdate) -> None:
        """Raises ModelError where the update is of another kind, rank or shape."""
        mine = self.update
        if type(update) is not type(mine):
            raise ModelError(
                f"{self.key} is no {mine.about.name} in the file to go on from, but a "
                f"{update.about.name}."
            )
        load_lengths(self.key, self.magnitude, update.magnitude, self.spec.settings.dora_axis)
        found = {n: t for n, t in tensors_of(update).items() if n != "magnitude"}
        if found.keys() != {*self.names}:
            raise ModelError(
                f"{self.key} is made of {', '.join(found)} in the file to go on from; this recipe "
                f"trains {', '.join(self.names)}."
            )
        for name in self.names:
            copy_into(f"{self.key}.{name}", self.get_parameter(name), found[name])
        # What is no tensor (alpha, an axis) stays as the file has it.
        others = tensors_of(mine) | ({} if update.magnitude is None else {"magnitude": None})
        self.update = replace(update, **others)

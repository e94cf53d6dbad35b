"""The trained layers of one run, of whatever kind of update, beside the frozen modules of a
base.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import cast

from torch import nn

from konomi.adapters.adapter import Adapter
from konomi.adapters.kinds import LayerSpec, LayerUpdate, TrainableLayer
from konomi.adapters.kinds.kind import LimitsNorm
from konomi.adapters.live import paused
from konomi.diffusion.random import Rng
from konomi.errors import ModelError


class TrainedLayers:
    """Layers by canonical key, as a `LiveAdapter`: while attached, the base computes with them."""

    def __init__(self, layers: Mapping[str, TrainableLayer]) -> None:
        self.layers = dict(layers)
        self.attached = False
        self.attach()

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """`KEY.NAME` (of low rank `KEY.down`, `KEY.up`, `KEY.magnitude`) -> parameter, in the
        order of the layers.
        """
        named = ((key, layer.named_parameters()) for key, layer in self.layers.items())
        return {
            f"{key}.{name}": parameter
            for key, parameters in named
            for name, parameter in parameters
        }

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The layers themselves."""
        return tuple(cast(nn.Module, layer) for layer in self.layers.values())

    def begin_step(self, rng: Rng) -> None:
        """Dropout acts while the base's module is in training mode. A pass over fewer samples than
        keys uses the first keys; over more, each key serves several samples. Updates beyond their
        largest norm are scaled back first.
        """
        for key, layer in self.layers.items():
            if isinstance(layer, LimitsNorm):
                layer.limit_norm()
            if layer.spec.has_dropout:
                layer.rng = rng.fork(key)

    def pause(self) -> AbstractContextManager[None]:
        return paused(self)

    def attach(self) -> None:
        if self.attached:
            return
        for key, layer in self.layers.items():
            assert "forward" not in vars(layer.base), f"{key} already has a replaced forward"
            vars(layer.base)["forward"] = layer.forward
        self.attached = True

    def detach(self) -> None:
        if not self.attached:
            return
        for layer in self.layers.values():
            del vars(layer.base)["forward"]
        self.attached = False

    def export(self) -> Adapter:
        return Adapter(layers={key: layer.export() for key, layer in self.layers.items()})

    def load(self, updates: Mapping[str, LayerUpdate]) -> None:
        """Go on from earlier updates. Layers without one keep their start, which changes nothing.

        Raises ModelError if an update has no layer here, or another kind, rank or shape.
        """
        for key, update in updates.items():
            if key not in self.layers:
                raise ModelError(f"{key} is in the file to go on from, but is not trained.")
            self.layers[key].load(update)


def inject(
    modules: Mapping[str, nn.Module], spec_of: Callable[[str], LayerSpec], *, seed: int
) -> TrainedLayers:
    """Put a layer on each module (canonical key -> Linear or Conv2d) and freeze the modules' own
    parameters.

    The start of each layer depends on (seed, key) only. Raises RecipeError where a setting is not
    possible for a layer (a rank too large), ModelError where a module is of another kind.
    """
    layers = {key: spec_of(key).layer(key, module, seed=seed) for key, module in modules.items()}
    for module in modules.values():
        module.requires_grad_(False)
    return TrainedLayers(layers)

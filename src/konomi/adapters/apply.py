"""Put adapters on a base, and take them off again: updates, times a strength, are folded into its
weights, learned tokens are added to its vocabulary, hypernetworks are put before its attention
layers.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from types import TracebackType
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from konomi.adapters.adapter import Adapter
from konomi.adapters.branches import negative_branch
from konomi.adapters.delta import bias_delta, delta, delta_at
from konomi.adapters.hypernetwork import attach_hypernetwork
from konomi.adapters.kinds import LayerUpdate
from konomi.errors import ModelError

__all__ = ["Attachment", "Strengths", "attach", "bias_delta", "check_fits", "delta", "fold"]


class HasModules(Protocol):
    """The part of a base that is needed here."""

    def module(self, key: str) -> nn.Module:
        """The module of a canonical key. Raises ModelError if there is none."""
        ...

    def token_embedding(self, part: str) -> Tensor:
        """The token embeddings of a text encoder [V, D]. Raises ModelError where learned tokens
        cannot be put in their place.
        """
        ...

    def select_layers(self, selector: str) -> Mapping[str, nn.Module]:
        """Canonical key -> module, for a layer selector such as `attention.kv`."""
        ...

    @property
    def added_tokens(self) -> dict[str, Mapping[str, Tensor]]:
        """Learned token -> {part of the text encoder: vectors [n, D]}."""
        ...

    @property
    def negative_weights(self) -> dict[nn.Parameter, Tensor]:
        """Weights that are something else in the negative branch, and what."""
        ...


@dataclass(frozen=True, slots=True)
class Strengths:
    """How much of an adapter: 1 as trained, 0 nothing; negative and larger values are allowed."""

    denoiser: float = 1.0
    text: float = 1.0
    layers: Mapping[str, float] = field(default_factory=dict)
    """Canonical key -> a factor besides; 1 for those that are not there."""

    def of(self, key: str) -> float:
        """For a canonical key."""
        part = self.denoiser if key.startswith("denoiser.") else self.text
        return part * self.layers.get(key, 1.0)


@dataclass(frozen=True, slots=True)
class _Use:
    """One update of one layer, as it will be applied."""

    update: LayerUpdate
    strength: float
    adapter: Adapter


class Attachment:
    """Adapters on a base, until `detach`. Also a context manager.

    It keeps a copy of every changed weight, so that the base comes back bit for bit: as much
    memory again as those layers take, on their own device or on the CPU.
    """

    def __init__(self, keys: tuple[str, ...]) -> None:
        self._originals: list[tuple[nn.Parameter, Tensor]] = []
        self._undo = ExitStack()
        self.keys = keys
        """Canonical keys of the changed layers."""

    def keep(self, parameter: nn.Parameter, *, on_cpu: bool) -> None:
        """Remember a parameter as it is now."""
        original = parameter.detach()
        self._originals.append(
            (parameter, original.to("cpu", copy=True) if on_cpu else original.clone())
        )

    def on_detach(self, undo: Callable[[], object]) -> None:
        """Have something undone when the adapters come off; the last first."""
        self._undo.callback(undo)

    @torch.no_grad()
    def detach(self) -> None:
        """Restore the base. Attachments made one after another are taken off in the opposite
        order.
        """
        try:
            self._undo.close()
        finally:
            # Whatever an undoing raises: weights come back.
            for parameter, original in reversed(self._originals):
                parameter.copy_(original)
            self._originals = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.detach()


def attach(
    base: HasModules, adapters: Sequence[tuple[Adapter, Strengths]], *, keep_on_cpu: bool = False
) -> Attachment:
    """W + sum of strength * delta, computed in float32 and rounded once to the weight's dtype, in
    place.

    The order of adapters does not matter beyond float32 rounding; DoRA and rescaling refer to the
    untouched weight. A part at strength 0 is left alone, bit for bit, and not looked at; a token at
    text strength 0 is not there. Vectors of learned tokens are multiplied by the text strength.
    Hypernetworks chain in the order given. `keep_on_cpu` holds the originals in main memory. Where
    an adapter has a `negative`, its own layers are for the positive branch alone, and the changes
    of both branches start from the same weights.

    Raises ModelError, with the base unchanged, where a layer is missing or of another shape, a
    token's vectors are of another width, or two adapters bring the same token.
    """
    uses = _collect(adapters)
    modules = {key: _checked(base, key, layer) for key, layer in uses.items()}
    attachment = Attachment(tuple(uses))
    with ExitStack() as undo:
        undo.callback(attachment.detach)
        _attach_negative(base, adapters, attachment)
        for key, layer in uses.items():
            for parameter, change in _changes(modules[key], layer):
                attachment.keep(parameter, on_cpu=keep_on_cpu)
                _add(parameter, change)
        for adapter, strengths in adapters:
            _attach_tokens(base, adapter, strengths.text, attachment)
            if adapter.hypernetwork is not None and strengths.denoiser != 0.0:
                attachment.on_detach(
                    attach_hypernetwork(
                        base,
                        adapter.hypernetwork,
                        strengths.denoiser,
                        adapter.name,
                        family=adapter.family,
                    )
                )
        undo.pop_all()
    return attachment


def check_fits(base: HasModules, adapter: Adapter, strengths: Strengths) -> None:
    """Raises ModelError, as `attach` would, where a layer is missing or of another shape. Changes
    nothing; the base may be an outline without numbers.
    """
    for both in (adapter, adapter.negative):
        for key, uses in _collect([(both, strengths)] if both is not None else []).items():
            _checked(base, key, uses)
    for token, vectors in adapter.embeddings.items() if strengths.text != 0.0 else ():
        for part, vectors_nD in vectors.items():
            _check_width(base, adapter, token, part, vectors_nD)


def fold(base: HasModules, adapters: Sequence[tuple[Adapter, Strengths]]) -> tuple[str, ...]:
    """`attach` for good: no copies of weights are kept. Returns the keys of the changed layers."""
    uses = _collect(adapters)
    modules = {key: _checked(base, key, layer) for key, layer in uses.items()}
    _attach_negative(base, adapters, Attachment(()))
    for key, layer in uses.items():
        for parameter, change in _changes(modules[key], layer):
            _add(parameter, change)
    attach(
        base,
        [
            (replace(adapter, layers={}, negative=None), strengths)
            for adapter, strengths in adapters
        ],
    )
    return tuple(uses)


def _attach_negative(
    base: HasModules, adapters: Sequence[tuple[Adapter, Strengths]], attachment: Attachment
) -> None:
    """Keep what weights are in the negative branch, where that is not what they are in the
    positive one.

    Comes before the positive branch's changes: both start from the same weights.
    """
    if not base.negative_weights and all(adapter.negative is None for adapter, _ in adapters):
        return
    uses = _collect([(adapter.negative or adapter, strengths) for adapter, strengths in adapters])
    modules = {key: _checked(base, key, layer) for key, layer in uses.items()}
    touched = modules | {key: base.module(key) for key in _collect(adapters)}
    for parameter in [p for module in touched.values() for p in module.parameters(recurse=False)]:
        before = base.negative_weights.get(parameter)
        base.negative_weights[parameter] = (
            parameter.detach() if before is None else before
        ).clone()
        attachment.on_detach(partial(_put_back, base.negative_weights, parameter, before))
    with negative_branch(base):
        for key, layer in uses.items():
            for parameter, change in _changes(modules[key], layer):
                _add(parameter, change)


def _put_back(
    weights: dict[nn.Parameter, Tensor], parameter: nn.Parameter, before: Tensor | None
) -> None:
    if before is None:
        del weights[parameter]
    else:
        weights[parameter] = before


def _attach_tokens(
    base: HasModules, adapter: Adapter, strength: float, attachment: Attachment
) -> None:
    """Add an adapter's learned tokens to the base's."""
    if strength == 0.0:
        return
    for token, vectors in adapter.embeddings.items():
        if token in base.added_tokens:
            raise ModelError(
                f"{_name(adapter)} has the word {token!r}, which another adapter already has."
            )
        for part, vectors_nD in vectors.items():
            _check_width(base, adapter, token, part, vectors_nD)
        base.added_tokens[token] = {
            part: vectors_nD * strength for part, vectors_nD in vectors.items()
        }
        attachment.on_detach(partial(base.added_tokens.pop, token))


def _check_width(
    base: HasModules, adapter: Adapter, token: str, part: str, vectors_nD: Tensor
) -> None:
    try:
        width = base.token_embedding(part).shape[1]
    except ModelError as error:
        raise ModelError(f"{error} {_hint(base, adapter)}".strip()) from None
    if vectors_nD.shape[-1] != width:
        raise ModelError(
            f"The learned word {token!r} is {vectors_nD.shape[-1]} wide; {part} of this base has "
            f"width {width}. {_hint(base, adapter)}"
        )


def _collect(adapters: Sequence[tuple[Adapter, Strengths]]) -> dict[str, list[_Use]]:
    """By layer, so that each weight is rounded once however many adapters touch it."""
    uses: dict[str, list[_Use]] = {}
    for adapter, strengths in adapters:
        for key, update in adapter.layers.items():
            strength = strengths.of(key)
            if strength != 0.0:
                uses.setdefault(key, []).append(_Use(update, strength, adapter))
    return uses


def _checked(base: HasModules, key: str, uses: list[_Use]) -> nn.Module:
    """The module, after a dry run without data, so that nothing has changed yet when something
    does not fit.
    """
    try:
        module = base.module(key)
    except ModelError as error:
        raise ModelError(f"{error} {_hint(base, uses[0].adapter)}".strip()) from None
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        raise ModelError(
            (
                f"{key} has no weight that an adapter could change. {_hint(base, uses[0].adapter)}"
            ).strip()
        )
    for use in uses:
        try:
            delta(use.update, weight.to("meta"))
            _bias_change(module, use, "meta")
        except (ModelError, RuntimeError, IndexError) as error:
            # torch's own words for sizes that do not match are several lines long; the first one
            # tells.
            reason = str(error).splitlines()[0].rstrip(".")
            place = f"{_name(use.adapter)} does not fit {key} {list(weight.shape)}"
            raise ModelError(f"{place}: {reason}. {_hint(base, use.adapter)}") from error
    return module


def _name(adapter: Adapter) -> str:
    return f"The adapter {adapter.name}" if adapter.name else "The adapter"


def _hint(base: HasModules, adapter: Adapter) -> str:
    family = getattr(base, "family", "")
    if family and adapter.family and family != adapter.family:
        return (
            f"{_name(adapter)} is for {adapter.family}, this base is {family}: use a base of "
            "its family."
        )
    return f"{_name(adapter)} was made for another base."


def _bias_change(module: nn.Module, use: _Use, device: torch.device | str) -> Tensor | None:
    bias = getattr(module, "bias", None)
    if isinstance(bias, Tensor):
        return bias_delta(use.update, bias.to(device))
    if use.update.bias is not None:
        raise ModelError("it changes a bias, and this layer has none")
    return None


def _changes(module: nn.Module, uses: list[_Use]) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """Each parameter that changes, and its change: the sum of strength * delta, still in float32
    or float64.
    """
    weight, bias = module.weight, getattr(module, "bias", None)
    assert isinstance(weight, nn.Parameter)
    yield weight, _sum([delta_at(use.update, weight, use.strength) for use in uses])
    found = [(_bias_change(module, use, weight.device), use.strength) for use in uses]
    changes = [change.mul(strength) for change, strength in found if change is not None]
    if changes:
        assert isinstance(bias, nn.Parameter)
        yield bias, _sum(changes)


def _sum(changes: list[Tensor]) -> Tensor:
    total, *others = changes
    for change in others:
        total = total.add_(change)
    return total


@torch.no_grad()
def _add(parameter: nn.Parameter, change: Tensor) -> None:
    # Half precision is converted on the way, without a copy of the weight.
    parameter.copy_(change.add_(parameter.detach()))

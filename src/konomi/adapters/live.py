"""What is being trained beside a frozen base, whatever it is: layers, tokens, networks, changes of
weights.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Protocol

from torch import nn

from konomi.adapters.adapter import Adapter
from konomi.diffusion.random import Rng


class LiveAdapter(Protocol):
    """An adapter in training. It is attached when it is made; while attached, the base computes
    with it.

    The base's own parameters and buffers never change. Nothing may be attached, detached or begun
    between a forward pass and its backward pass: a checkpointed backward pass computes again.
    """

    @property
    def attached(self) -> bool:
        """Whether the base computes with it now."""
        ...

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """Stable name -> what is trained. A method's parameter groups take their names from
        these.
        """
        ...

    def begin_step(self, rng: Rng) -> None:
        """Give dropout its randomness for all micro-batches up to the next call. `rng` has a key
        per sample.
        """
        ...

    def pause(self) -> AbstractContextManager[None]:
        """Inside, the base computes as if it had never been touched; afterwards all is as before,
        whatever happened.
        """
        ...

    def attach(self) -> None:
        """Back on the base after `detach`. May be called twice."""
        ...

    def detach(self) -> None:
        """Give the base back, for good or until `attach`. May be called twice."""
        ...

    def export(self) -> Adapter:
        """What has been learned so far: copies, at least float32. Family and name are left to who
        knows them.
        """
        ...


class LiveAdapters:
    """Several live adapters as one. They are attached in their order and taken off in the opposite
    one.
    """

    def __init__(self, *members: LiveAdapter) -> None:
        self.members = members

    @property
    def attached(self) -> bool:
        return any(member.attached for member in self.members)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Those of all members; no two have a name in common."""
        found: dict[str, nn.Parameter] = {}
        for member in self.members:
            assert not found.keys() & member.parameters.keys(), (
                "two live adapters train parameters of the same name"
            )
            found |= member.parameters
        return found

    def begin_step(self, rng: Rng) -> None:
        for member in self.members:
            member.begin_step(rng)

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Of members that are detached already, nothing changes."""
        with ExitStack() as paused_members:
            for member in reversed(self.members):
                paused_members.enter_context(member.pause())
            yield

    def attach(self) -> None:
        for member in self.members:
            member.attach()

    def detach(self) -> None:
        for member in reversed(self.members):
            member.detach()

    def export(self) -> Adapter:
        """One adapter with the layers, tokens and networks of all; at most one member brings each
        of them.
        """
        found = [member.export() for member in self.members]
        layers = {key: update for adapter in found for key, update in adapter.layers.items()}
        embeddings = {
            token: vectors for adapter in found for token, vectors in adapter.embeddings.items()
        }
        hypernetwork = next(
            (adapter.hypernetwork for adapter in found if adapter.hypernetwork is not None), None
        )
        negative = next(
            (adapter.negative for adapter in found if adapter.negative is not None), None
        )
        edit = next((adapter.edit for adapter in found if adapter.edit is not None), None)
        return Adapter(layers, embeddings, hypernetwork=hypernetwork, negative=negative, edit=edit)


@contextmanager
def paused(live: LiveAdapter) -> Iterator[None]:
    """`LiveAdapter.pause` for whatever is attached and detached as a whole."""
    if not live.attached:
        yield
        return
    live.detach()
    try:
        yield
    finally:
        live.attach()


def set_requires_grad(live: LiveAdapter, active: bool) -> None:
    """Whether gradients reach the parameters."""
    for parameter in live.parameters.values():
        parameter.requires_grad_(active)

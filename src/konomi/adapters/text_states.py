"""Text states in training (Imagic): the text encoder's output is the parameter, nothing of the base
changes.

Shapes: T text positions, D text width, P pooled width.
"""

from contextlib import AbstractContextManager

from torch import nn

from konomi.adapters.adapter import Adapter, Edit
from konomi.adapters.live import paused
from konomi.diffusion.conditioning import Conditioning
from konomi.diffusion.random import Rng


class TrainedStates:
    """States being learned from a prompt's own, as a `LiveAdapter`. Whoever asks for the denoiser's
    conditioning takes them from here."""

    def __init__(self, prompt: str, target: Conditioning) -> None:
        """`target`: of the prompt, B = 1."""
        self.prompt, self.target = prompt, target
        self.parameters: dict[str, nn.Parameter] = {
            "states": nn.Parameter(target.states.detach().float().clone())
        }
        if target.pooled is not None:
            self.parameters["pooled"] = nn.Parameter(target.pooled.detach().float().clone())
        self.attached = False
        self.attach()

    def conditioning(self, count: int) -> Conditioning:
        """The states, `count` times: [count, T, D] and pooled [count, P]."""
        pooled = self.parameters.get("pooled")
        return Conditioning(
            self.parameters["states"].expand(count, -1, -1),
            None if pooled is None else pooled.expand(count, -1),
            mask=None if self.target.mask is None else self.target.mask.expand(count, -1),
        )

    def begin_step(self, rng: Rng) -> None:
        """They draw nothing."""

    def pause(self) -> AbstractContextManager[None]:
        return paused(self)

    def attach(self) -> None:
        self.attached = True

    def detach(self) -> None:
        self.attached = False

    def export(self) -> Adapter:
        """Both states, float32."""
        pooled = self.parameters.get("pooled")
        found = Conditioning(
            self.parameters["states"].detach().clone(),
            None if pooled is None else pooled.detach().clone(),
        )
        target = self.target.to(found.states.device, found.states.dtype)
        return Adapter(edit=Edit(self.prompt, target, found))

"""Aesthetic Gradients at work (Gallego 2022, "Personalizing Text-to-Image Generation via Aesthetic
Gradients", section 3).

For each prompt the weights of CLIP's text encoder, as they are loaded, take T steps of Adam up the
cosine between the prompt's feature and the embedding e of pictures somebody likes; the projection
into CLIP's space is frozen. Then the prompt is encoded, and the weights are what they were, bit for
bit.

Shapes: N chunks of a prompt, P width of CLIP's space, D width of text states.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from konomi.config.aesthetic import AestheticConfig
from konomi.config.sections import TextConfig
from konomi.diffusion.conditioning import Conditioning
from konomi.models.base import BaseModel
from konomi.models.clip_space import TextTower, text_tower

_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-8
"""Adam's own (Kingma & Ba 2015), which the paper leaves as they are."""


@dataclass(frozen=True, slots=True)
class AestheticGradients:
    """What is done to every prompt."""

    config: AestheticConfig
    goals: tuple[tuple[TextTower, Tensor], ...]
    """Text encoders with the unit vector [P] that each is tuned towards, on its device."""
    blend: float = 1.0
    """How much of the tuned text states is taken; the rest is the untuned ones."""

    @classmethod
    def of(
        cls,
        base: BaseModel,
        config: AestheticConfig,
        directions: Mapping[int, Tensor],
        blend: float,
    ) -> "AestheticGradients":
        """Raises ModelError where an embedding is of no CLIP that the base has a text encoder
        of."""
        towers = [text_tower(base, width, config.clip) for width in directions]
        goals = [
            (tower, direction_P.to(base.device))
            for tower, direction_P in zip(towers, directions.values(), strict=True)
        ]
        return cls(config, tuple(goals), blend)

    def turned(self, base: BaseModel, text: TextConfig) -> "AestheticGradients":
        """With every direction turned towards the words of `config.text`."""
        config = self.config
        if not config.text:
            return self
        text = base.uncut([config.text], text)
        goals = []
        for tower, direction_P in self.goals:
            with torch.no_grad():
                rows_NP, shares_N = tower.features(config.text, text, base.added_tokens)
            words_P = nn.functional.normalize(shares_N @ rows_NP, dim=0)
            sign = -1.0 if config.text_share < 0 else 1.0
            goals.append((tower, slerp(direction_P, sign * words_P, abs(config.text_share))))
        return replace(self, goals=tuple(goals))

    def encode(
        self, base: BaseModel, prompt: str, text: TextConfig, *, away: bool = False
    ) -> Conditioning:
        """The states of a prompt, read as ever, after tuning. `away`: away from the pictures."""
        plain = base.encode_captions([prompt], text) if self.blend < 1 else None
        with ExitStack() as stack:
            for tower, direction_P in self.goals:
                stack.enter_context(
                    self._tuned(tower, -direction_P if away else direction_P, prompt, base, text)
                )
            tuned = base.encode_captions([prompt], text)
        return tuned if plain is None else self._blended(plain, tuned)

    def _blended(self, plain: Conditioning, tuned: Conditioning) -> Conditioning:
        def mixed(before: Tensor, after: Tensor) -> Tensor:
            before, after = before.float(), after.float()
            if self.config.slerp:
                return slerp(before, after, self.blend)
            return torch.lerp(before, after, self.blend)

        pooled = None
        if plain.pooled is not None and tuned.pooled is not None:
            pooled = mixed(plain.pooled, tuned.pooled)
        return replace(tuned, states=mixed(plain.states, tuned.states), pooled=pooled)

    @contextmanager
    def _tuned(
        self,
        tower: TextTower,
        direction_P: Tensor,
        prompt: str,
        base: BaseModel,
        text: TextConfig,
    ) -> Iterator[None]:
        module: nn.Module = tower.encoder.module
        with _float32_copy(module):
            trained = list(module.text_model.parameters())  # type: ignore[union-attr]

            def loss() -> Tensor:
                rows_NP, shares_N = tower.features(prompt, text, base.added_tokens)
                return -(shares_N @ (rows_NP @ direction_P))

            adam(loss, trained, steps=self.config.steps, rate=self.config.rate)
            yield


@contextmanager
def _float32_copy(module: nn.Module) -> Iterator[None]:
    """Inside, the module's weights are copies in float32; afterwards the very same as before."""
    kept = {parameter: parameter.data for parameter in module.parameters()}
    try:
        for parameter, data in kept.items():
            parameter.data = data.float().clone()
        yield
    finally:
        for parameter, data in kept.items():
            parameter.data = data
            parameter.grad = None


def adam(
    loss: Callable[[], Tensor], parameters: Sequence[nn.Parameter], *, steps: int, rate: float
) -> None:
    """So many steps of Adam (Kingma & Ba 2015, algorithm 1) down `loss`. torch's class
    imports its compiler, a second of its own."""
    wanted = [parameter.requires_grad for parameter in parameters]
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        for step in range(1, steps + 1):
            with torch.enable_grad():
                gradients = torch.autograd.grad(loss(), list(parameters), allow_unused=True)
            with torch.no_grad():
                for parameter, gradient, (first, second) in zip(
                    parameters, gradients, moments, strict=True
                ):
                    if gradient is None:
                        continue
                    first.lerp_(gradient, 1 - _BETA_1)
                    second.mul_(_BETA_2).addcmul_(gradient, gradient, value=1 - _BETA_2)
                    root = (second / (1 - _BETA_2**step)).sqrt_().add_(_EPSILON)
                    parameter.addcdiv_(first, root, value=-rate / (1 - _BETA_1**step))
    finally:
        for parameter, before in zip(parameters, wanted, strict=True):
            parameter.requires_grad_(before)


def slerp(start: Tensor, end: Tensor, share: float) -> Tensor:
    """Between vectors in the last dimension along the arc (Shoemake 1985), lengths in between too;
    where they point the same way, along the chord."""
    directions = [nn.functional.normalize(v, dim=-1) for v in (start, end)]
    lengths = [v.norm(dim=-1, keepdim=True) for v in (start, end)]
    cosine = (directions[0] * directions[1]).sum(-1, keepdim=True).clamp(-1, 1)
    angle = torch.acos(cosine)
    sine = torch.sin(angle)
    arc = (
        torch.sin((1 - share) * angle) * directions[0] + torch.sin(share * angle) * directions[1]
    ) / sine.clamp_min(1e-6)
    chord = torch.lerp(directions[0], directions[1], share)
    direction = torch.where(sine > 1e-4, arc, chord)
    return direction * torch.lerp(lengths[0], lengths[1], share)

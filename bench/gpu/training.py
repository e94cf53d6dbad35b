"""Training of a base whose random weights are drawn where it runs, on latents and text as a warm
cache gives them.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from bench.step import SMALL
from torch import Tensor

from konomi.config.recipe import Recipe
from konomi.config.sections import OptimizerConfig, RunConfig
from konomi.data.batch import Batch, Examples, Latents
from konomi.diffusion.conditioning import Conditioning
from konomi.methods import METHODS
from konomi.models.base import Part
from konomi.models.random_base import random_base
from konomi.training.events import Step
from konomi.training.processes import Processes
from konomi.training.stop import Stop
from konomi.training.trainer import Trainer

FAMILY = {"sd15": "sd1", "sdxl": "sdxl"}


@dataclass(frozen=True, slots=True)
class Case:
    """What is trained."""

    model: str
    """`sd15` or `sdxl`."""
    method: str
    size: int
    """Side of the pictures in pixels."""
    batch: int
    device: str
    precision: torch.dtype
    small: bool = False
    """A model of the same layers in small."""

    @property
    def name(self) -> str:
        return f"{self.model} {self.size} px {self.method} batch {self.batch}"


class MadeThere:
    """A source of random weights that draws them on the device: gigabytes are not drawn on a CPU
    and copied.
    """

    def __init__(self, source: Any, device: str) -> None:
        self._source, self._device = source, device

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def tensors(self, part: Part) -> dict[str, Tensor]:
        with torch.device(self._device):
            found: dict[str, Tensor] = self._source.tensors(part)
        return found


class CachedBatches:
    """Random latents and text, a new batch each step."""

    steps_per_epoch = 16

    def __init__(self, case: Case, base: Any, *, text: bool) -> None:
        self.case, self.base, self.text = case, base, text

    def iterate(self, start: int, stop: int, **_: int) -> Iterator[tuple[Batch, ...]]:
        case, side = self.case, self.case.size // self.base.latent_factor
        for step in range(start, stop):
            generator = torch.Generator().manual_seed(step)
            latents = torch.randn(
                case.batch, self.base.latent_channels, side, side, generator=generator
            )
            ids = torch.arange(case.batch) + step * case.batch
            captions = tuple(f"a photo of sks dog, number {number}" for number in ids.tolist())
            text = self._text(generator) if self.text else None
            sizes = torch.full((case.batch, 6), case.size)
            yield (
                Batch(
                    Examples(
                        captions,
                        ids,
                        captions,
                        sizes,
                        latents=Latents(latents, 0 * latents),
                        text=text,
                    )
                ),
            )

    def _text(self, generator: torch.Generator) -> Conditioning:
        configs = self.base.source.configs
        states = torch.randn(
            self.case.batch, 77, configs["unet"]["cross_attention_dim"], generator=generator
        )
        pooled = None
        if self.case.model == "sdxl":
            pooled = torch.randn(
                self.case.batch, configs["text_encoder_2"]["projection_dim"], generator=generator
            )
            pooled = pooled.to(self.case.precision)
        return Conditioning(states.to(self.case.precision), pooled)


class Training:
    """Step after step on request."""

    def __init__(self, case: Case) -> None:
        started = time.perf_counter()
        size: Any = "tiny" if case.small and case.model == "sdxl" else "full"
        configs = {"unet": SMALL} if case.small and size == "full" else None
        self.case, self.base = case, random_base(FAMILY[case.model], size=size, configs=configs)
        source: Any = MadeThere(self.base.source, case.device)
        self.base.source = source
        method_type = next(method for method in METHODS if method.config_type().kind == case.method)
        recipe = Recipe(
            base="random",
            method=method_type.config_type(),
            optimizer=OptimizerConfig(learning_rate=1e-5),
            run=RunConfig(batch_size=case.batch, seed=7),
        )
        needs = method_type.needs(recipe.method, self.base, recipe)
        method: Any = method_type(recipe.method, self.base, recipe)
        device = torch.device(case.device)
        self.base.place(device, case.precision, float32_parts=needs.float32_parts)
        phases = method.plan()
        trainer = Trainer(
            phases,
            recipe,
            processes=Processes(0, 1, device),
            total_steps=10**6,
            precision=case.precision,
        )
        batches = CachedBatches(case, self.base, text=not needs.trains_text)
        self._events = trainer.run(batches, stop=Stop())
        self.build_seconds = time.perf_counter() - started

    def step(self) -> float:
        """One step; its loss, for which the host waits."""
        while not isinstance(event := next(self._events), Step):
            pass
        return event.loss

    def synchronize(self) -> None:
        """Wait for the card."""
        if self.case.device.startswith("cuda"):
            torch.cuda.synchronize()

    def peak_gib(self) -> float:
        """Of the card, or of the process on a CPU."""
        if self.case.device.startswith("cuda"):
            return torch.cuda.max_memory_allocated() / 2**30
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

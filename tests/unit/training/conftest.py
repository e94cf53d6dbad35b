"""A toy to train: a linear map fitted to data that depend on the step alone, with noise from the
Rng.
"""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import nn

from konomi.config.recipe import Recipe
from konomi.config.sections import MemoryConfig, OptimizerConfig, RunConfig
from konomi.data.batch import Batch, Examples
from konomi.methods.lora import LoraConfig
from konomi.methods.method import ParameterGroup, Phase
from konomi.training.processes import Processes
from konomi.training.stop import Stop
from konomi.training.trainer import Trainer

IMAGES = 6


class ToyStream:
    """Six samples in a fixed cycle; batches split among processes and passes like the real
    stream's.
    """

    steps_per_epoch = 3

    def __init__(self, batch_size: int = 2) -> None:
        self.batch_size = batch_size
        self.served: list[tuple[int, ...]] = []

    def iterate(
        self, start: int, stop: int, *, rank: int = 0, world: int = 1, accumulation: int = 1
    ) -> Iterator:
        for step in range(start, stop):
            ids = [(step * self.batch_size + i) % IMAGES for i in range(self.batch_size)]
            self.served.append(tuple(ids))
            share = -(-len(ids) // (world * accumulation))
            pieces = [ids[i : i + share] for i in range(0, len(ids), share)]
            mine = [piece for index, piece in enumerate(pieces) if index % world == rank]
            yield tuple(
                Batch(subject=examples(piece), weight=len(piece) / len(ids)) for piece in mine
            )


def examples(ids: list[int]) -> Examples:
    return Examples(
        names=tuple(f"{i}.png" for i in ids),
        sample_ids=torch.tensor(ids),
        captions=("",) * len(ids),
        sizes=torch.zeros(len(ids), 6, dtype=torch.int64),
    )


class Toy:
    """y = W x + b towards a fixed target, per sample, with noise drawn per (seed, step, sample)."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.layer = nn.Linear(5, 3)
        self.inputs = torch.randn(IMAGES, 5)
        self.targets = torch.randn(IMAGES, 3)

    def loss(self, batch: Batch, rng) -> torch.Tensor:
        ids = batch.subject.sample_ids
        noise = rng.for_samples(ids).fork("noise").normal((3,))
        return ((self.layer(self.inputs[ids]) - self.targets[ids] - 0.1 * noise) ** 2).mean()

    def phase(self, rate: float = 0.05, steps: int | None = None) -> Phase:
        parameters = {f"layer.{name}": p for name, p in self.layer.named_parameters()}
        return Phase("toy", (ParameterGroup("all", parameters, rate),), self.loss, num_steps=steps)


def make_trainer(
    toy: Toy, total: int = 12, batch_size: int = 2, accumulation: int = 1, **optimizer
) -> Trainer:
    recipe = Recipe(
        base="toy",
        method=LoraConfig(),
        run=RunConfig(batch_size=batch_size, seed=3),
        memory=MemoryConfig(accumulation=accumulation),
        optimizer=replace(OptimizerConfig(), **optimizer),
    )
    return Trainer(
        (toy.phase(),), recipe, processes=Processes(0, 1, torch.device("cpu")), total_steps=total
    )


@pytest.fixture
def toy_kit():
    """The toy's makers, for tests that need several."""

    class Kit:
        toy = Toy
        stream = ToyStream
        trainer = staticmethod(make_trainer)

        @staticmethod
        def losses(trainer: Trainer, stream: ToyStream, stop: Stop | None = None) -> list[float]:
            return [event.loss for event in trainer.run(stream, stop=stop or Stop())]

    return Kit

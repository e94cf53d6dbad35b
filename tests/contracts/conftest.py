"""Small random bases and examples that every method is held against.

`KONOMI_TEST_DEVICE=cuda` puts the bases of `test_contracts_methods.py` on a card (bench/gpu does).
"""

import copy
import os
from dataclasses import replace
from functools import lru_cache

import pytest
import torch

from konomi.config.recipe import Recipe
from konomi.config.sections import OptimizerConfig, RunConfig
from konomi.data.batch import Batch, Examples, Latents
from konomi.methods import METHODS, method_of
from konomi.methods.imagic import ImagicConfig

FAMILIES = ["sd1", "sd2", "sdxl"]
DEVICE = torch.device(os.environ.get("KONOMI_TEST_DEVICE", "cpu"))
SMALL = {
    "unet": {
        "block_out_channels": [16, 32],
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    }
}
"""Overrides of a random sd1: both kinds of blocks once."""
METHOD_KINDS = [method.config_type().kind for method in METHODS]


TOLD_BY_OTHERS = tuple(
    f"test_contracts_{name}" for name in ("methods", "hypernetwork", "options", "dreambooth")
)
"""Files whose cases of SD2 run with the slow tests: it is the code of SD1 with other numbers. What
is its own, predicting v, is held by the oracles that always run (full, LoRA, Textual Inversion,
DreamArtist)."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark them before the command line's `-m` chooses."""
    for item in items:
        if item.module.__name__.rpartition(".")[2] in TOLD_BY_OTHERS and "sd2" in item.name:
            item.add_marker(pytest.mark.slow)


def make_examples(count=2, side=8, seed=0, first_id=0):
    g = torch.Generator().manual_seed(seed)
    return Examples(
        names=tuple(f"{i}.png" for i in range(count)),
        sample_ids=torch.arange(first_id, first_id + count),
        captions=tuple(f"a photo of sks dog {i}" for i in range(count)),
        sizes=torch.tensor([[64, 64, 0, 0, 64, 64]] * count),
        latents=Latents(
            torch.randn(count, 4, side, side, generator=g), torch.full((count, 4, side, side), 0.01)
        ),
    )


def make_recipe(config, **optimizer):
    if isinstance(config, ImagicConfig) and not config.prompt:
        config = replace(config, prompt="a sitting dog")  # There is no default of a wish.
    options = {"learning_rate": 1e-3} | optimizer
    return Recipe(
        base="random",
        method=config,
        run=RunConfig(seed=5, batch_size=2),
        optimizer=OptimizerConfig(**options),
    )


if DEVICE.type == "cuda":
    # The same bits twice, as on a CPU; without TF32.
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def new_base(family, **options):
    from konomi.models.random_base import random_base

    base = random_base(family, **options)
    base.place(DEVICE, torch.float32)
    return base


@lru_cache
def drawn_base(family, small, options):
    """Its weights drawn once for each process of tests, which takes three times as long as to copy
    them.
    """
    base = new_base(family, configs=SMALL if small else None, **dict(options))
    assert base.denoiser
    assert all(base.text_encoders.values())
    return base


def copy_of(base):
    """All of it but the stored tokenizers, which nothing changes: tens of thousands of merges."""
    kept = {id(stored): stored for stored in base.source.tokenizers.values()}
    return copy.deepcopy(base, kept)


class FixedStream:
    """The same two examples in every step."""

    steps_per_epoch = 1

    def __init__(self, batch):
        self.batch = batch

    def iterate(self, start, stop, *, rank=0, world=1, accumulation=1):
        for _ in range(start, stop):
            yield (self.batch,)


@pytest.fixture
def kit():
    class Kit:
        device = DEVICE
        examples = staticmethod(make_examples)
        recipe = staticmethod(make_recipe)
        stream = FixedStream

        @staticmethod
        def batch(**options):
            return Batch(subject=make_examples(**options))

        @staticmethod
        def method_type(kind):
            return next(method for method in METHODS if method.config_type().kind == kind)

        @staticmethod
        def method(base, recipe):
            """Asked what it needs, and built, as every run does."""
            Kit.needs(base, recipe)
            return method_of(recipe)(recipe.method, base, recipe)

        @staticmethod
        def needs(base, recipe):
            return method_of(recipe).needs(recipe.method, base, recipe)

        @staticmethod
        def base(family, *, small=False, lazy=False, **options):
            """A base of its own; `small` where the depth of the denoiser is nothing, `lazy` with
            no part loaded.
            """
            if lazy or "configs" in options:
                return new_base(family, **options)
            return copy_of(drawn_base(family, small, tuple(options.items())))

    return Kit

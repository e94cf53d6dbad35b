"""Small models of random weights in files, one for each family and seed."""

import pytest
import torch

from konomi.diffusion.random import stable_hash
from konomi.models.random_base import random_base
from konomi.models.save import save_folder, save_single_file


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """A function: family, seed and settings -> path of a single file, or of a folder."""
    root = tmp_path_factory.mktemp("models")

    def path(family, seed=0, *, folder=False, dtype=torch.float32, **settings):
        said = stable_hash(settings, dtype) & 0xFFFF
        name = f"{family}-{seed}-{said:04x}"
        target = root / name if folder else root / f"{name}.safetensors"
        if not target.exists():
            base = random_base(family, seed=seed, **settings)
            (save_folder if folder else save_single_file)(base, target, dtype=dtype)
        return target

    return path

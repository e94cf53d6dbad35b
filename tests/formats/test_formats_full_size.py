"""Real LoRA files on a Stable Diffusion 1 of full architecture: each layer changes by its product,
no other does.
"""

from pathlib import Path

import pytest
import torch

from konomi.adapters.apply import Strengths, attach
from konomi.formats.adapter_file import read_adapter
from konomi.models.random_base import random_base
from konomi.storage.tensor_file import read_tensors

ARTIFACTS = Path(__file__).parents[3] / "shared" / "artifacts"
STRENGTH = 0.5


@pytest.fixture(scope="module")
def full_size():
    base = random_base("sd1", size="full")
    base.place("cpu", torch.float32)
    return base


def factors_by_hand(path):
    """(up, down) of every layer, read with nothing of konomi's formats; scale is 1 in all of these
    files.
    """
    tensors = read_tensors(path)
    pairs = {}
    for name, tensor in tensors.items():
        for up, down in (("_lora.up.weight", "_lora.down.weight"), (":up", ":down")):
            if name.endswith(up):
                pairs[name.removesuffix(up)] = (tensor, tensors[name.removesuffix(up) + down])
    return pairs


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "analog_svd_rank4.safetensors",
        "lora_disney.safetensors",
        "catundchat_pytorch_lora_weights.safetensors",
    ],
)
def test_each_layer_changes_by_its_own_product(full_size, name):
    path = ARTIFACTS / name
    if not path.exists():
        pytest.skip("the real files of ../shared/artifacts are not here")
    adapter = read_adapter(path)
    pairs = factors_by_hand(path)
    assert len(adapter.layers) == len(pairs) > 0
    before = {key: full_size.module(key).weight.detach().clone() for key in adapter.layers}
    others = {
        n: p.detach().sum(dtype=torch.float64) for n, p in full_size.denoiser.named_parameters()
    }
    wanted = sorted(
        (up.double().flatten(1) @ down.double().flatten(1)).norm().item()
        for up, down in pairs.values()
    )
    with attach(full_size, [(adapter, Strengths(STRENGTH, STRENGTH))]):
        changes = {}
        for key, old in before.items():
            update = adapter.layers[key]
            product = update.up.double().flatten(1) @ update.down.double().flatten(1)
            change = (full_size.module(key).weight.double() - old.double()).flatten(1)
            # float32 weights of size about 1/32 keep a change to about 2e-9 each.
            assert (
                change - STRENGTH * product * (update.alpha / update.down.shape[0])
            ).abs().max() < 1e-7, key
            changes[key] = change.norm().item() / STRENGTH
        touched = {f"{key.removeprefix('denoiser.')}.weight" for key in before}
        for n, p in full_size.denoiser.named_parameters():
            if n not in touched:
                assert p.sum(dtype=torch.float64) == others[n], n
    assert sorted(changes.values()) == pytest.approx(wanted, rel=1e-3)
    assert all(torch.equal(full_size.module(key).weight, old) for key, old in before.items())

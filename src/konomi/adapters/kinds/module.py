"""What trained layers of several kinds ask of the module of the base that they stand in for.

Shapes: O output, I input, K kernel.
"""

import math

import torch
from torch import Tensor, nn

from konomi.diffusion.random import stable_hash
from konomi.errors import ModelError, RecipeError


def linear_or_conv(key: str, module: nn.Module) -> nn.Linear | nn.Conv2d:
    """The module. Raises ModelError where it is of another sort."""
    if not isinstance(module, nn.Linear | nn.Conv2d):
        raise ModelError(
            f"{key} is a {type(module).__name__}; low-rank layers go on Linear and Conv2d only."
        )
    return module


def check_rank(key: str, rank: int, weight: Tensor) -> None:
    """Raises RecipeError where a weight [O, I(, K, K)] has less than `rank` directions."""
    limit = min(weight.shape[0], math.prod(weight.shape[1:]))
    if rank > limit:
        raise RecipeError(
            f"the rank of {key} is {rank}; this layer allows at most {limit}. Lower the "
            "rank that is set for such layers: method.rank, conv_rank or text_rank (in "
            "DreamArtist method.lora_rank)."
        )


def generator_of(algorithm: str, seed: int, key: str) -> torch.Generator:
    """Of a layer's start, which follows from (seed, key) alone, whatever else is trained."""
    return torch.Generator().manual_seed(stable_hash(algorithm, seed, key) & (2**63 - 1))


def kaiming_uniform(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """As torch draws a linear layer's weight (He et al. 2015 with a = sqrt 5), in place."""
    bound = 1.0 / math.sqrt(math.prod(tensor.shape[1:]))
    return tensor.uniform_(-bound, bound, generator=generator)


def copy_into(name: str, parameter: nn.Parameter, value: Tensor) -> None:
    """A tensor of a file to go on from; those of 1x1 convolutions may have come without their two
    kernel axes. Raises ModelError where it is of another size.
    """
    if parameter.numel() != value.numel() or parameter.shape[0] != value.shape[0]:
        raise ModelError(
            f"{name} is {list(value.shape)} in the file to go on from, but "
            f"{list(parameter.shape)} in this recipe: another rank, or a base of another "
            "size."
        )
    parameter.copy_(value.reshape(parameter.shape))

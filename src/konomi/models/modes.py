"""Training and evaluation mode of modules."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def eval_mode(*parts: nn.Module) -> Iterator[None]:
    """No gradients, no dropout; afterwards every module is in the mode it was in."""
    modules = [m for part in parts for m in part.modules()]
    training = [module for module in modules if module.training]
    for module in training:
        module.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True

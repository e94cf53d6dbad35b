"""SSCD, a network that was trained to find copies (Pizzi et al. 2022, "A Self-Supervised Descriptor
for Image Copy Detection"): the TorchScript file that its authors publish.
"""

import warnings
from pathlib import Path

import torch
from torch import Tensor

from konomi.errors import ModelError
from konomi.evaluation.encoders.network import Network
from konomi.evaluation.encoders.preprocessing import IMAGENET_STATISTICS, Preprocessing
from konomi.evaluation.encoders.remembered import RememberingEncoder
from konomi.storage.home import expanded

_SIDE = 320
"""Pixels; the authors' square for batches of pictures of several shapes."""


def load_sscd(source: str, *, device: torch.device | None = None) -> RememberingEncoder:
    """An encoder whose cosines above 0.75 are copies (its model card: 90 % precision on DISC2021).

    source: `sscd_disc_mixup.torchscript.pt` or another of the authors' files.
    device: where it computes, by default the CPU.

    Raises ModelError: no such file, or none of this kind.
    """
    path, where = expanded(source), device or torch.device("cpu")
    if not path.is_file():
        raise ModelError(f"{source}: there is no such file of SSCD.")
    module = _opened(path, where)

    def see(pixels: Tensor) -> Tensor:
        features: Tensor = module(pixels.to(where))
        return features

    prepare = Preprocessing((_SIDE, _SIDE), None, None, *IMAGENET_STATISTICS)
    with torch.no_grad():
        try:
            width = see(torch.zeros(1, 3, _SIDE, _SIDE)).dim()
        except RuntimeError as error:
            raise ModelError(f"{source}: takes no pictures, so it is not SSCD.") from error
    if width != 2:
        raise ModelError(f"{source}: gives no vector for a picture, so it is not SSCD.")
    return RememberingEncoder(source, Network(prepare, see, lambda pixels: []))


def _opened(path: Path, device: torch.device) -> torch.nn.Module:
    """TorchScript runs in an interpreter of its own, without Python and its modules."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            module: torch.nn.Module = torch.jit.load(str(path), map_location=device)
        except (RuntimeError, ValueError) as error:
            raise ModelError(f"{path}: is no TorchScript file, as SSCD is published.") from error
    return module.eval()

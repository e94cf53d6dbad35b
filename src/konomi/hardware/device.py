"""Where the computation runs."""

import torch

from konomi.errors import RunError


def choose_device(wanted: str) -> torch.device:
    """`auto` takes CUDA, then MPS, then the CPU. Raises RunError."""
    if wanted == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError as unknown:
        raise RunError(
            f"run.device is {wanted!r}; use auto, cpu, cuda, cuda:1 or mps."
        ) from unknown
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise RunError(
            f"run.device is {wanted!r}, but this machine has {torch.cuda.device_count()} CUDA "
            "devices."
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise RunError("run.device is 'mps', which this machine does not have.")
    return device

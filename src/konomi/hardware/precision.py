"""Number formats: by name, what `auto` takes, and what they cost on a processor that has no
instructions for them.
"""

import time
from collections.abc import Callable
from functools import cache
from statistics import median

import torch
from torch import nn

from konomi.errors import RecipeError, RunError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""By the words that recipes and the command line use."""

SLOW = 3.0
"""From this factor on, half precision on a CPU is said to be slow: it saves memory, so a little
may be worth it."""


def precision_of_flag(word: str) -> torch.dtype:
    """What `--precision` names. Raises RecipeError naming the known words."""
    if word not in PRECISIONS:
        raise RecipeError(f"--precision is {word!r}; choose {', '.join(PRECISIONS)}.")
    return PRECISIONS[word]


def choose_precision(wanted: str, device: torch.device) -> torch.dtype:
    """Number format of the computation; `auto`: bf16 on CUDA devices that have it, fp16 on older
    ones, else fp32.
    """
    if wanted != "auto":
        if wanted not in PRECISIONS:
            raise RunError(f"precision is {wanted!r}; choose auto, {', '.join(PRECISIONS)}.")
        return PRECISIONS[wanted]
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16


def slowdown(dtype: torch.dtype, device: torch.device) -> float:
    """Time of a 3x3 convolution in a half-precision format over its time in float32, on a CPU; 1
    on other devices.

    Processors without instructions for a format emulate it: measured 77 to 98 for bf16
    convolutions on one with AVX2 only. Which a processor has, and which of them the libraries then
    use, is known for certain by trying: 40 ms.
    """
    return _measured(dtype) if device.type == "cpu" and dtype != torch.float32 else 1.0


def slow_precision_notes(dtype: torch.dtype, device: torch.device) -> tuple[str, ...]:
    """What to say of a chosen precision that this processor emulates: one line, or none."""
    factor = slowdown(dtype, device)
    if factor < SLOW:
        return ()
    name = next(word for word, known in PRECISIONS.items() if known == dtype)
    return (
        f"precision {name}: this processor has no instructions for it; a convolution takes "
        f"{factor:.0f} times as long as in fp32. It only saves memory here: choose fp32 for speed.",
    )


@cache
def _measured(dtype: torch.dtype) -> float:
    layer = nn.Conv2d(32, 32, 3, padding=1).requires_grad_(False)
    image = torch.randn(1, 32, 16, 16)
    plain = _seconds(lambda: layer(image))
    half, half_image = layer.to(dtype), image.to(dtype)
    return _seconds(lambda: half(half_image)) / plain


def _seconds(work: Callable[[], object], repeats: int = 5) -> float:
    """Median seconds of a call after a first one that does not count."""
    work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return median(times)

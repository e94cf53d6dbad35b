"""What the processor and the C library do, as far as konomi asks them."""

import os
import subprocess
import sys

import pytest
import torch

from konomi.hardware import precision
from konomi.hardware.precision import choose_precision, slow_precision_notes, slowdown

CPU = torch.device("cpu")


def test_auto_never_takes_half_precision_on_a_cpu() -> None:
    assert choose_precision("auto", CPU) == torch.float32


def test_a_slow_format_is_told_with_its_measured_factor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_measured", lambda dtype: 46.4)
    assert "46 times" in slow_precision_notes(torch.bfloat16, CPU)[0]
    assert slow_precision_notes(torch.float32, CPU) == ()
    assert slow_precision_notes(torch.bfloat16, torch.device("cuda")) == ()
    monkeypatch.setattr(precision, "_measured", lambda dtype: 0.6)
    assert slow_precision_notes(torch.bfloat16, CPU) == ()


def test_the_factor_is_that_of_the_kernels_in_use() -> None:
    assert slowdown(torch.bfloat16, CPU) > 0
    limited = os.environ | {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "OMP_NUM_THREADS": "1",
    }
    code = (
        "import torch; from konomi.hardware.precision import slowdown;"
        "print(slowdown(torch.bfloat16, torch.device('cpu')))"
    )
    if torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() in (
        "AVX2",
        "AVX512",
    ):
        done = subprocess.run(
            [sys.executable, "-c", code], env=limited, capture_output=True, text=True, check=True
        )
        assert float(done.stdout) > precision.SLOW


FAULTS = """
import resource, sys, torch
from konomi.hardware.allocator import keep_large_blocks
kept = keep_large_blocks()
def work():
    for _ in range(40):
        torch.empty(12 << 20).fill_(1.0)
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(int(kept), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc is told")
@pytest.mark.slow
def test_large_blocks_stay_where_they_are_and_can_be_left_to_the_system() -> None:
    def run(**environment: str) -> tuple[bool, int]:
        done = subprocess.run(
            [sys.executable, "-c", FAULTS],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            check=True,
        )
        kept, faults = map(int, done.stdout.split())
        return bool(kept), faults

    kept, faults = run()
    if not kept:
        pytest.skip("another C library, or thresholds set from outside")
    off, more = run(KONOMI_KEEP_BLOCKS="0")
    # A kept block is not asked for again, or seldom: a small allocation that comes to lie behind
    # it moves the next one on to fresh pages. Huge pages make few faults of both.
    assert not off and 3 * faults < more

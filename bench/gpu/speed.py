"""Steps a second at full size, and what share of the card's arithmetic they use.

Each case has a process of its own: its peak memory and its time from start to first step are its
own.
"""

import argparse
import subprocess
import sys
import time

import torch
from bench.gpu.rows import Part, asked
from torch.utils.flop_counter import FlopCounterMode

CASES = (
    ("sd15", "lora", 512, 1), ("sd15", "lora", 512, 4), ("sdxl", "lora", 1024, 1),
    ("sd15", "full", 512, 1),
    ("sd15", "lora", 512, 8), ("sdxl", "lora", 1024, 4), ("sd15", "full", 512, 4),
    ("sd15", "textual_inversion", 512, 1),
)  # fmt: skip
"""Model, method, side, batch: what one wants to know most comes first."""
REHEARSED = 3
"""Cases that a CPU tries."""
WARMUP = 3
MOST_STEPS = 40


def main() -> int:
    """All cases, or the one of `--case`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--case", type=int)
    options, _ = parser.parse_known_args()
    part = asked("speed")
    if options.case is not None:
        measure(part, *CASES[options.case])
        return 0
    failed, cases = 0, CASES[:REHEARSED] if part.small else CASES
    for number in range(len(cases)):
        if part.left < 5 and number:
            part.write(case=" ".join(map(str, CASES[number])), verdict="no time left")
            continue
        seconds = f"{part.left / (len(cases) - number):.0f}"
        command = [
            sys.executable,
            "-m",
            "bench.gpu.speed",
            "--case",
            str(number),
            "--device",
            part.device,
        ]
        try:
            # Nobody waits for a rehearsal; on a card a case may overrun a little.
            latest = None if part.small else part.left + 20
            done = subprocess.run(
                [*command, "--seconds", seconds, "--output", str(part.output)], timeout=latest
            )
            failed += done.returncode != 0
        except subprocess.TimeoutExpired:
            failed += 1
            part.write(case=" ".join(map(str, CASES[number])), verdict="took too long")
    return 1 if failed else 0


def measure(part: Part, model: str, method: str, size: int, batch: int) -> None:
    """One row."""
    import psutil
    from bench.gpu.training import Case, Training

    precision = torch.float32 if part.small else torch.bfloat16
    case = Case(
        model, method, 64 if part.small else size, batch, part.device, precision, part.small
    )
    try:
        training = Training(case)
        training.step()
    except torch.OutOfMemoryError as error:
        part.write(case=case.name, verdict=str(error).splitlines()[0][:160])
        return
    training.synchronize()
    first = time.time() - psutil.Process().create_time()
    for _ in range(WARMUP):
        training.step()
    with FlopCounterMode(display=False) as counter:
        training.step()
    training.synchronize()
    steps, started = 0, time.perf_counter()
    while steps < MOST_STEPS and (steps < 3 or part.left > 3):
        training.step()
        steps += 1
    training.synchronize()
    rate = steps / (time.perf_counter() - started)
    part.write(
        case=case.name,
        precision=str(precision).removeprefix("torch."),
        steps_per_second=rate,
        images_per_second=rate * batch,
        tflop_per_step=counter.get_total_flops() / 1e12,
        share_of_limit=counter.get_total_flops() * rate / _limit(part.device, precision),
        peak_gib=training.peak_gib(),
        start_to_first_step=first,
    )


def _limit(device: str, dtype: torch.dtype) -> float:
    """FLOP a second of a large matrix product, the most that this card gives to anything."""
    side = 8192 if device.startswith("cuda") else 512
    a, b = torch.randn(2, side, side, device=device, dtype=dtype)
    times = []
    for _ in range(6):
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        started = time.perf_counter()
        a @ b
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return 2.0 * side**3 / min(times)


if __name__ == "__main__":
    sys.exit(main())

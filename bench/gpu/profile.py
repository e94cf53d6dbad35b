"""One step of SD1.5 LoRA at 512 pixels under the profiler: kernels, gaps between them, time of the
host.
"""

import sys
import time

import torch
from bench.gpu.rows import asked
from bench.gpu.training import Case, Training
from torch.profiler import ProfilerActivity, profile

LISTED = 15


def main() -> int:
    """A row with the sums, one for each of the dearest operators; the trace beside them."""
    part = asked("profile")
    precision = torch.float32 if part.small else torch.bfloat16
    training = Training(
        Case("sd15", "lora", 64 if part.small else 512, 1, part.device, precision, part.small)
    )
    for _ in range(5):
        training.step()
    training.synchronize()
    started = time.perf_counter()
    for _ in range(3):
        training.step()
    training.synchronize()
    undisturbed = (time.perf_counter() - started) / 3
    activities = [ProfilerActivity.CPU] + (
        [ProfilerActivity.CUDA] if part.device.startswith("cuda") else []
    )
    with profile(activities=activities) as profiled:
        training.step()
        training.synchronize()
    kernels = [
        event for event in profiled.events() if event.device_type == torch.autograd.DeviceType.CUDA
    ]
    spans = sorted((event.time_range.start, event.time_range.end) for event in kernels)
    averages = profiled.key_averages()
    part.write(
        step_ms=undisturbed * 1e3,
        kernels=len(kernels),
        busy_ms=_busy(spans) / 1e3,
        gaps_ms=max(0.0, (spans[-1][1] - spans[0][0] - _busy(spans)) / 1e3) if spans else 0.0,
        host_operators=sum(row.count for row in averages),
        host_ms=sum(row.self_cpu_time_total for row in averages) / 1e3,
    )
    by_cost = sorted(
        averages,
        key=lambda row: row.self_device_time_total or row.self_cpu_time_total,
        reverse=True,
    )
    for row in by_cost[:LISTED]:
        part.write(
            operator=row.key[:80], calls=row.count, device_ms=row.self_device_time_total / 1e3,
            host_ms=row.self_cpu_time_total / 1e3,
        )  # fmt: skip
    profiled.export_chrome_trace(str(part.output / "trace.json.gz"))
    return 0


def _busy(spans: list[tuple[float, float]]) -> float:
    """Length of the union of sorted spans."""
    total, end = 0.0, float("-inf")
    for start, stop in spans:
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


if __name__ == "__main__":
    sys.exit(main())

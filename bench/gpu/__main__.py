"""All parts, one after another, each in a process of its own and within its share of the time.

python -m bench.gpu --output out                                # a CUDA card, at most eight minutes
python -m bench.gpu --output out --device cpu --seconds 20      # a rehearsal with small models
"""

import argparse
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

from bench.gpu.rows import Part, tables

OVERRUN = {"cuda": 30.0, "cpu": 600.0}
"""Seconds beyond its time after which a part is cut off. A CPU only rehearses: each part gives one
answer."""
SHARES = {"losses": 0.25, "contracts": 0.15, "speed": 0.4, "profile": 0.1, "resume": 0.1}
"""Part -> its share of the time; what one leaves the next ones have."""


def main() -> int:
    """Run them. The exit code says whether all came to their end."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=440.0)
    parser.add_argument("--parts", nargs="+", choices=list(SHARES), default=list(SHARES))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + options.seconds
    _describe(Part("machine", options.device, options.output, options.seconds))
    failed = []
    for number, name in enumerate(options.parts):
        left = max(deadline - time.monotonic(), 1.0)
        seconds = left * SHARES[name] / sum(SHARES[later] for later in options.parts[number:])
        if not _run(name, options, seconds, left):
            failed.append(name)
        (options.output / "tables.md").write_text(
            tables(options.output / "rows.jsonl"), encoding="utf-8"
        )
    print((options.output / "tables.md").read_text(encoding="utf-8"))
    if failed:
        print(f"not all of it: {', '.join(failed)}")
    return 1 if failed else 0


def _run(name: str, options: argparse.Namespace, seconds: float, left: float) -> bool:
    command = [
        sys.executable,
        "-m",
        f"bench.gpu.{name}",
        "--device",
        options.device,
        "--output",
        str(options.output),
    ]
    environment = os.environ | {
        "KONOMI_LANGUAGE": "en",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    latest = min(left, seconds + 60) + OVERRUN[options.device.partition(":")[0]]
    with (options.output / f"{name}.log").open("w", encoding="utf-8") as log:
        try:
            # A part looks at its clock between two answers; it may overrun by one.
            done = subprocess.run(
                [*command, "--seconds", f"{seconds:.0f}"],
                stdout=log, stderr=subprocess.STDOUT, env=environment, timeout=latest,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            print(f"{name}: cut off after {latest:.0f} s", flush=True)
            return False
    end = "done" if done.returncode == 0 else f"ended with {done.returncode}, see {name}.log"
    print(f"{name}: {end}", flush=True)
    return done.returncode == 0


def _describe(part: Part) -> None:
    import torch

    cuda = part.device.startswith("cuda")
    part.write(
        device=torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        memory_gib=torch.cuda.get_device_properties(0).total_memory / 2**30 if cuda else 0,
        torch=torch.__version__,
        cuda=str(torch.version.cuda),
        cpus=os.cpu_count(),
    )


if __name__ == "__main__":
    sys.exit(main())

"""How long merging takes and what memory it needs, beside copying the same bytes.

Run: python bench/merging.py [--folder DIR] [--family sdxl] [--small]

Two files in the layout of a full-size model with random fp16 weights are written, merged (weighted
sum, by block, add difference), and copied: both read, one of their size written and synced. Each
way runs in a process of its own, whose peak of resident memory is told. The files are removed
afterwards. Bars: at most 1 GiB, and 1.3 times the time of copying.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

GIB = 1 << 30
BLOCK = 16 << 20
WAYS = {
    "weighted_sum": ["--how", "weighted_sum"],
    "by_block": ["--how", "weighted_sum", "--blocks", "GRAD_V"],
    "add_difference": ["--how", "add_difference"],
}


def write_model(path: Path, family: str, size: str, seed: int) -> None:
    """A file with the names and shapes of a model, and random fp16 weights."""
    import torch

    from konomi.merging.layout import SingleFileLayout
    from konomi.models.architectures import architecture_of
    from konomi.models.ldm_file import single_file_metadata
    from konomi.models.parts import empty_part
    from konomi.models.random_base import random_base
    from konomi.storage.tensor_stream import PlannedTensor, tensor_writer

    base = random_base(family, size=size)
    layout = SingleFileLayout.of(base.spec, base.source.configs)
    outlines = {}
    for spec in base.spec.parts:
        config = base.source.configs[spec.folder]
        module = empty_part(architecture_of(base.spec), spec, config, where=family)
        for name, tensor in module.state_dict().items():
            outlines[f"{spec.part}.{name}"] = tensor
    shapes = {}
    for canonical in outlines:
        name = layout.file_name(canonical)
        if name is not None and name not in shapes:
            pieces = {path: outlines[path] for path in layout.names(name)}
            shapes[name] = tuple(layout.assemble(name, pieces).shape)
    planned = [PlannedTensor(name, torch.float16, shapes[name]) for name in sorted(shapes)]
    metadata = single_file_metadata(
        base, {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    )
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(1 << 22, generator=generator).mul_(0.02).half()
    with tensor_writer(path, planned, metadata) as writer:
        for number, plan in enumerate(planned):
            count = plan.size // 2
            repeated = noise.repeat(count // len(noise) + 1)[:count]
            writer.write(number, repeated.reshape(plan.shape))


def copy(sources: list[Path], target: Path) -> None:
    """Read all sources, write the first one's bytes and make them durable."""
    block = bytearray(BLOCK)
    with target.open("wb", buffering=0) as out:
        for number, source in enumerate(sources):
            with source.open("rb", buffering=0) as file:
                while count := file.readinto(block):
                    if number == 0:
                        out.write(memoryview(block)[:count])
        os.fsync(out.fileno())


def forget(paths: list[Path]) -> None:
    """Have the system read these files from the disk again, where it lets itself be told."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def measured(command: list[str]) -> tuple[float, float]:
    """Seconds and peak of resident memory in GiB of a process."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"failed: {' '.join(command)}")
    return time.perf_counter() - started, usage.ru_maxrss * 1024 / GIB


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, help="where there is room for three such files")
    parser.add_argument("--family", default="sdxl")
    parser.add_argument("--small", action="store_true", help="small models, to try the program")
    parser.add_argument("--ways", default=",".join(WAYS), help="with commas between")
    parser.add_argument("--copy", type=Path, nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.copy:
        *sources, target = options.copy
        copy(sources, target)
        return
    size = "tiny" if options.small else "full"
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        models = [Path(folder, f"{name}.safetensors") for name in "ab"]
        for seed, path in enumerate(models):
            write_model(path, options.family, size, seed)
        bytes_each = models[0].stat().st_size
        print(f"{options.family}: two files of {bytes_each / GIB:.2f} GiB")
        out = Path(folder, "out.safetensors")
        print(f"{'':<16}{'seconds':>9}{'x copy':>8}{'peak GiB':>10}")
        for way in options.ways.split(","):
            given = [*models, models[0]] if way == "add_difference" else models
            forget(models)
            copying, _ = measured([__file__, "--copy", *map(str, models), str(out)])
            out.unlink()
            forget(models)
            seconds, peak = measured(
                ["-m", "konomi", "merge", "models", *map(str, given), "-o", str(out), *WAYS[way]]
            )
            out.unlink()
            print(f"{way:<16}{seconds:>9.1f}{seconds / copying:>8.2f}{peak:>10.2f}", flush=True)


if __name__ == "__main__":
    main()

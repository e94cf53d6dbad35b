"""What this machine can run, and what would help."""

import os
import platform
import shutil
import sys
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

from konomi.families import FAMILIES

MINIMUM = {"torch": (2, 10), "transformers": (5, 3), "pillow": (12, 3), "diffusers": (0, 38)}
CUDA_INDEX = "https://download.pytorch.org/whl/cu126"
CPU_BUILD = (
    "There is an NVIDIA card, but this PyTorch is built for the CPU only. To fix that: "
    f"pip install --force-reinstall torch --index-url {CUDA_INDEX}"
)
_PCI = Path("/sys/bus/pci/devices")
_NVIDIA, _DISPLAY = "0x10de", "0x03"
OPTIONAL = (
    ("bitsandbytes", "bitsandbytes", "8-bit AdamW", "optimizers"),
    ("prodigyopt", "prodigyopt", "Prodigy optimiser", "optimizers"),
    ("schedulefree", "schedulefree", "schedule-free optimiser", "optimizers"),
    ("lion-pytorch", "lion_pytorch", "Lion optimiser", "optimizers"),
    ("wandb", "wandb", "Weights & Biases", "trackers"),
    ("webdataset", "webdataset", ".tar shards", "webdataset"),
)


@dataclass(frozen=True, slots=True)
class DoctorRow:
    """One finding."""

    what: str
    value: str
    ok: bool
    advice: str = ""


@dataclass(frozen=True, slots=True)
class DoctorReport:
    rows: tuple[DoctorRow, ...]

    @property
    def ok(self) -> bool:
        return all(row.ok for row in self.rows)


def doctor() -> DoctorReport:
    """Look at Python, packages, devices, memory, disk and the caches. Changes nothing."""
    rows = [
        _judged(
            "Python",
            platform.python_version(),
            sys.version_info >= (3, 11),
            "konomi needs Python 3.11 or newer.",
        ),
        *(_package(name, minimum) for name, minimum in MINIMUM.items()),
        *_devices(),
        _memory(),
        _disk(),
        _optional_packages(),
        _builtin(),
    ]
    return DoctorReport(tuple(rows))


def _package(name: str, minimum: tuple[int, int]) -> DoctorRow:
    version = metadata.version(name)
    numbers = tuple(int(part) for part in version.split("+")[0].split(".")[:2])
    wanted = ".".join(map(str, minimum))
    return _judged(
        name, version, numbers >= minimum, f"Update it: pip install -U '{name}>={wanted}'"
    )


def _judged(what: str, value: str, ok: bool, advice: str) -> DoctorRow:
    """A finding whose advice is only for the bad case."""
    return DoctorRow(what, value, ok, "" if ok else advice)


def _devices() -> list[DoctorRow]:
    import torch

    rows = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        gib = properties.total_memory / 2**30
        rows.append(
            DoctorRow(f"cuda:{index}", f"{properties.name}, {gib:.1f} GiB", True, _fits(gib))
        )
    if torch.backends.mps.is_available():
        rows.append(DoctorRow("mps", "Apple GPU", True))
    if not rows:
        what = f"{os.cpu_count()} cores; no CUDA or MPS device"
        advice = (
            "Fine for the base `tiny` and for tests; full-size bases take seconds to minutes "
            "a step."
        )
        unused = torch.version.cuda is None and nvidia_card()
        rows.append(DoctorRow("device", what, not unused, CPU_BUILD if unused else advice))
    rows.append(_cpu_precision())
    return rows


def nvidia_card(pci: Path = _PCI) -> bool:
    """Whether there is an NVIDIA card, as far as the driver, or on Linux the bus, tells."""
    system = Path(os.environ.get("SYSTEMROOT", r"C:\Windows")) / "System32" / "nvidia-smi.exe"
    if (
        shutil.which("nvidia-smi")
        or (os.name == "nt" and system.exists())
        or Path("/proc/driver/nvidia").exists()
    ):
        return True
    # Vendor and class are one short line each; a display controller's class starts with 0x03.
    return any(
        _line(device / "vendor") == _NVIDIA and _line(device / "class").startswith(_DISPLAY)
        for device in (pci.iterdir() if pci.is_dir() else ())
    )


def _line(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _cpu_precision() -> DoctorRow:
    """What half precision costs on this processor, measured."""
    import torch

    from konomi.hardware.precision import SLOW, slowdown

    factor = slowdown(torch.bfloat16, torch.device("cpu"))
    value = f"a convolution in bf16 takes {factor:.2g} times as long as in fp32"
    advice = "Stay with fp32 on the CPU; bf16 only saves memory there." if factor >= SLOW else ""
    return DoctorRow("CPU precision", value, True, advice)


def _fits(gib: float) -> str:
    """The most that each family can do on a card of this memory."""
    said = []
    for family in FAMILIES:
        fitting = [what for least, what in family.memory if gib >= least]
        said += [f"{family.title}: {fitting[-1]}"] if fitting else []
    return f"{'; '.join(said)}."


def _memory() -> DoctorRow:
    import psutil

    memory = psutil.virtual_memory()
    free = memory.available / 2**30
    value = f"{free:.1f} of {memory.total / 2**30:.1f} GiB free"
    return _judged(
        "memory", value, free > 2, "Close other programs; loading a large base takes about 8 GiB."
    )


def _disk() -> DoctorRow:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    return _judged(
        "disk",
        f"{free:.1f} GiB free here",
        free > 2,
        "Runs need room for checkpoints: free some space.",
    )


def _optional_packages() -> DoctorRow:
    there = [what for _, module, what, _ in OPTIONAL if util.find_spec(module)]
    absent = [
        f"{what} (pip install 'konomi[{extra}]')"
        for _, module, what, extra in OPTIONAL
        if not util.find_spec(module)
    ]
    return DoctorRow(
        "extras",
        ", ".join(there) or "none",
        True,
        f"Not installed: {'; '.join(absent)}." if absent else "",
    )


def _builtin() -> DoctorRow:
    folder = Path(__file__).parent.parent / "builtin" / "tiny"
    found = (folder / "model_index.json").exists()
    return _judged("base `tiny`", "there" if found else "missing", found, "Reinstall konomi.")

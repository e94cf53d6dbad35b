"""Wheels for a machine without network: what konomi needs beside PyTorch and is seldom there.

python -m bench.gpu.collect --output wheels
python -m bench.gpu.collect --output wheels --present packages.txt      # `pip freeze` of that
machine
"""

import argparse
import re
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

LIMIT = 64 * 2**20
"""Bytes of all wheels: what can be carried along with the code."""
USUAL = frozenset({
    "accelerate", "certifi", "click", "filelock", "fsspec", "hf-xet", "httpx", "huggingface-hub",
    "jinja2",
    "markdown-it-py", "markupsafe", "mdurl", "mpmath", "networkx", "numpy", "packaging", "protobuf",
    "psutil",
    "pygments", "pytest", "pytest-xdist", "pyyaml", "regex", "requests", "rich", "safetensors",
    "setuptools", "sympy",
    "tokenizers", "torch", "tqdm", "transformers", "triton", "typing-extensions", "urllib3",
})  # fmt: skip
"""What machines that have PyTorch and transformers have as well."""
PLATFORMS = tuple(
    f"manylinux_2_{minor}_x86_64" for minor in (39, 35, 34, 31, 28, 27, 24, 17, 12, 5)
) + (
    "manylinux2014_x86_64",
    "manylinux2010_x86_64",
    "manylinux1_x86_64",
)


def main() -> int:
    """Download them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--python", default="3.12", help="of the other machine")
    parser.add_argument("--present", type=Path, help="its packages, as pip freeze lists them")
    parser.add_argument("--constraints", type=Path, default=Path("constraints.txt"))
    options = parser.parse_args()
    present = (
        USUAL if options.present is None else _names(options.present.read_text(encoding="utf-8"))
    )
    pinned = _pinned(options.constraints)
    wanted = sorted(_needed("konomi", present))
    print(f"{len(wanted)} packages: {' '.join(wanted)}")
    options.output.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
    ]
    command += [
        "--implementation",
        "cp",
        "--python-version",
        options.python,
        "-d",
        str(options.output),
    ]
    command += [word for platform in PLATFORMS for word in ("--platform", platform)]
    done = subprocess.run(
        [*command, *(f"{name}=={pinned[name]}" if name in pinned else name for name in wanted)]
    )
    if done.returncode:
        return done.returncode
    size = sum(path.stat().st_size for path in options.output.glob("*.whl"))
    print(f"{size / 2**20:.1f} MiB in {options.output}")
    if size > LIMIT:
        print(
            f"more than {LIMIT / 2**20:.0f} MiB: list with --present what the machine has",
            file=sys.stderr,
        )
        return 1
    return 0


def _needed(package: str, present: frozenset[str]) -> set[str]:
    """Requirements of an installed package, and theirs, without extras, that are not present."""
    found: set[str] = set()
    for line in requires(package) or ():
        name = _normal(re.split(r"[\s\[<>=!~;(]", line, maxsplit=1)[0])
        # Markers name extras, platforms and old Pythons; only what holds everywhere is of interest
        # here.
        if ";" not in line and name not in present and name not in found:
            found |= {name} | _needed(name, present | found)
    return found


def _names(frozen: str) -> frozenset[str]:
    return frozenset(
        _normal(re.split(r"[=@\s]", line, maxsplit=1)[0])
        for line in frozen.splitlines()
        if line.strip()
    )


def _pinned(constraints: Path) -> dict[str, str]:
    pairs = (
        line.split("==")
        for line in constraints.read_text(encoding="utf-8").splitlines()
        if "==" in line[:60]
    )
    return {
        _normal(pair[0]): pair[1].strip()
        for pair in pairs
        if len(pair) == 2 and not pair[0].startswith("#")
    }


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    sys.exit(main())

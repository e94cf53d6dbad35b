"""How long a LoRA takes to put on a base, to change its strength and to take off, beside peft.

Run: python bench/attach.py [--family sd1] [--size full] [--rank 142] [--rounds 3] [--precision P]

Both have the same random U-Net and the same LoRA on all its linear layers of attention and feed
forward, 100 MiB in fp16 at rank 142 on SD1, and take turns in one process. What is measured is what
each needs until the next picture can be drawn at full speed: konomi's `attach` adds the change to
the weights and keeps what was there; peft merges (`merge_adapter`) and unmerges. peft's injection,
which is needed once for a file, is told beside it. CPU time, so that other work on the machine
does not count.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from statistics import median

import torch

from konomi.adapters.adapter import Adapter
from konomi.adapters.apply import Strengths, attach
from konomi.adapters.kinds import LowRank
from konomi.hardware.precision import PRECISIONS
from konomi.models.random_base import random_base

SELECTORS = ("attention", "feed_forward")


def seconds(work: Callable[[], object]) -> float:
    """CPU time of all threads."""
    started = time.process_time()
    work()
    return time.process_time() - started


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--family", default="sd1")
    parser.add_argument("--size", default="full", choices=("full", "tiny"))
    parser.add_argument("--rank", type=int, default=142)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", default="fp16", choices=PRECISIONS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    base = random_base(options.family, size=options.size)
    dtype = PRECISIONS[options.precision]
    base.place(torch.device("cpu"), dtype)
    modules = {}
    for selector in SELECTORS:
        found = base.select_layers(selector)
        modules |= {key: m for key, m in found.items() if key.startswith("denoiser.")}
    modules = {key: m for key, m in modules.items() if isinstance(m, torch.nn.Linear)}
    adapters = [lora(modules, options.rank, dtype, seed) for seed in range(2)]
    size = sum(t.nbytes for u in adapters[0].layers.values() for t in (u.down, u.up))
    print(f"{options.family}: {len(modules)} layers, a LoRA of {size / 2**20:.0f} MiB")
    rows: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        with_konomi(base, adapters, rows)
    injection = with_peft(base, adapters, options, rows)
    print(f"{'CPU seconds':<24}{'konomi':>9}{'peft':>9}{'ratio':>8}")
    for what in ("on", "other strength", "off", "two on", "two off"):
        ours, theirs = (median(rows[f"{who} {what}"]) for who in ("konomi", "peft"))
        print(f"{what:<24}{ours:>9.2f}{theirs:>9.2f}{ours / theirs:>8.2f}")
    print(f"peft needs {injection:.2f} s once for the two files besides.")


def lora(modules: dict[str, torch.nn.Module], rank: int, dtype: torch.dtype, seed: int) -> Adapter:
    """A LoRA of random numbers."""
    generator, layers = torch.Generator().manual_seed(seed), {}
    for key, module in modules.items():
        out, width = module.weight.shape
        down = torch.randn(rank, width, generator=generator).mul_(0.01).to(dtype)
        up = torch.randn(out, rank, generator=generator).mul_(0.01).to(dtype)
        layers[key] = LowRank(down, up, float(rank))
    return Adapter(layers)


def with_konomi(base, adapters, rows) -> None:  # type: ignore[no-untyped-def]
    one, other = adapters
    on = []

    def put(*parts: tuple[Adapter, Strengths]) -> None:
        on.append(attach(base, list(parts)))

    def off() -> None:
        on.pop().detach()

    def change() -> None:
        off()
        put((one, Strengths(0.5, 0.5)))

    record(rows, "konomi on", lambda: put((one, Strengths())))
    record(rows, "konomi other strength", change)
    record(rows, "konomi off", off)
    record(rows, "konomi two on", lambda: put((one, Strengths()), (other, Strengths())))
    record(rows, "konomi two off", off)


def with_peft(base, adapters, options, rows) -> float:  # type: ignore[no-untyped-def]
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    unet = base.unet if hasattr(base, "unet") else base.denoiser
    names = [key.removeprefix("denoiser.") for key in adapters[0].layers]
    started = time.process_time()
    for name, adapter in zip("ab", adapters, strict=True):
        config = LoraConfig(r=options.rank, lora_alpha=options.rank, target_modules=names)
        inject_adapter_in_model(config, unet, adapter_name=name)
        with torch.no_grad():
            for key, update in adapter.layers.items():
                layer = unet.get_submodule(key.removeprefix("denoiser."))
                layer.lora_A[name].weight.copy_(update.down)
                layer.lora_B[name].weight.copy_(update.up)
    injection = time.process_time() - started
    layers = [module for module in unet.modules() if isinstance(module, BaseTunerLayer)]

    def on(*names: str) -> None:
        for layer in layers:
            layer.merge(adapter_names=list(names))

    def off() -> None:
        for layer in layers:
            layer.unmerge()

    def change() -> None:
        off()
        for layer in layers:
            layer.set_scale("a", 0.5)
        on("a")

    with torch.no_grad():
        for _ in range(options.rounds):
            for layer in layers:
                layer.set_scale("a", 1.0)
            record(rows, "peft on", lambda: on("a"))
            record(rows, "peft other strength", change)
            record(rows, "peft off", off)
            record(rows, "peft two on", lambda: on("a", "b"))
            record(rows, "peft two off", off)
    return injection


def record(rows: dict[str, list[float]], what: str, work: Callable[[], object]) -> None:
    """One measurement."""
    rows.setdefault(what, []).append(seconds(work))


if __name__ == "__main__":
    main()

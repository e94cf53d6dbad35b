"""Time and memory of one training step, konomi beside a bare loop and beside peft's layers.

    OMP_NUM_THREADS=1 python bench/step.py                      # some minutes on one CPU core
    python bench/step.py --device cuda --model sdxl --batch 1   # random weights at full size
    python bench/step.py --model sd15 --size 256 --kinds lora --precisions float32 --variants
    konomi_freed konomi
    python bench/step.py --algorithm loha lokr dora loha+dora --precisions float32 --no-start

Each row is compared with the one above it and differs from it in one thing: konomi's layers
instead of peft's (both on diffusers' UNet, which peft's need), konomi's UNet instead of diffusers'
(around the same weights), konomi's own loop instead of the bare one. `konomi_freed` is `konomi`
with the C library left to give large blocks back after each use.

Every variant lives in a process of its own (so that its peak memory is its own) and does one step
when it is its turn; turns go round, so that a busy neighbour slows all alike. Times are medians;
ratios are medians over rounds of the ratio within a round. Losses of a kind are compared: the
variants train from the same start on the same data. `--algorithm` puts other updates in the place
of LoRA, beside LyCORIS' layers of the same kind (DoRA of LoRA beside peft's); their starts are
drawn otherwise, so losses differ.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

SMALL = {
    "block_out_channels": (64, 128, 256, 256),
    "cross_attention_dim": 128,
    "attention_head_dim": 8,
}
"""Stable Diffusion 1's layout with 34 million parameters."""
MODELS = {"small": "sd1", "sd15": "sd1", "sdxl": "sdxl"}
LATENTS = {"small": 32, "sd15": 64, "sdxl": 128}
SEED = 7


@dataclass(frozen=True)
class Job:
    """What one process measures."""

    kind: str
    """`lora`, `full` (the whole denoiser), or an algorithm of lora; `+dora` behind it for DoRA, of
    which `dora` is LoRA's. The algorithm `full` is `diff` here."""
    variant: str
    """`peft`, `peft_autocast` and `bare` are loops on diffusers' UNet, the others on konomi's."""
    precision: str
    """`float32` or `bfloat16`."""
    model: str = "small"
    device: str = "cpu"
    latents: int = 32
    batch: int = 1
    rank: int = 8
    checkpointing: bool = False

    @property
    def name(self) -> str:
        return f"{self.kind} {self.variant.removesuffix('_own')} {self.precision}"

    @property
    def unet(self) -> str:
        foreign = ("lycoris", "peft", "peft_autocast", "bare")
        return "diffusers" if self.variant in foreign else "konomi"

    @property
    def algorithm(self) -> str:
        name = self.kind.removesuffix("dora").removesuffix("+") or "lora"
        return {"diff": "full"}.get(name, name)

    @property
    def dora(self) -> bool:
        return self.kind.endswith("dora")


def build_base(job: Job) -> Any:
    """A base of random weights, the same in every process; its parts are drawn when first used."""
    from konomi.models.random_base import random_base

    return random_base(
        MODELS[job.model], size="full", configs={"unet": SMALL} if job.model == "small" else None
    )


def text_width(base: Any) -> int:
    width: int = base.source.configs["unet"]["cross_attention_dim"]
    return width


def build_denoiser(job: Job, base: Any, dtype: Any) -> Any:
    """The base's UNet, or diffusers' class around the same weights."""
    if job.unet == "konomi":
        base.place(job.device, dtype)
        unet = base.denoiser
    else:
        import torch
        from diffusers import UNet2DConditionModel

        with torch.device("meta"):
            unet = UNet2DConditionModel.from_config(dict(base.source.configs["unet"]))
        weights = {
            name: tensor.to(job.device, dtype)
            for name, tensor in base.source.tensors("denoiser").items()
        }
        unet.load_state_dict(weights, assign=True)
    unet.requires_grad_(job.kind == "full").train()
    if job.checkpointing:
        unet.enable_gradient_checkpointing()
    return unet


def transformer_layers(unet: Any) -> dict[str, Any]:
    """All linear layers and 1x1 convolutions of the transformer blocks, by canonical key."""
    from torch import nn

    kinds = (nn.Linear, nn.Conv2d)
    return {
        f"denoiser.{n}": m
        for n, m in unet.named_modules()
        if ".attentions." in n and isinstance(m, kinds)
    }


def sample_batch(job: Job, step: int, width: int) -> dict[str, Any]:
    """Cached latents and text states with noise and timesteps of a step; the same for every
    variant.
    """
    import torch

    generator = torch.Generator().manual_seed(1000 + step)
    size = (job.batch, 4, job.latents, job.latents)
    drawn = {
        "latents": torch.randn(size, generator=generator),
        "noise": torch.randn(size, generator=generator),
        "timesteps": torch.randint(0, 1000, (job.batch,), generator=generator),
        "text": torch.randn(job.batch, 77, width, generator=generator),
        "pooled": torch.randn(job.batch, 1280, generator=generator),
    }
    return {name: value.to(job.device, non_blocking=True) for name, value in drawn.items()}


def denoising_loss(
    unet: Any, data: dict[str, Any], alphas: Any, dtype: Any, *, sizes_read: bool
) -> Any:
    """Mean squared error of the predicted noise, as every plain training script has it."""
    import torch.nn.functional as F

    root = alphas[data["timesteps"]].view(-1, 1, 1, 1)
    noisy = (root.sqrt() * data["latents"] + (1 - root).sqrt() * data["noise"]).to(dtype)
    extra = {}
    if sizes_read:
        sizes = noisy.new_full((noisy.shape[0], 6), 1024.0)
        extra = {"added_cond_kwargs": {"text_embeds": data["pooled"].to(dtype), "time_ids": sizes}}
    answer = unet(noisy, data["timesteps"], data["text"].to(dtype), return_dict=False, **extra)[0]
    return F.mse_loss(answer.float(), data["noise"])


def bare_loop(job: Job) -> Callable[[int], Any]:
    """Forward, backward, fused AdamW, and nothing else: returns the step."""
    from contextlib import nullcontext

    import torch

    dtype = getattr(torch, job.precision)
    autocast = job.kind == "full" or job.variant.startswith("peft")
    weights = torch.float32 if job.kind == "full" or job.variant == "peft_autocast" else dtype
    base = build_base(job)
    width = text_width(base)
    unet = build_denoiser(job, base, weights)
    parameters = list(unet.parameters()) if job.kind == "full" else LAYERS[job.variant](unet, job)
    # One learning rate per kind, small enough that variants stay comparable over all steps.
    rate = 1e-5 if job.kind == "full" else 1e-4
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01, fused=True)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, device=job.device) ** 2
    alphas = torch.cumprod(1 - betas, 0)

    def step(number: int) -> Any:
        data = sample_batch(job, number, width)
        mixed = autocast and dtype != torch.float32
        with torch.autocast(job.device, dtype) if mixed else nullcontext():
            where = torch.float32 if mixed else dtype
            loss = denoising_loss(unet, data, alphas, where, sizes_read=job.model == "sdxl")
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def own_loop(job: Job) -> Callable[[int], Any]:
    """konomi's training loop as `konomi train` runs it, on a base of random weights with
    everything cached.
    """
    import torch

    from konomi.config.recipe import Recipe
    from konomi.config.sections import MemoryConfig, OptimizerConfig, RunConfig
    from konomi.data.batch import Batch, Examples, Latents
    from konomi.diffusion.conditioning import Conditioning
    from konomi.methods import method_of
    from konomi.methods.full import FullConfig
    from konomi.methods.lora import LoraConfig
    from konomi.training.processes import Processes
    from konomi.training.stop import Stop
    from konomi.training.trainer import Trainer

    base = build_base(job)
    dtype, device = getattr(torch, job.precision), torch.device(job.device)
    recipe = Recipe(
        base="random",
        method=FullConfig()
        if job.kind == "full"
        else LoraConfig(rank=job.rank, algorithm=job.algorithm, dora=job.dora),
        optimizer=OptimizerConfig(learning_rate=1e-5 if job.kind == "full" else 1e-4),
        run=RunConfig(batch_size=job.batch, seed=SEED),
        memory=MemoryConfig(gradient_checkpointing=job.checkpointing),
    )
    needs = method_of(recipe).needs(recipe.method, base, recipe)
    method = method_of(recipe)(recipe.method, base, recipe)
    base.place(device, dtype, float32_parts=needs.float32_parts)
    if job.checkpointing:
        base.denoiser.enable_gradient_checkpointing()

    class Cached:
        steps_per_epoch = 16

        def iterate(self, start: int, stop: int, **_: int) -> Iterator[tuple[Batch, ...]]:
            for number in range(start, stop):
                data = sample_batch(job, number, text_width(base))
                names = tuple(f"{number}-{row}" for row in range(job.batch))
                latents = Latents(data["latents"], torch.zeros_like(data["latents"]))
                sizes = torch.full((job.batch, 6), 1024 if base.family == "sdxl" else 512)
                text = Conditioning(
                    data["text"].to(dtype),
                    data["pooled"].to(dtype) if base.family == "sdxl" else None,
                )
                ids = torch.arange(job.batch) + number * job.batch
                yield (Batch(Examples(names, ids, names, sizes, latents=latents, text=text)),)

    processes = Processes(0, 1, device)
    trainer = Trainer(
        method.plan(), recipe, processes=processes, total_steps=10**6, precision=dtype
    )
    events = trainer.run(Cached(), stop=Stop())
    return lambda number: next(events).loss


def spec_of(job: Job) -> Any:
    from konomi.adapters.kinds import LayerSettings
    from konomi.methods.lora_settings import ALGORITHMS

    settings = LayerSettings(rank=job.rank, alpha=float(job.rank), dora=job.dora)
    return ALGORITHMS[job.algorithm].spec(settings)


def with_konomi_layers(unet: Any, job: Job) -> list[Any]:
    from konomi.adapters.layers import inject

    spec = spec_of(job)
    return list(inject(transformer_layers(unet), lambda key: spec, seed=SEED).parameters.values())


def with_lycoris_layers(unet: Any, job: Job) -> list[Any]:
    """LyCORIS' layers, float32 as its scripts keep them, in the order that kohya's network has."""
    from lycoris.wrapper import network_module_dict

    from konomi.methods.lora_settings import ALGORITHMS

    own = ALGORITHMS[job.algorithm].settings
    # What is a size of blocks there goes by the name of the rank.
    size = getattr(own(), "block_size", job.rank) if own is not None else job.rank
    make = network_module_dict[{"oft": "diag-oft"}.get(job.algorithm, job.algorithm)]
    layers = []
    for key, base in transformer_layers(unet).items():
        layer = make(key, base, 1.0, size, size, weight_decompose=job.dora)
        layer.train()
        layer.apply_to()
        layers.append(layer)
    unet.lycoris_layers = layers  # type: ignore[attr-defined]
    return [p for layer in layers for p in layer.parameters() if p.requires_grad]


def with_peft_layers(unet: Any, job: Job) -> list[Any]:
    """peft's layers, float32 as diffusers' training scripts keep them, with the start that
    konomi's layers have.
    """
    import torch
    from peft import LoraConfig

    from konomi.adapters.layers import inject

    keys = transformer_layers(unet)
    spec = spec_of(job)
    layers = inject(keys, lambda key: spec, seed=SEED)
    start = layers.export().layers
    layers.detach()
    names = [key.removeprefix("denoiser.") for key in keys]
    unet.add_adapter(
        LoraConfig(
            r=job.rank,
            lora_alpha=job.rank,
            target_modules=names,
            init_lora_weights="gaussian",
            use_dora=job.dora,
        )
    )
    modules = dict(unet.named_modules())
    for key, update in start.items():
        with torch.no_grad():
            modules[key.removeprefix("denoiser.")].lora_A["default"].weight.copy_(update.down)
    trained = [p for p in unet.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.float()
    return trained


LAYERS = {
    "bare": with_konomi_layers,
    "bare_own": with_konomi_layers,
    "peft": with_peft_layers,
    "peft_autocast": with_peft_layers,
    "lycoris": with_lycoris_layers,
}


def serve(job: Job) -> None:
    """The worker: one step for each line that comes in, answered by its time, loss and peak
    memory.
    """
    import resource

    import torch

    step = own_loop(job) if job.variant.startswith("konomi") else bare_loop(job)
    cuda = job.device == "cuda"
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        number = int(line)
        if cuda:
            torch.cuda.synchronize()
        # On a CPU the time the process really ran, so that a busy neighbour does not count.
        clock = time.perf_counter if cuda else time.process_time
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        started = clock()
        loss = step(number)
        if cuda:
            torch.cuda.synchronize()
        seconds = clock() - started
        peak = torch.cuda.max_memory_allocated() / 2**20 if cuda else _peak_rss(resource)
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
        print(
            json.dumps({"seconds": seconds, "loss": float(loss), "memory": peak, "faults": faults}),
            flush=True,
        )


def _peak_rss(resource: Any) -> float:
    peak: float = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


class Worker:
    """A job in its own process."""

    def __init__(self, job: Job) -> None:
        self.job = job
        command = [sys.executable, str(Path(__file__)), "--worker", json.dumps(asdict(job))]
        environment = os.environ | (
            {"KONOMI_KEEP_BLOCKS": "0"} if job.variant == "konomi_freed" else {}
        )
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, text=True, env=environment
        )
        self.answers: list[dict[str, float]] = []
        self._read()

    def _read(self) -> dict[str, float]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.job.name} stopped")
        answer: dict[str, float] = json.loads(line)
        return answer

    def step(self, number: int) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{number}\n")
        self.process.stdin.flush()
        self.answers.append(self._read())

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def measure(jobs: list[Job], rounds: int, warmup: int) -> dict[Job, list[dict[str, float]]]:
    """Interleaved steps; the order within a round alternates."""
    workers = [Worker(job) for job in jobs]
    for number in range(warmup + rounds):
        for worker in workers if number % 2 == 0 else workers[::-1]:
            worker.step(number)
    for worker in workers:
        worker.close()
    return {worker.job: worker.answers for worker in workers}


def report(measured: dict[Job, list[dict[str, float]]], warmup: int) -> None:
    """The table: each variant against the one before it in its group (peft, bare, bare on konomi's
    UNet, konomi).
    """
    reference: Job | None = None
    print("Ratios are to the row above.")
    print(
        f"{'variant':28} {'UNet':10} {'s/step':>8} {'ratio':>7} {'MiB':>8} {'ratio':>7} "
        f"{'page faults':>12}  largest difference of a loss"
    )
    for job, answers in measured.items():
        if reference is None or (job.kind, job.precision) != (reference.kind, reference.precision):
            reference = job
        other = measured[reference]
        same_noise = job.variant.startswith("konomi") == reference.variant.startswith("konomi")
        reference = job
        times, base_times = ([a["seconds"] for a in series[warmup:]] for series in (answers, other))
        ratio = statistics.median(a / b for a, b in zip(times, base_times, strict=True))
        memory = answers[-1]["memory"]
        apart = max(abs(a["loss"] - b["loss"]) for a, b in zip(answers, other, strict=True))
        # konomi's loop draws its own noise, so its losses are not those of the bare loop.
        losses = f"{apart:.1e}" if same_noise else ""
        print(
            f"{job.name:28} {job.unet:10} {statistics.median(times):8.4f} {ratio:7.3f} "
            f"{memory:8.0f} {memory / other[-1]['memory']:7.3f} "
            f"{statistics.median(a['faults'] for a in answers[warmup:]):12,.0f}  {losses}"
        )


def first_step_seconds() -> tuple[float, float]:
    """From the start of `konomi train` to its first logged step: with a cold and with a warm cache
    of 16 images.
    """
    from PIL import Image

    with TemporaryDirectory() as folder:
        images = Path(folder, "images")
        images.mkdir()
        for number in range(16):
            Image.new("RGB", (64, 64), (number * 16, 80, 200 - number * 8)).save(
                images / f"{number:02}.png"
            )
        return _train_once(folder, "cold"), _train_once(folder, "warm")


def _train_once(folder: str, name: str) -> float:
    log = Path(folder, name, "log.jsonl")
    command = [
        sys.executable,
        "-m",
        "konomi",
        "train",
        "lora",
        "--images",
        f"{folder}/images",
        "--base",
        "tiny",
    ]
    command += ["--trigger", "sks", "--output", f"{folder}/{name}", "--steps", "1"]
    command += [f"data.cache.folder={folder}/cache", "run.device=cpu"]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None and not (log.exists() and log.stat().st_size):
        time.sleep(0.01)
    seconds = time.perf_counter() - started
    if process.wait() or not log.exists():
        raise SystemExit("konomi train failed")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=list(MODELS), default="small")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--size", type=int, help="side of the picture in pixels; by default the model's own"
    )
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--kinds", nargs="+", default=["lora", "full"])
    parser.add_argument(
        "--algorithm", nargs="+", metavar="NAME", help="in place of --kinds: loha, lokr+dora, ..."
    )
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--variants", nargs="+", default=["peft", "bare", "bare_own", "konomi"])
    parser.add_argument(
        "--no-start", action="store_true", help="do not measure the time to the first step"
    )
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        serve(Job(**json.loads(options.worker)))
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    shape = {
        "model": options.model,
        "device": options.device,
        "latents": options.size // 8 if options.size else LATENTS[options.model],
        "batch": options.batch,
        "rank": options.rank,
        "checkpointing": options.checkpointing,
    }
    measured = {}
    for kind in options.algorithm or options.kinds:
        for precision in options.precisions:
            if options.algorithm and options.variants == parser.get_default("variants"):
                judge = "peft" if kind in ("lora", "dora") else "lycoris"
                wanted = [judge, "bare", "konomi"]
            else:
                peft_too = kind in ("lora", "dora")
                wanted = [v for v in options.variants if peft_too or not v.startswith("peft")]
            wanted = [v for v in wanted if precision != "float32" or v != "peft_autocast"]
            jobs = [Job(kind, variant, precision, **shape) for variant in wanted]
            measured |= measure(jobs, options.rounds, options.warmup)
    report(measured, options.warmup)
    if not options.no_start:
        cold, warm = first_step_seconds()
        print(
            f"process start to first step, base tiny, 16 images: {warm:.1f} s with a warm cache, "
            f"{cold:.1f} s cold"
        )


if __name__ == "__main__":
    main()

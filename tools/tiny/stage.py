"""What every stage shares: folder, device, number format, and a state that survives being
stopped.
"""

import json
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

SAVE_SECONDS = 180
PRINT_STEPS = 50


@dataclass(frozen=True, slots=True)
class Work:
    """Where a stage works and on what."""

    data: Path
    """Holds emoji-noto.zip, emoji-twemoji.zip, emoji-blob.zip."""
    folder: Path
    """Checkpoints and intermediate results; outside the repository."""
    device: str = "cpu"

    def autocast(self) -> AbstractContextManager[None]:
        """bfloat16 where the machine is fast at it."""
        if self.device == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return nullcontext()
        return torch.autocast(self.device, torch.bfloat16)


class Progress:
    """Model weights, their running average and the optimiser, saved every few minutes and found
    again.
    """

    def __init__(
        self, path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, *, decay: float
    ) -> None:
        self.path, self.model, self.optimizer, self.decay = path, model, optimizer, decay
        self.step = 0
        self.average = {k: v.detach().clone().float() for k, v in model.state_dict().items()}
        self.seconds = 0.0
        self._since = time.monotonic()
        if (path / "state.json").exists():
            self._load()

    def _load(self) -> None:
        facts = json.loads((self.path / "state.json").read_text())
        self.step, self.seconds = facts["step"], facts["seconds"]
        self.model.load_state_dict(load_file(self.path / "weights.safetensors"))
        average = load_file(self.path / "average.safetensors")
        self.average = {k: v.to(self.average[k].device) for k, v in average.items()}
        state = torch.load(self.path / "optimizer.pt", weights_only=True)
        self.optimizer.load_state_dict(state)

    def advance(self) -> None:
        """Count a step and move the average; it follows quickly at the start."""
        self.step += 1
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for key, value in self.model.state_dict().items():
                self.average[key].lerp_(value.float(), 1 - decay)

    def save(self) -> None:
        now = time.monotonic()
        self.seconds, self._since = self.seconds + now - self._since, now
        self.path.mkdir(parents=True, exist_ok=True)
        weights = self.model.state_dict()
        save_file(
            {k: v.contiguous() for k, v in weights.items()}, self.path / "weights.safetensors.part"
        )
        save_file(
            {k: v.contiguous() for k, v in self.average.items()},
            self.path / "average.safetensors.part",
        )
        torch.save(self.optimizer.state_dict(), self.path / "optimizer.pt.part")
        for name in ("weights.safetensors", "average.safetensors", "optimizer.pt"):
            (self.path / f"{name}.part").replace(self.path / name)
        facts = {"step": self.step, "seconds": self.seconds}
        (self.path / "state.json").write_text(json.dumps(facts))


def train(
    progress: Progress,
    loss_at: Callable[[int], tuple[Tensor, str]],
    *,
    steps: int,
    peak: float,
    warmup: int,
) -> None:
    """Steps from where `progress` stands up to `steps`; then the model holds the running average.

    `loss_at(step)` gives the loss, a pure function of the step so that resumed training is the
    same, and what to print.
    """
    started = saved = time.monotonic()
    for step in range(progress.step, steps):
        for group in progress.optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak, warmup=warmup)
        loss, seen = loss_at(step)
        progress.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(progress.model.parameters(), 1.0)
        progress.optimizer.step()
        progress.advance()
        now = time.monotonic()
        if step % PRINT_STEPS == 0:
            print(f"{progress.path.name} {step}/{steps} {seen} {now - started:.0f} s", flush=True)
        if now - saved > SAVE_SECONDS:
            progress.save()
            saved = now
    progress.save()
    progress.model.load_state_dict(progress.average)


def learning_rate(step: int, steps: int, peak: float, *, warmup: int) -> float:
    """Linear rise, cosine fall to a twentieth."""
    if step < warmup:
        return peak * (step + 1) / warmup
    share = min(1.0, (step - warmup) / max(1, steps - warmup))
    return peak * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * share)))


def seeds_of(step: int, batch: int, first_seed: int) -> range:
    """Seeds of a step's scenes. A step always sees the same scenes, resumed or not."""
    return range(first_seed + step * batch, first_seed + (step + 1) * batch)


class Running:
    """A mean that follows its last fifty values or so."""

    def __init__(self) -> None:
        self.mean = 0.0

    def follow(self, value: float) -> float:
        self.mean = 0.98 * self.mean + 0.02 * value if self.mean else value
        return self.mean

"""What every stage shares: folder, device, number format, and a state that survives being stopped."""

import json
import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn


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
    """Model weights, their running average and the optimiser, saved every few minutes and found again."""

    def __init__(self, path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, *, decay: float) -> None:
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
        save_file({k: v.contiguous() for k, v in weights.items()}, self.path / "weights.safetensors.part")
        save_file({k: v.contiguous() for k, v in self.average.items()}, self.path / "average.safetensors.part")
        torch.save(self.optimizer.state_dict(), self.path / "optimizer.pt.part")
        for name in ("weights.safetensors", "average.safetensors", "optimizer.pt"):
            (self.path / f"{name}.part").replace(self.path / name)
        facts = {"step": self.step, "seconds": self.seconds}
        (self.path / "state.json").write_text(json.dumps(facts))


def learning_rate(step: int, steps: int, peak: float, *, warmup: int) -> float:
    """Linear rise, cosine fall to a twentieth."""
    if step < warmup:
        return peak * (step + 1) / warmup
    share = min(1.0, (step - warmup) / max(1, steps - warmup))
    return peak * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * share)))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def steps_from(start: int, total: int, batch: int, first_seed: int) -> Iterator[tuple[int, range]]:
    """(step, seeds of its scenes). A step always sees the same scenes, resumed or not."""
    for step in range(start, total):
        yield step, range(first_seed + step * batch, first_seed + (step + 1) * batch)

"""The state of a run and the only training loop.

`Trainer.run` is a generator of `Step` events: whoever iterates it draws, logs, saves and previews
between two steps; closing it ends the run. It knows neither methods nor families.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from konomi.config.recipe import Recipe
from konomi.data.batch import Batch, LossRecord
from konomi.diffusion.random import Rng
from konomi.errors import RunError
from konomi.methods.method import Phase
from konomi.training.ema import EMA
from konomi.training.events import Step, Warned
from konomi.training.fused_adamw import FusedAdamW
from konomi.training.memory import peak_memory
from konomi.training.optimizers import (
    make_optimizer,
    optimizer_state,
    rate_in_use,
    restore_optimizer,
    set_training,
)
from konomi.training.processes import Processes
from konomi.training.readout import Readout, readings
from konomi.training.sample_losses import SampleLosses
from konomi.training.schedules import rate_factor, schedule_length
from konomi.training.state_check import check_numbers, check_same_tensors
from konomi.training.stop import Stop


class BatchSource(Protocol):
    """Where batches come from: a pure function of the step, so that resuming needs only its
    number.
    """

    @property
    def steps_per_epoch(self) -> int: ...

    def iterate(
        self, start: int, stop: int, *, rank: int = 0, world: int = 1, accumulation: int = 1
    ) -> Iterator[tuple[Batch, ...]]: ...


@dataclass(frozen=True, slots=True)
class TrainState:
    """Everything a run needs to go on: tensors by file, numbers for JSON."""

    tensors: dict[str, dict[str, Tensor]]
    numbers: dict[str, Any]


class Trainer:
    """Phases, the optimiser of the one at work, the average, and how far the run is."""

    def __init__(
        self,
        phases: Sequence[Phase],
        recipe: Recipe,
        *,
        processes: Processes,
        total_steps: int,
        precision: torch.dtype = torch.float32,
    ) -> None:
        self.phases = tuple(phases)
        self.recipe = recipe
        self.processes = processes
        self.total_steps = total_steps
        self.step = 0
        self.samples_seen = 0
        self.losses = SampleLosses()
        self.accumulation = recipe.memory.accumulation
        # fp16 has few exponent bits: the loss is scaled up so that small gradients do not vanish
        # (Micikevicius 2018).
        self.scaler = GradScaler(processes.device.type, enabled=precision == torch.float16)
        self._begin_phase(0)

    @property
    def device(self) -> torch.device:
        return self.processes.device

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Trainable parameters of the phase at work, by name."""
        return {
            name: p
            for group in self.phases[self.phase_index].groups
            for name, p in group.parameters.items()
        }

    def run(
        self,
        batches: BatchSource,
        *,
        stop: Stop,
        sync_at: Callable[[int], bool] = lambda step: False,
    ) -> Iterator[Step | Warned]:
        """Train up to `total_steps`, or until `stop` is requested.

        `sync_at(step)` names the steps after which the caller wants to work with the weights: when
        their event comes, nothing is in flight. Raises RunError on a loss that is not finite,
        before any weight is changed by it.
        """
        readout = Readout(self.device)
        while self.step < self.total_steps and not self.processes.agree(stop.requested):
            try:
                yield from self._run_phase(batches, readout, stop, sync_at)
            except torch.OutOfMemoryError as full:
                yield self._halve_micro_batch(full)

    def _run_phase(
        self, batches: BatchSource, readout: Readout, stop: Stop, sync_at: Callable[[int], bool]
    ) -> Iterator[Step]:
        """Steps until the run, the phase, or memory ends, or a stop is asked for."""
        self._begin_phase(self._phase_at(self.step))
        source = batches.iterate(
            self.step,
            self._phase_end(),
            rank=self.processes.rank,
            world=self.processes.world,
            accumulation=self.accumulation,
        )
        with closing(source) as steps:  # type: ignore[type-var]
            started = time.perf_counter()
            for micro_batches in steps:
                values = self._train_step(micro_batches)
                self.step += 1
                self.samples_seen += _samples(micro_batches)
                stopping = self.processes.agree(stop.requested)
                now = time.perf_counter()
                readout.put(self._event(batches, now - started), micro_batches, values)
                started = now
                syncing = (
                    sync_at(self.step)
                    or self.step in (self.total_steps, self._phase_end())
                    or stopping
                )
                for pending, (loss, *of_each) in readout.take(everything=syncing):
                    if not math.isfinite(loss):
                        raise RunError(_not_finite(pending.event, pending.files, loss))
                    self.losses.add(pending.event.step, pending.images, of_each)
                    yield replace(pending.event, loss=loss)
                if syncing:
                    started = time.perf_counter()
                if stopping:
                    return

    def _train_step(self, micro_batches: tuple[Batch, ...]) -> Tensor:
        """One optimiser step over this process's micro-batches. Returns `readings`: the
        mean loss over all processes and that of each subject, on the device.
        """
        phase = self.phases[self.phase_index]
        rng = Rng.for_step(self.recipe.run.seed, self.step, device=self.device)
        loss = torch.zeros((), device=self.device)
        records = [LossRecord() for _ in micro_batches]
        try:
            for batch, record in zip(micro_batches, records, strict=True):
                recorded = batch.to(self.device).recorded(record)
                micro_loss = phase.loss(recorded, rng) * batch.weight
                self.scaler.scale(micro_loss).backward()
                loss = loss + micro_loss.detach()
            parameters = self._trained
            values = readings(loss, micro_batches, records, self.recipe.run.batch_size)
            values = self.processes.sum_gradients(parameters, values)
            self._update(parameters, values[0])
        finally:
            self.optimizer.zero_grad(set_to_none=True)
        return values

    def _update(self, parameters: list[nn.Parameter], loss: Tensor) -> None:
        factor = rate_factor(self.step, self.total_steps, self.recipe.optimizer)
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        if self.scaler.is_enabled():
            self.scaler.unscale_(cast(Optimizer, self.optimizer))
            self._clip(parameters)
            if math.isfinite(loss.item()):
                self.scaler.step(cast(Optimizer, self.optimizer))
                self.scaler.update()
        else:
            norm = self._clip(parameters)
            finite = torch.isfinite(loss + norm)
            if self.device.type == "cuda" and isinstance(self.optimizer, FusedAdamW):
                # The kernel itself leaves the weights alone, so the host need not wait to decide.
                self.optimizer.found_inf = (~finite).float()
            elif not finite:
                loss.fill_(math.nan)
                return
            self.optimizer.step()
        if self.ema is not None:
            self.ema.update()

    def _clip(self, parameters: list[nn.Parameter]) -> Tensor:
        """Shorten the gradient to `optimizer.clip_norm`. Returns its length before."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if not self.recipe.optimizer.clip_norm or not gradients:
            return torch.zeros((), device=self.device)
        norm = torch.nn.utils.get_total_norm(gradients)
        excess = (norm / self.recipe.optimizer.clip_norm).clamp(min=1.0)
        if isinstance(self.optimizer, FusedAdamW) and not self.scaler.is_enabled():
            # The fused kernel divides by this on the way: no pass of its own over all gradients.
            self.optimizer.grad_scale = excess
        else:
            torch._foreach_div_(gradients, excess)
        return norm

    def _event(self, batches: BatchSource, seconds: float) -> Step:
        return Step(
            step=self.step,
            epoch=(self.step - 1) // batches.steps_per_epoch,
            loss=math.nan,
            learning_rate=rate_in_use(self.optimizer),
            seconds=seconds,
            samples_seen=self.samples_seen,
            memory=peak_memory(self.device),
        )

    def _halve_micro_batch(self, full: torch.OutOfMemoryError) -> Warned:
        """The same batch in twice as many micro-batches; the step is done again. Raises RunError
        at one image each.
        """
        self.optimizer.zero_grad(set_to_none=True)
        # Several processes would have to shrink together, and a peer that waits in a sum cannot be
        # told.
        if self.accumulation >= self.recipe.run.batch_size or self.processes.world > 1:
            raise RunError(
                f"out of memory in step {self.step + 1}, with the batch in {self.accumulation} "
                "micro-batches. Lower data.resolution, raise memory.accumulation (up to "
                "run.batch_size), set memory.gradient_checkpointing = true, or lower the method's "
                "rank; then: konomi resume."
            ) from full
        self.accumulation = min(self.accumulation * 2, self.recipe.run.batch_size)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return Warned(
            f"out of memory in step {self.step + 1}: each batch is now split into "
            f"{self.accumulation} micro-batches; the result stays the same."
        )

    def _begin_phase(self, index: int) -> None:
        current = getattr(self, "phase_index", None)
        if current == index:
            return
        if current is not None:
            self._leave_phase()
        self.phase_index = index
        phase = self.phases[index]
        self.optimizer = make_optimizer(phase.groups, self.recipe.optimizer, self.device)
        self._rates = [group["lr"] for group in self.optimizer.param_groups]
        self._trained = list(self.parameters.values())
        decay = self.recipe.optimizer.ema_decay
        self.ema = EMA(self.parameters, decay) if decay else None
        for module in phase.modules:
            module.train()
        set_training(self.optimizer, True)

    def _leave_phase(self) -> None:
        """What a phase leaves behind is what would be saved: the average, or schedule-free's other
        weights.
        """
        if self.ema is None:
            set_training(self.optimizer, False)
            return
        for name, parameter in self.parameters.items():
            parameter.data.copy_(self.ema.tensors[name])

    def _phase_at(self, step: int) -> int:
        """Never one before the phase at work: a run that is made longer may move the end of one it
        is through with.
        """
        reached = (index for index in range(len(self.phases)) if step < self._end_of(index))
        return max(next(reached, len(self.phases) - 1), self.phase_index)

    def _phase_end(self) -> int:
        return self._end_of(self.phase_index)

    def _end_of(self, index: int) -> int:
        """The step after a phase's last."""
        if index == len(self.phases) - 1:
            return self.total_steps
        length = schedule_length(self.recipe.optimizer, self.total_steps)
        return min(
            sum(phase.length(length) for phase in self.phases[: index + 1]), self.total_steps
        )

    @contextmanager
    def weights_for_use(self) -> Iterator[None]:
        """Inside, parameters hold what should be saved and shown: the average, or schedule-free's
        other weights.
        """
        if self.ema is not None:
            with self.ema.swapped_in():
                yield
            return
        switches = hasattr(self.optimizer, "eval")
        # Switching schedule-free weights back and forth rounds; the trained ones are kept and put
        # back bit for bit.
        kept = [p.detach().clone() for p in self._trained] if switches else []
        set_training(self.optimizer, False)
        try:
            yield
        finally:
            set_training(self.optimizer, True)
            for parameter, value in zip(self._trained, kept) if switches else ():
                parameter.data.copy_(value)

    def state(self) -> TrainState:
        """A view, not a copy: write it before the next step."""
        weights = {
            n: p.detach()
            for phase in self.phases
            for g in phase.groups
            for n, p in g.parameters.items()
        }
        names: dict[Tensor, str] = {parameter: name for name, parameter in self.parameters.items()}
        tensors, numbers = optimizer_state(self.optimizer, names)
        files = {"weights": weights, "optimizer": tensors}
        if self.ema is not None:
            files["average"] = self.ema.tensors
        if len(self.losses):
            files["losses"] = self.losses.tensors()
        return TrainState(
            files,
            {
                "step": self.step,
                "phase": self.phase_index,
                "samples_seen": self.samples_seen,
                "accumulation": self.accumulation,
                "average_updates": 0 if self.ema is None else self.ema.updates,
                "scaler": self.scaler.state_dict(),
                "optimizer": numbers,
            },
        )

    def restore(self, state: TrainState) -> None:
        """Go on from `state`. Raises RunError if its tensors are not those this recipe trains, or
        its numbers none.
        """
        check_numbers(state.numbers, num_phases=len(self.phases))
        self._begin_phase(state.numbers["phase"])
        weights = {
            n: p for phase in self.phases for g in phase.groups for n, p in g.parameters.items()
        }
        check_same_tensors(weights, state.tensors["weights"], "weights")
        for name, parameter in weights.items():
            parameter.data.copy_(state.tensors["weights"][name])
        names: dict[Tensor, str] = {parameter: name for name, parameter in self.parameters.items()}
        restore_optimizer(
            self.optimizer, names, state.tensors["optimizer"], state.numbers["optimizer"]
        )
        if self.ema is not None:
            check_same_tensors(self.ema.tensors, state.tensors.get("average", {}), "averages")
            for name, tensor in self.ema.tensors.items():
                tensor.copy_(state.tensors["average"][name])
            self.ema.updates = state.numbers["average_updates"]
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state.numbers["scaler"])
        self.losses = SampleLosses.of(state.tensors.get("losses", {}))
        self.step = state.numbers["step"]
        self.samples_seen = state.numbers["samples_seen"]
        self.accumulation = state.numbers["accumulation"]


def _samples(micro_batches: tuple[Batch, ...]) -> int:
    """Subjects of the whole step, over all processes."""
    return round(len(micro_batches[0].subject) / micro_batches[0].weight) if micro_batches else 0


def _not_finite(event: Step, files: tuple[str, ...], value: float) -> str:
    return (
        f"the loss of step {event.step} is {value} (images: {', '.join(files[:8])}). No weight was "
        "changed by it; the last checkpoint is good. Lower optimizer.learning_rate (now "
        f"{event.learning_rate:g}), or set run.precision to bf16 or fp32; then: konomi resume."
    )

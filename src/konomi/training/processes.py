"""The processes that train together. One process alone pays nothing for it."""

import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, distributed

from konomi.errors import RunError
from konomi.hardware.device import choose_device


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among its peers, as Accelerate finds it (`accelerate launch`, torchrun)."""

    rank: int
    world: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Until all are here."""
        if self.world > 1:
            distributed.barrier()

    def leave(self) -> None:
        """Part from the others. Python must not end while the group's own threads still run."""
        if self.world > 1 and distributed.is_initialized():
            distributed.destroy_process_group()

    def sum_gradients(self, parameters: Iterable[Tensor], extra: Tensor) -> Tensor:
        """Sum the gradients over all processes, in place, in one message; `extra` (1-D) rides
        along and is returned.

        Every process contributes its share of the step's mean, so the sum is the mean over the
        whole batch. Raises RunError when a peer is gone.
        """
        if self.world == 1:
            return extra
        owners = list(parameters)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in owners]
        flat = torch.cat([g.reshape(-1) for g in gradients] + [extra.to(gradients[0].dtype)])
        try:
            distributed.all_reduce(flat)
        except RuntimeError as broken:
            raise RunError(
                f"process {self.rank}: another training process is gone "
                f"({str(broken).splitlines()[0][:120]}). Start all of them again; the run goes on "
                "from its last checkpoint."
            ) from broken
        position = 0
        for parameter, gradient in zip(owners, gradients, strict=True):
            part = flat[position : position + gradient.numel()].view_as(gradient)
            parameter.grad = part.clone() if parameter.grad is None else gradient.copy_(part)
            position += gradient.numel()
        return flat[position:].to(extra.dtype)

    def agree(self, value: bool) -> bool:
        """True everywhere if it is true anywhere."""
        if self.world == 1:
            return value
        flag = torch.tensor([float(value)], device=self.device)
        distributed.all_reduce(flag)
        return bool(flag.item() > 0)


def _among_others(device: str) -> Processes:
    from accelerate import PartialState

    if device not in ("auto", "cpu", "cuda"):
        raise RunError(
            f"run.device is {device!r}; of several processes each finds its own: use auto, cpu or "
            "cuda."
        )
    local, cards = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if device == "cuda":
        choose_device(device)
    # Without this, each would take itself for the only one where there is no CUDA, and all write
    # to one folder.
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    if not on_cpu and local > cards:
        raise RunError(
            f"{local} processes were started here, and there are {cards} CUDA devices. Start "
            f"{cards} (--nproc-per-node {cards}), or set run.device = cpu."
        )
    state = PartialState(cpu=on_cpu)
    world = int(os.environ["WORLD_SIZE"])
    if state.num_processes != world:
        raise RunError(
            f"{world} processes were started, and they do not find each other. Start them with "
            "torchrun or accelerate launch, or start one."
        )
    return Processes(state.process_index, state.num_processes, state.device)


def find_processes(device: str = "auto") -> Processes:
    """Where this process runs. Raises RunError for a device this machine does not have."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return _among_others(device)
    return Processes(0, 1, choose_device(device))

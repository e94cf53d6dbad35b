"""The optimisers: well-kept libraries behind one function, and their state as plain tensors and numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from konomi.config.sections import OptimizerConfig
from konomi.errors import MissingExtraError, RunError
from konomi.methods.method import ParameterGroup
from konomi.training.adamw8bit import make_adamw8bit
from konomi.training.fused_adamw import FUSED_DEVICES, FusedAdamW

AnyOptimizer = Optimizer | FusedAdamW


def make_optimizer(groups: Sequence[ParameterGroup], config: OptimizerConfig, device: torch.device) -> AnyOptimizer:
    """An optimiser over the groups, each with its own learning rate. Raises MissingExtraError, RecipeError."""
    settings = [
        {
            "params": list(group.parameters.values()),
            "lr": group.learning_rate,
            "weight_decay": config.weight_decay if group.weight_decay is None else group.weight_decay,
        }
        for group in groups
    ]
    if config.kind == "adamw":
        # One kernel over all tensors: a third of the time of torch's plain loop on the CPU.
        if device.type in FUSED_DEVICES:
            return FusedAdamW(settings, betas=config.betas)
        return torch.optim.AdamW(settings, betas=config.betas)
    if config.kind == "adafactor":
        return torch.optim.Adafactor(settings)
    return _optional_optimizer(settings, config, device)


def _optional_optimizer(settings: list[dict[str, Any]], config: OptimizerConfig, device: torch.device) -> Optimizer:
    """The optimisers of `pip install 'konomi[optimizers]'`, each imported only when it is asked for."""
    made: Optimizer
    try:
        if config.kind == "adamw8bit":
            made = make_adamw8bit(settings, config.betas, device)
        elif config.kind == "lion":
            from lion_pytorch import Lion

            made = Lion(settings, betas=config.betas)
        elif config.kind == "prodigy":
            from prodigyopt import Prodigy

            made = Prodigy(settings, lr=1.0, betas=config.betas, safeguard_warmup=config.warmup > 0)
        else:
            from schedulefree import AdamWScheduleFree

            made = AdamWScheduleFree(settings, betas=config.betas)
    except ModuleNotFoundError as missing:
        package = {"adamw8bit": "bitsandbytes", "lion": "lion-pytorch", "prodigy": "prodigyopt"}
        name = package.get(config.kind, "schedulefree")
        raise MissingExtraError(name, "optimizers", f"optimizer.kind = {config.kind!r}") from missing
    return made


def set_training(optimizer: AnyOptimizer, training: bool) -> None:
    """Schedule-free optimisers keep other weights for training than for use (Defazio et al. 2024, section 3)."""
    switch = getattr(optimizer, "train" if training else "eval", None)
    if switch is not None:
        switch()


def optimizer_state(optimizer: AnyOptimizer, names: Mapping[Tensor, str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by `PARAMETER/KEY`, and everything else (numbers of parameters and groups) for JSON."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {"parameters": {}, "groups": []}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"{names[parameter]}/{key}"] = value.detach()
            elif value is not None:
                numbers["parameters"].setdefault(names[parameter], {})[key] = value
    for index, group in enumerate(optimizer.param_groups):
        plain: dict[str, Any] = {}
        for key, value in group.items():
            if isinstance(value, Tensor):
                tensors[f"group-{index}/{key}"] = value.detach()
            elif isinstance(value, bool | int | float | str):
                plain[key] = value
        numbers["groups"].append(plain)
    return tensors, numbers


def restore_optimizer(
    optimizer: AnyOptimizer,
    names: Mapping[Tensor, str],
    tensors: Mapping[str, Tensor],
    numbers: Mapping[str, Any],
) -> None:
    """Put back what `optimizer_state` took. Raises RunError if the groups differ."""
    if len(numbers["groups"]) != len(optimizer.param_groups):
        raise RunError("the checkpoint's optimiser has other parameter groups than this recipe's.")
    by_name = {name: parameter for parameter, name in names.items()}
    for name, tensor in tensors.items():
        owner, key = name.rsplit("/", 1)
        if owner in by_name:
            parameter = by_name[owner]
            # Step counters of fused optimisers live on the CPU or the device as the optimiser itself put them.
            place = parameter.device if tensor.ndim or tensor.dtype != torch.float32 else _counter_device(optimizer)
            optimizer.state[parameter][key] = tensor.to(place, copy=True)
        else:
            group = optimizer.param_groups[int(owner.removeprefix("group-"))]
            group[key] = tensor.to(group["params"][0].device, copy=True)
    for name, values in numbers["parameters"].items():
        optimizer.state[by_name[name]].update(values)
    for group, values in zip(optimizer.param_groups, numbers["groups"], strict=True):
        rate, decay = group["lr"], group["weight_decay"]
        group.update(values)
        # The recipe decides these; the check against the checkpoint's recipe has already been made.
        group["lr"], group["weight_decay"] = rate, decay


def _counter_device(optimizer: AnyOptimizer) -> torch.device:
    group = optimizer.param_groups[0]
    return group["params"][0].device if group.get("fused") else torch.device("cpu")

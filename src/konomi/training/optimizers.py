"""The optimisers: well-kept libraries behind one function, and their state as plain tensors and
numbers.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from konomi.config.sections import OptimizerConfig
from konomi.errors import MissingExtraError, RunError
from konomi.methods.method import ParameterGroup
from konomi.training.adafactor import Adafactor
from konomi.training.adamw8bit import make_adamw8bit
from konomi.training.fused_adamw import FUSED_DEVICES, FusedAdamW
from konomi.training.prodigy import make_prodigy
from konomi.training.state_check import same_kind

AnyOptimizer = Optimizer | FusedAdamW | Adafactor

_LIKE_PARAMETER = ("exp_avg", "exp_avg_sq", "z")
"""Names of moments that have their parameter's shape in every optimiser that has them."""


def betas_of(config: OptimizerConfig) -> tuple[float, float]:
    """The memory of the moments, also where the recipe leaves it open (Lion: Chen et al. 2023,
    section 4.1).
    """
    return config.betas or ((0.9, 0.99) if config.kind == "lion" else (0.9, 0.999))


def make_optimizer(
    groups: Sequence[ParameterGroup], config: OptimizerConfig, device: torch.device
) -> AnyOptimizer:
    """An optimiser over the groups, each with its own learning rate. Raises MissingExtraError,
    RecipeError.
    """
    settings = [
        {
            "params": list(group.parameters.values()),
            "lr": group.learning_rate,
            "weight_decay": config.weight_decay
            if group.weight_decay is None
            else group.weight_decay,
        }
        for group in groups
    ]
    betas = betas_of(config)
    if config.kind == "adamw":
        # One kernel over all tensors: a third of the time of torch's plain loop on the CPU.
        if device.type in FUSED_DEVICES:
            return FusedAdamW(settings, betas=betas)
        return torch.optim.AdamW(settings, betas=betas)
    if config.kind == "adafactor":
        return Adafactor(settings)
    return _optional_optimizer(settings, config, betas, device)


def _optional_optimizer(
    settings: list[dict[str, Any]],
    config: OptimizerConfig,
    betas: tuple[float, float],
    device: torch.device,
) -> Optimizer:
    """The optimisers of `pip install 'konomi[optimizers]'`, each imported only when it is asked
    for.
    """
    made: Optimizer
    try:
        if config.kind == "adamw8bit":
            made = make_adamw8bit(settings, betas, device)
        elif config.kind == "lion":
            from lion_pytorch import Lion

            made = Lion(settings, betas=betas)
        elif config.kind == "prodigy":
            made = make_prodigy(settings, betas, warmup=config.warmup > 0)
        else:
            from schedulefree import AdamWScheduleFree

            made = AdamWScheduleFree(settings, betas=betas)
    except ModuleNotFoundError as missing:
        package = {"adamw8bit": "bitsandbytes", "lion": "lion-pytorch", "prodigy": "prodigyopt"}
        name = package.get(config.kind, "schedulefree")
        raise MissingExtraError(
            name, "optimizers", f"optimizer.kind = {config.kind!r}"
        ) from missing
    return made


def rate_in_use(optimizer: AnyOptimizer) -> float:
    """The first group's learning rate in the last step; Prodigy's is a factor of the step size
    that it found.
    """
    group = optimizer.param_groups[0]
    return float(group["lr"]) * float(group.get("d", 1.0))


def set_training(optimizer: AnyOptimizer, training: bool) -> None:
    """Schedule-free optimisers keep other weights for training than for use (Defazio et al. 2024,
    section 3).
    """
    switch = getattr(optimizer, "train" if training else "eval", None)
    if switch is not None:
        switch()


def optimizer_state(
    optimizer: AnyOptimizer, names: Mapping[Tensor, str]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by `PARAMETER/KEY`, and everything else (numbers of parameters and groups) for
    JSON.
    """
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
    """Put back what `optimizer_state` took. Raises RunError if it is the state of another
    optimiser.
    """
    if len(numbers["groups"]) != len(optimizer.param_groups):
        raise RunError("the checkpoint's optimiser has other parameter groups than this recipe's.")
    by_name = {name: parameter for parameter, name in names.items()}
    owners = {*by_name, *(f"group-{index}" for index in range(len(optimizer.param_groups)))}
    if strange := [name for name in tensors if name.rpartition("/")[0] not in owners]:
        raise RunError(
            f"the checkpoint's optimiser knows {strange[0]}, which this recipe does not train."
        )
    if strange := [name for name in numbers["parameters"] if name not in by_name]:
        raise RunError(
            f"the checkpoint's optimiser knows {strange[0]}, which this recipe does not train."
        )
    for name, tensor in tensors.items():
        owner, key = name.rsplit("/", 1)
        if key in _LIKE_PARAMETER and owner in by_name and tensor.shape != by_name[owner].shape:
            raise RunError(
                f"the checkpoint's {name} has the shape {list(tensor.shape)}, which its parameter "
                "has not."
            )
        if owner in by_name:
            parameter = by_name[owner]
            # Step counters of fused optimisers live on the CPU or the device as the optimiser
            # itself put them.
            place = (
                parameter.device
                if tensor.ndim or tensor.dtype != torch.float32
                else _counter_device(optimizer)
            )
            optimizer.state[parameter][key] = tensor.to(place, copy=True)
        else:
            group = optimizer.param_groups[int(owner.removeprefix("group-"))]
            group[key] = tensor.to(group["params"][0].device, copy=True)
    for name, values in numbers["parameters"].items():
        optimizer.state[by_name[name]].update(values)
    for group, values in zip(optimizer.param_groups, numbers["groups"], strict=True):
        rate, decay = group["lr"], group["weight_decay"]
        for key, value in values.items():
            if key in group and group[key] is not None and not same_kind(group[key], value):
                raise RunError(
                    f"the checkpoint's optimiser has {key} = {value!r}, which is not a setting of "
                    "it."
                )
        group.update(values)
        # The recipe decides these; the check against the checkpoint's recipe has already been made.
        group["lr"], group["weight_decay"] = rate, decay


def _counter_device(optimizer: AnyOptimizer) -> torch.device:
    group = optimizer.param_groups[0]
    return group["params"][0].device if group.get("fused") else torch.device("cpu")

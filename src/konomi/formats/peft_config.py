"""The settings of a PEFT LoRA that decide its scale, in `adapter_config.json` or diffusers' `lora_adapter_metadata`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from konomi.adapters.adapter import Adapter, LayerUpdate, LowRank, axis_of_magnitude
from konomi.errors import FileFormatError
from konomi.formats.family import family_of


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """Scale settings; names as PEFT has them."""

    lora_alpha: float
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    use_rslora: bool = False

    def alpha_of(self, path: str, rank: int) -> float:
        """Numerator of the scale over the rank; PEFT's pattern is a regular expression over the end of the path."""
        alpha = self.lora_alpha
        for pattern, value in self.alpha_pattern.items():
            if _matches(pattern, path):
                alpha = value
                break
        return alpha * math.sqrt(rank) if self.use_rslora else alpha


def read_config(table: Mapping[str, Any], where: str) -> PeftConfig:
    """From a parsed `adapter_config.json`. Raises FileFormatError for another kind than LoRA or improper values."""
    kind = table.get("peft_type", "LORA")
    if kind != "LORA":
        raise FileFormatError(f"{where}: PEFT type {str(kind)[:40]} is not read; only LORA is.")
    if table.get("bias", "none") != "none" or table.get("modules_to_save") or table.get("fan_in_fan_out"):
        raise FileFormatError(f"{where}: trained biases, modules_to_save and fan_in_fan_out are not read.")
    rank, alpha, pattern = table.get("r", 8), table.get("lora_alpha"), table.get("alpha_pattern") or {}
    alpha = rank if alpha is None else alpha
    if not _is_number(alpha) or not isinstance(pattern, dict) or not all(map(_is_number, pattern.values())):
        raise FileFormatError(f"{where}: lora_alpha and alpha_pattern must be numbers.")
    return PeftConfig(float(alpha), pattern, bool(table.get("use_rslora")))


def peft_layer(update: LayerUpdate, key: str, where: str) -> LowRank:
    """A layer as PEFT can hold it: no Tucker core (multiplied into `down`, which is exact), DoRA norms per output.

    Raises FileFormatError for kinds that are not low rank and for DoRA norms per input, which need the base's weights.
    """
    if not isinstance(update, LowRank):
        raise FileFormatError(
            f"{where}: {key} is a {type(update).__name__} layer, which this format cannot hold. "
            "Convert with --to kohya."
        )
    down = update.down
    if update.mid is not None:
        flat = down.reshape(down.shape[0], -1).double()
        down = torch.einsum("rskl,si->rikl", update.mid.double(), flat).to(down.dtype)
    magnitude = update.magnitude
    if magnitude is not None and axis_of_magnitude(magnitude) == "input":
        raise FileFormatError(
            f"{where}: {key} has DoRA norms per input; this format wants them per output, and changing that needs the "
            "base model. Convert with --to kohya."
        )
    return LowRank(down, update.up, update.alpha, None, magnitude)


def peft_tensors(layers: Mapping[str, LowRank], family: str) -> dict[str, Tensor]:
    """Layers as PEFT names them, under their canonical paths; convolutions are [R, I, K, K] and [O, R, 1, 1]."""
    tensors = {}
    for path, update in layers.items():
        down, up = update.down, update.up
        if down.dim() == 2 and is_convolution(path, family):
            down = down[:, :, None, None]
        elif down.dim() == 4 and not is_convolution(path, family) and down.shape[2:].numel() == 1:
            down = down[:, :, 0, 0]
        up = up.reshape(*up.shape[:2], 1, 1) if down.dim() == 4 else up.reshape(up.shape[0], up.shape[1])
        tensors[f"{path}.lora_A.weight"] = down
        tensors[f"{path}.lora_B.weight"] = up
        if update.magnitude is not None:
            flat = update.magnitude.reshape(-1)
            tensors[f"{path}.lora_magnitude_vector"] = flat if down.dim() == 2 else flat.reshape(1, -1, 1, 1)
    return tensors


def layer_from_peft(down: Tensor, up: Tensor, magnitude: Tensor | None, alpha: float) -> LowRank:
    """The way back; PEFT's flat norms get the axes of the weight they scale."""
    if magnitude is not None:
        magnitude = magnitude.reshape(-1, *([1] * (down.dim() - 1)))
    return LowRank(down, up, alpha, None, magnitude)


def is_convolution(path: str, family: str) -> bool:
    """Whether a module of the denoiser is a convolution, by its name; the projections of SD1's transformers are."""
    last = path.rpartition(".")[2]
    if last in ("proj_in", "proj_out"):
        return family == "sd1"
    return last in ("conv", "conv1", "conv2", "conv_in", "conv_out", "conv_shortcut")


def split_parts(adapter: Adapter, where: str) -> dict[str, dict[str, LowRank]]:
    """Part -> module path -> layer, all of them low rank."""
    parts: dict[str, dict[str, LowRank]] = {}
    for key, update in adapter.layers.items():
        part, _, path = key.partition(".")
        parts.setdefault(part, {})[path] = peft_layer(update, key, where)
    return parts


def named(adapter: Adapter) -> Adapter:
    """The adapter with its family filled in."""
    return Adapter(adapter.layers, adapter.embeddings, adapter.metadata, family_of(adapter), adapter.name)


def _matches(pattern: str, path: str) -> bool:
    if path == pattern or path.endswith(f".{pattern}"):
        return True
    # A stranger's regular expression may take forever: repeated groups and many repetitions are the way to that.
    if len(pattern) > 200 or re.search(r"\)[*+{]", pattern) or len(re.findall(r"[*+{]", pattern)) > 3:
        raise FileFormatError(f"alpha_pattern {pattern[:80]!r} is too complicated; konomi reads module paths.")
    try:
        return re.match(rf"(.*\.)?({pattern})$", path) is not None
    except re.error as error:
        raise FileFormatError(f"alpha_pattern {pattern[:80]!r} is not a regular expression ({error}).") from error


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

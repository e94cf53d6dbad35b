"""The settings of a PEFT LoRA that decide its scale, in `adapter_config.json` or diffusers'
`lora_adapter_metadata`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from konomi.adapters.adapter import Adapter
from konomi.adapters.kinds import KINDS, LayerUpdate, LowRank
from konomi.adapters.kinds.magnitude import axis_of_magnitude
from konomi.errors import FileFormatError
from konomi.families.foreign_names import is_convolution
from konomi.formats.family import family_of
from konomi.formats.module_patterns import SIGNS, PatternError, matches

SUBTRACTED = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Beginnings of `init_lora_weights` that take something off the base's own weights before
training."""
_TRAINING_ONLY = frozenset((
    "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config",
    "exclude_modules",
    "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform", "loftq_config",
    "lora_alpha",
    "lora_bias", "lora_dropout", "lora_ga_config", "megatron_core", "peft_type", "peft_version",
    "qalora_group_size",
    "r", "alpha_pattern", "rank_pattern", "revision", "runtime_config", "target_modules",
    "task_type", "use_dora",
    "use_rslora", "velora_config", "bias", "modules_to_save", "fan_in_fan_out", "name",
    "adapter_name",
))  # fmt: skip
"""Fields that are read here, or that say only how the adapter was trained and where it sits, which
its tensors show."""
_CHANGING = {
    "alora_invocation_tokens": "an aLoRA acts after certain tokens only",
    "arrow_config": "Arrow chooses among several adapters token by token",
    "kasa_config": "KaSA takes singular values off the base",
    "layer_replication": "it belongs to a base with layers repeated",
    "megatron_config": "it belongs to a base cut for several devices",
    "monteclora_config": "MonteCLoRA samples its weights",
    "target_parameters": "it changes bare parameters, not layers",
    "trainable_token_indices": "it changes single rows of the token table",
    "use_bdlora": "its matrices are block-diagonal",
    "use_qalora": "it reads its input in groups (QA-LoRA)",
}
"""Fields that change what the tensors mean, where they are set."""
_MOST_STEPS = 10_000_000
_MOST_NAMES = 5_000_000
_MOST_PATTERNS = 2_000
_LARGEST = 1e30


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """Scale settings; names as PEFT has them."""

    lora_alpha: float | None
    """None: the rank of each layer, so that the scale is 1."""
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    use_rslora: bool = False
    where: str = ""
    """The file that says so."""
    init: str = ""
    """`init_lora_weights`, where it took something off the base: the tensors fit what was left of
    it."""
    ignored: Mapping[str, str] = field(default_factory=dict)
    """Fields without effect here -> why."""
    rank: int | None = None
    """`r`, where it is said; tensors tell the rank of each layer all the same."""
    rank_pattern: Mapping[str, int] = field(default_factory=dict)

    def alpha_of(self, path: str, rank: int) -> float:
        """Numerator of the scale over the rank; PEFT's pattern is a regular expression over the
        end of the path.
        """
        alpha = float(rank) if self.lora_alpha is None else self.lora_alpha
        for pattern, value in self.alpha_pattern.items():
            try:
                if matches(pattern, path):
                    alpha = float(value)
                    break
            except PatternError as error:
                raise FileFormatError(
                    f"{self.where}: alpha_pattern {pattern[:80]!r} is not a regular expression "
                    f"known here: it {error}."
                ) from error
        return alpha * math.sqrt(rank) if self.use_rslora else alpha

    def contradictions(self, ranks: Mapping[str, int]) -> tuple[str, ...]:
        """A sentence where `r` and `rank_pattern` are not the tensors' ranks, which PEFT does not
        load, and one where a pattern means no layer. `ranks`: module path -> the tensors'.
        """
        if _too_many(self.rank_pattern, ranks):
            return (
                (
                    f"rank_pattern has {len(self.rank_pattern)} patterns, too many to compare with "
                    "the tensors."
                ),
            )
        try:
            wrong = {
                path: declared
                for path, rank in ranks.items()
                if (declared := self._declared_rank(path)) not in (None, rank)
            }
            idle = [
                f"{name} {pattern!r}"
                for name, table in (
                    ("rank_pattern", self.rank_pattern),
                    ("alpha_pattern", self.alpha_pattern),
                )
                for pattern in table
                if not any(matches(pattern, path) for path in ranks)
            ]
        except PatternError as error:
            return (f"rank_pattern cannot be compared with the tensors: a pattern of it {error}.",)
        found = []
        if wrong:
            path, declared = next(iter(wrong.items()))
            others = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            scale = self.alpha_of(path, ranks[path]) / ranks[path]
            found.append(
                f"the settings say rank {declared} for {path}{others}, the tensors have "
                f"{ranks[path]}: read with the tensors' rank, at the scale {scale:g}. PEFT "
                "does not load it; correct r or rank_pattern."
            )
        found += (
            [f"{_first(idle)} is the name of no layer here, so it changes nothing."] if idle else []
        )
        return tuple(found)

    def _declared_rank(self, path: str) -> int | None:
        return next(
            (rank for pattern, rank in self.rank_pattern.items() if matches(pattern, path)),
            self.rank,
        )

    def check_patterns(self, paths: Collection[str]) -> None:
        """Raises FileFormatError where matching all patterns with all paths would take for ever."""
        if _too_many(self.alpha_pattern, paths):
            raise FileFormatError(
                f"{self.where}: alpha_pattern has {len(self.alpha_pattern)} patterns for "
                f"{len(paths)} layers, too much to match. Write module paths instead."
            )


def _too_many(patterns: Collection[str], paths: Collection[str]) -> bool:
    cost = sum(map(len, patterns)) * sum(map(len, paths))
    real = sum(1 for pattern in patterns if set(pattern) & SIGNS)
    too_many = real > _MOST_PATTERNS or (real > 0 and cost > _MOST_STEPS)
    return len(patterns) * len(paths) > _MOST_NAMES or too_many


def _first(names: Sequence[str]) -> str:
    return names[0][:120] if len(names) == 1 else f"{names[0][:120]} and {len(names) - 1} more:"


def _ranks(table: Mapping[str, Any]) -> tuple[int | None, dict[str, int], dict[str, str]]:
    """`r`, `rank_pattern`, and which of them are of a wrong type, with the reason: nothing depends
    on them.
    """
    rank, pattern = table.get("r"), table.get("rank_pattern") or {}
    wrong = {}
    if not isinstance(rank, int | None) or isinstance(rank, bool):
        rank, wrong["r"] = None, "it is not a whole number; the tensors tell the rank"
    if not isinstance(pattern, dict) or not all(type(value) is int for value in pattern.values()):
        pattern, wrong["rank_pattern"] = (
            {},
            "it is not a table of whole numbers; the tensors tell the rank",
        )
    return rank, pattern, wrong


def read_config(table: Mapping[str, Any], where: str) -> PeftConfig:
    """From a parsed `adapter_config.json`. Raises FileFormatError for another kind than LoRA,
    improper values, and settings under which the tensors mean something that konomi does not do.
    """
    wanted = LowRank.about.peft_type
    declared = table.get("peft_type") or wanted
    if declared != wanted:
        known = next(
            (
                f" konomi reads {kind.about.name} from LyCORIS' files."
                for kind in KINDS
                if kind.about.peft_type == declared
            ),
            "",
        )
        others = [kind.about.peft_type for kind in KINDS if kind.about.peft is not None]
        raise FileFormatError(
            f"{where}: PEFT type {str(declared)[:40]} is not read; "
            f"{', '.join([wanted, *others])} are.{known}"
        )
    for name, why in _CHANGING.items():
        if table.get(name):
            raise FileFormatError(f"{where}: {name} is set, and konomi does not do that: {why}.")
    for name, usual in (("bias", "none"), ("modules_to_save", None), ("fan_in_fan_out", False)):
        value = table.get(name)
        if value and value != usual:
            what = {
                "bias": "trained biases are not read",
                "modules_to_save": "whole modules are not read",
            }
            declared = what.get(name, "weights the other way round are not read")
            raise FileFormatError(f"{where}: {name} is {str(value)[:80]}: {declared}.")
    # PEFT's own default, whatever the rank.
    alpha, pattern = table.get("lora_alpha", 8), table.get("alpha_pattern") or {}
    if alpha is not None and not _is_number(alpha):
        shown = str(alpha)[:40] if not isinstance(alpha, int) else "out of all bounds"
        raise FileFormatError(
            f"{where}: lora_alpha and alpha_pattern must be numbers; lora_alpha is {shown!r}."
        )
    if not isinstance(pattern, dict) or not all(map(_is_number, pattern.values())):
        raise FileFormatError(
            f"{where}: lora_alpha and alpha_pattern must be numbers, the latter a table of them."
        )
    for name in ("use_rslora", "use_dora", "lora_bias"):
        if not isinstance(table.get(name), bool | None):
            raise FileFormatError(
                f"{where}: {name} is {str(table[name])[:40]!r}; it must be true or false."
            )
    init = table.get("init_lora_weights")
    init = init if isinstance(init, str) and init.lower().startswith(SUBTRACTED) else ""
    rank, rank_pattern, wrong = _ranks(table)
    ignored = wrong | {
        name: "a setting that konomi does not know"
        for name, value in table.items()
        if value and name not in _TRAINING_ONLY and name not in _CHANGING
    }
    return PeftConfig(
        None if alpha is None else float(alpha),
        pattern,
        bool(table.get("use_rslora")),
        where,
        init,
        ignored,
        rank,
        rank_pattern,
    )


def peft_layer(update: LayerUpdate, key: str, where: str) -> LowRank:
    """A layer as PEFT can hold it: no Tucker core (multiplied into `down`, which is exact), DoRA
    norms per output.

    Raises FileFormatError for kinds that are not low rank and for DoRA norms per input, which need
    the base's weights.
    """
    low_rank = update.as_low_rank()
    if low_rank is None:
        raise FileFormatError(
            f"{where}: {key} is a layer of kind {update.about.name}, which this format cannot "
            "hold. Convert with --to kohya."
        )
    down = low_rank.down
    if low_rank.mid is not None:
        flat = down.reshape(down.shape[0], -1).double()
        down = torch.einsum("rskl,si->rikl", low_rank.mid.double(), flat).to(down.dtype)
    magnitude = low_rank.magnitude
    if magnitude is not None and axis_of_magnitude(magnitude) == "input":
        raise FileFormatError(
            f"{where}: {key} has DoRA norms per input; this format wants them per output, and "
            "changing that needs the base model. Convert with --to kohya."
        )
    return LowRank(down, low_rank.up, low_rank.alpha, None, magnitude, low_rank.bias)


def peft_tensors(layers: Mapping[str, LowRank], family: str) -> dict[str, Tensor]:
    """Layers as PEFT names them, under their canonical paths; convolutions are [R, I, K, K] and
    [O, R, 1, 1].
    """
    tensors = {}
    for path, update in layers.items():
        down, up = update.down, update.up
        if down.dim() == 2 and is_convolution(path, family):
            down = down[:, :, None, None]
        elif down.dim() == 4 and not is_convolution(path, family) and down.shape[2:].numel() == 1:
            down = down[:, :, 0, 0]
        up = (
            up.reshape(*up.shape[:2], 1, 1)
            if down.dim() == 4
            else up.reshape(up.shape[0], up.shape[1])
        )
        tensors[f"{path}.lora_A.weight"] = down
        tensors[f"{path}.lora_B.weight"] = up
        if update.bias is not None:
            # PEFT multiplies it by the scale when it loads it.
            if not update.scale:
                raise FileFormatError(
                    f"{path}: changes a bias at scale 0, which this format cannot hold."
                )
            tensors[f"{path}.lora_B.bias"] = update.bias / update.scale
        if update.magnitude is not None:
            flat = update.magnitude.reshape(-1)
            tensors[f"{path}.lora_magnitude_vector"] = (
                flat if down.dim() == 2 else flat.reshape(1, -1, 1, 1)
            )
    return tensors


def layer_from_peft(layer: LowRank, magnitude: Tensor | None, alpha: float) -> LowRank:
    """The way back: a layer as read with another alpha; PEFT's flat norms get the axes of the
    weight they scale.
    """
    if magnitude is not None:
        magnitude = magnitude.reshape(-1, *([1] * (layer.down.dim() - 1)))
    # As read, the bias was scaled by the layer's own alpha.
    bias = None if layer.bias is None else layer.bias * (alpha / layer.alpha)
    return LowRank(layer.down, layer.up, alpha, None, magnitude, bias)


def split_parts(adapter: Adapter, where: str) -> dict[str, dict[str, LowRank]]:
    """Part -> module path -> layer, all of them low rank."""
    parts: dict[str, dict[str, LowRank]] = {}
    for key, update in adapter.layers.items():
        part, _, path = key.partition(".")
        parts.setdefault(part, {})[path] = peft_layer(update, key, where)
    return parts


def named(adapter: Adapter) -> Adapter:
    """The adapter with its family filled in."""
    return Adapter(
        adapter.layers, adapter.embeddings, adapter.metadata, family_of(adapter), adapter.name
    )


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    # A whole number may be larger than any float.
    return abs(value) < _LARGEST

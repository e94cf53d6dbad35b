"""What a single file says of its prediction and of its noise process, and how konomi's own files
say it.

A table of tensors has no place for such facts, so NoobAI's authors put empty tensors into it:
`v_pred`, and `ztsnr` for a process that ends in pure noise. ComfyUI, Forge and others read them,
and nothing else, in most files.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from konomi.diffusion.noise import Prediction
from konomi.families.family import Family
from konomi.families.recognition import prediction_of_word
from konomi.models.noise_config import prediction_of
from konomi.models.tensor_files import TensorFile

V_MARKER = "v_pred"
ZERO_SNR_MARKER = "ztsnr"


def marker_tensors(prediction: Prediction, *, zero_terminal_snr: bool) -> dict[str, Tensor]:
    """The empty tensors that mark a file. None for epsilon, which every tool assumes."""
    names = [V_MARKER] if prediction == "v" else []
    names += [ZERO_SNR_MARKER] if zero_terminal_snr else []
    return {name: torch.zeros(0) for name in names}


def default_prediction(family: Family, in_channels: int) -> Prediction:
    """What is assumed where nothing tells: the family's first, but epsilon for inpainting models,
    as published.
    """
    inpainting = in_channels > family.vae.latent_channels
    return "epsilon" if inpainting and "epsilon" in family.predictions else family.predictions[0]


def declared_prediction(
    file: TensorFile, family: Family, declared: Mapping[str, Mapping[str, Any]]
) -> Prediction | None:
    """From marker tensors, konomi's or modelspec metadata, a `.yaml` of the same name, or the
    training step.

    The marker is first: other tools go by nothing else, and metadata is often left over from a
    merge's first part.
    """
    if V_MARKER in file.shapes:
        return "v"
    if "prediction_type" in declared.get("scheduler", {}):
        return prediction_of(declared["scheduler"])
    word = file.metadata.get("modelspec.prediction_type", "").lower()
    if word:
        return "v" if word.startswith("v") else "epsilon"
    architecture = file.metadata.get("modelspec.architecture", "").partition("/")[0]
    if published := prediction_of_word(architecture):
        return published
    beside = _parameterization(file.path)
    if beside is not None:
        return beside
    steps = file.global_step
    return next(
        (variant.prediction for variant in family.variants if steps in variant.global_steps), None
    )


def _parameterization(path: Path) -> Prediction | None:
    """`parameterization: "v"` in the yaml beside a checkpoint, read as plain text."""
    for ending in (".yaml", ".yml"):
        config = path.with_suffix(ending)
        if config.is_file() and config.stat().st_size < 1 << 20:
            text = config.read_text(encoding="utf-8", errors="replace")
            match = re.search(r"^\s*parameterization:\s*[\"']?(\w+)", text, re.MULTILINE)
            return "v" if match is not None and match[1] == "v" else "epsilon"
    return None

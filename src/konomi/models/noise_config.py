"""The noise process that a diffusers scheduler config describes."""

from collections.abc import Mapping
from typing import Any

import torch

from konomi.diffusion.flow import FlowMatching
from konomi.diffusion.noise import (
    NoiseSchedule,
    Prediction,
    scaled_linear_schedule,
    zero_terminal_snr,
)
from konomi.diffusion.process import Process
from konomi.diffusion.variance_preserving import VariancePreserving
from konomi.errors import ModelError
from konomi.families import published_config
from konomi.families.family import Family

_PREDICTIONS: dict[str, Prediction] = {
    "epsilon": "epsilon",
    "v_prediction": "v",
    "sample": "sample",
}
_FLOW = "FlowMatch"
_OTHER_PROCESS = ("EDM", "KarrasVe", "ScoreSde", "VQDiffusion", "RePaint", "UnCLIP")
"""How the names of diffusers' schedulers begin whose noise process konomi does not know."""


def noise_process(config: Mapping[str, Any], prediction: Prediction) -> Process:
    """The process of a diffusers scheduler config. Raises ModelError for one konomi does not
    know.
    """
    if prediction != "flow":
        return VariancePreserving(noise_schedule(config), prediction)
    unknown = [
        name
        for name in ("use_dynamic_shifting", "use_karras_sigmas", "invert_sigmas")
        if config.get(name)
    ]
    shift = config.get("shift", 1.0)
    if unknown:
        raise ModelError(f"the scheduler's config has {unknown[0]}, which konomi does not know.")
    if not isinstance(shift, int | float) or not 0 < shift <= 100:
        raise ModelError(
            f"the scheduler's config has shift = {str(shift)[:40]}, which no model of this kind "
            "has."
        )
    return FlowMatching(shift=float(shift))


def noise_schedule(config: Mapping[str, Any]) -> NoiseSchedule:
    """Raises ModelError for a process konomi does not know."""
    kind = config.get("beta_schedule", "scaled_linear")
    start, end = float(config.get("beta_start", 0.00085)), float(config.get("beta_end", 0.012))
    steps = int(config.get("num_train_timesteps", 1000))
    if not 0 < start < 1 or not 0 < end < 1 or not 0 < steps <= 100_000:
        raise ModelError(
            f"the scheduler's config is not a noise process: betas {start} to {end} in {steps} "
            "steps."
        )
    if config.get("trained_betas") is not None:
        betas = torch.tensor(config["trained_betas"], dtype=torch.float32)
        schedule = NoiseSchedule(torch.cumprod(1 - betas, dim=0))
    elif kind == "scaled_linear":
        schedule = scaled_linear_schedule(start, end, steps)
    elif kind == "linear":
        schedule = NoiseSchedule(
            torch.cumprod(1 - torch.linspace(start, end, steps, dtype=torch.float32), dim=0)
        )
    else:
        raise ModelError(
            f"the scheduler's config has the noise process {kind!r}, which konomi does not know."
        )
    return zero_terminal_snr(schedule) if config.get("rescale_betas_zero_snr") else schedule


def with_zero_terminal_snr(config: Mapping[str, Any]) -> dict[str, Any]:
    """A scheduler config whose process ends in pure noise and is sampled from there (Lin et al.
    2023, section 3.3).

    diffusers' PNDM cannot do either, so its place is taken by DDIM.
    """
    changed = {**config, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    if config.get("_class_name", "PNDMScheduler") == "PNDMScheduler":
        changed.pop("skip_prk_steps", None)
        changed |= {
            "_class_name": "DDIMScheduler",
            "set_alpha_to_one": bool(config.get("set_alpha_to_one", False)),
        }
    return changed


def published_scheduler(family: Family, *, zero_terminal_snr: bool) -> dict[str, Any]:
    """The family's, with a process that ends in pure noise where a base has that."""
    config = published_config(family, "scheduler")
    return with_zero_terminal_snr(config) if zero_terminal_snr else config


def prediction_for(
    config: Mapping[str, Any], family: Family, *, asked: Prediction | None
) -> Prediction:
    """What the denoiser of a family predicts, by its scheduler. Raises ModelError for one of
    another noise process than the family's.

    asked: a prediction that a user names in place of what the config says.
    """
    scheduler, flow = str(config.get("_class_name", "")), family.predictions == ("flow",)
    another = bool(scheduler) and scheduler.startswith(_FLOW) != flow
    if another or scheduler.startswith(_OTHER_PROCESS):
        raise ModelError(
            f"its scheduler is {scheduler}: another noise process than konomi trains and samples."
        )
    if not flow:
        return asked or prediction_of(config)
    if asked is not None:
        raise ModelError(
            f"{family.title} is trained by flow matching, for which there is one prediction: leave "
            "it out."
        )
    return "flow"


def with_prediction(config: Mapping[str, Any], prediction: Prediction) -> dict[str, Any]:
    """A scheduler config that says what the denoiser predicts; one of flow matching has no word
    for it.
    """
    if prediction == "flow":
        return dict(config)
    return {**config, "prediction_type": prediction_word(prediction)}


def prediction_of(config: Mapping[str, Any]) -> Prediction:
    """What a scheduler config says the denoiser answers."""
    word = config.get("prediction_type", "epsilon")
    if word not in _PREDICTIONS:
        raise ModelError(
            f"the scheduler's config has the prediction type {word!r}; known: "
            f"{', '.join(_PREDICTIONS)}."
        )
    return _PREDICTIONS[word]


def prediction_named(word: str) -> Prediction:
    """The prediction that a user names, by diffusers' word or by `v`. Raises ModelError naming the
    known words.
    """
    found = _PREDICTIONS.get("v_prediction" if word == "v" else word)
    if found is None:
        raise ModelError(f"prediction is {word!r}; known: {', '.join(_PREDICTIONS)}.")
    return found


def prediction_word(prediction: Prediction) -> str:
    """diffusers' word."""
    if prediction == "flow":
        return "flow_prediction"
    return "v_prediction" if prediction == "v" else prediction

"""The libraries' own models with the weights of ours: oracles for tests."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from konomi.models.clip_text import TextEncoder


def transformers_text(module: TextEncoder, config: Mapping[str, Any]) -> Any:
    """transformers' text encoder. Its parameters have the names of ours; without a projection it
    has a random one.
    """
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    known = {
        k: v
        for k, v in config.items()
        if k not in ("architectures", "auto_map") and not k.startswith("_")
    }
    theirs: Any = CLIPTextModelWithProjection(CLIPTextConfig(**known)).eval()
    left = theirs.load_state_dict(module.state_dict(), strict=False)
    assert not left.unexpected_keys
    assert set(left.missing_keys) <= {"text_projection.weight"}
    return theirs.to(next(module.parameters()).dtype)


def listed(module: nn.Module) -> list[tuple[str, torch.Size]]:
    """Names and shapes of parameters, in order."""
    return [(name, parameter.shape) for name, parameter in module.named_parameters()]


def assert_same_gradients(ours: nn.Module, theirs: nn.Module, *, but: str = "") -> None:
    """Bit for bit, of every parameter `but` one."""
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        if name != but:
            assert parameter.grad is not None, name
            assert torch.equal(parameter.grad, expected[name].grad), name


def diffusers_scheduler(
    name: str, prediction: str = "epsilon", *, zero_terminal_snr: bool = False
) -> Any:
    """diffusers' scheduler of a sampler, with Stable Diffusion's own numbers."""
    import diffusers

    config: dict[str, Any] = {
        "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "prediction_type": {"epsilon": "epsilon", "v": "v_prediction",
        "sample": "sample"}[prediction],
        "steps_offset": 1, "timestep_spacing": "leading" if name in ("ddim",
        "pndm") else "linspace",
    }  # fmt: skip
    if zero_terminal_snr:
        config |= {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True}
    if name == "ddim":
        return diffusers.DDIMScheduler(**config, clip_sample=False, set_alpha_to_one=False)
    if name == "pndm":
        return diffusers.PNDMScheduler(**config, skip_prk_steps=True, set_alpha_to_one=False)
    classes = {
        "euler": "EulerDiscreteScheduler", "euler_a": "EulerAncestralDiscreteScheduler",
        "heun": "HeunDiscreteScheduler", "lms": "LMSDiscreteScheduler",
        "unipc": "UniPCMultistepScheduler",
    }  # fmt: skip
    if name in classes:
        return getattr(diffusers, classes[name])(**config)
    return diffusers.DPMSolverMultistepScheduler(
        **config,
        use_karras_sigmas=name.endswith("_karras"),
        algorithm_type="sde-dpmsolver++" if "_sde" in name else "dpmsolver++",
    )

"""What a base's files hold and konomi does not use, in a line each: tensors of a single file,
settings of a folder.
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import torch

from konomi.diffusion.noise import NoiseSchedule
from konomi.errors import printable, shortened
from konomi.families.autoencoder import VAE_PREFIX
from konomi.families.family import Family
from konomi.models.architecture import ConfigRules, Configs
from konomi.models.prediction import V_MARKER, ZERO_SNR_MARKER
from konomi.models.tensor_files import TensorFile

_SCHEDULE = re.compile(
    r"(betas|alphas_cumprod(_prev)?|sqrt_\w+|log_one_minus_alphas_cumprod|posterior_\w+|lvlb_weights|logvar"
    r"|denoiser\.sigmas)"
)
"""Buffers of LDM's noise process, which follow from its settings."""
_BUFFER = re.compile(r"(.*\.)?(position_ids|attn_mask)")
_KEPT_BACK = ("logit_scale", "text_projection")
"""Of OpenCLIP, read by nothing here but written again for other tools."""
_KINDS: tuple[tuple[str, str], ...] = (
    (r"model_ema\.", "running averages of the UNet (model_ema)"),
    (
        r"lora_|.*\.lora_(up|down|A|B)\.|.*\.(hada|lokr)_",
        "a LoRA beside the model, which is not applied",
    ),
    (r"control_model\.", "a ControlNet (control_model)"),
    (rf"{VAE_PREFIX}loss\.", f"what trained the VAE ({VAE_PREFIX}loss)"),
    (r"(optimizer|state)\.", "an optimiser's state"),
)


def unused_tensors(
    file: TensorFile, family: Family, configs: Mapping[str, Any], used: Collection[str]
) -> list[str]:
    """A line that names the tensors of a single file that are neither `used` nor follow from
    others, or none.
    """
    left = [
        name for name in file.shapes if name not in used and not _expected(name, family, configs)
    ]
    if not left:
        return []
    kinds = Counter(_kind(name) for name in left)
    said = [f"{count} of {printable(kind)}" for kind, count in kinds.most_common(4)]
    rest = len(left) - sum(count for _, count in kinds.most_common(4))
    said += [f"{rest} more"] if rest else []
    return [f"{len(left)} tensors are not used: {', '.join(said)}."]


def other_schedule(file: TensorFile, schedule: NoiseSchedule) -> list[str]:
    """A line where the file's own `alphas_cumprod` are not those of the noise process in use."""
    if file.shapes.get("alphas_cumprod") is None:
        return []
    own = file.read(["alphas_cumprod"])["alphas_cumprod"]
    tolerance = 1e-4 if own.dtype in (torch.float32, torch.float64) else 1e-2
    if own.shape == schedule.alphas_cumprod.shape and bool(
        ((own.float() - schedule.alphas_cumprod).abs() < tolerance).all()
    ):
        return []
    return [
        "its alphas_cumprod are those of another noise process; the one that its kind of model has "
        "is used."
    ]


def unused_settings(rules: Mapping[str, ConfigRules], configs: Configs) -> list[str]:
    """A line for each config of a diffusers folder that says what is not applied."""
    lines = []
    for name, config in configs.items():
        known, neutral = rules[name].known, rules[name].neutral
        odd = [s for s in config if known is not None and s not in known and not s.startswith("_")]
        odd += [s for s, plain in neutral.items() if s in config and config[s] not in plain]
        if config.get("timestep_spacing") == "trailing" and not config.get(
            "rescale_betas_zero_snr"
        ):
            odd.append("timestep_spacing")
        if odd:
            said = ", ".join(f"{setting} = {shortened(config[setting], 40)}" for setting in odd[:6])
            more = f" and {len(odd) - 6} more" if len(odd) > 6 else ""
            lines.append(
                printable(f"the config of {name} has settings that are not used: {said}{more}.")
            )
    return lines


def _kind(name: str) -> str:
    for pattern, kind in _KINDS:
        if re.match(pattern, name):
            return kind
    head = name.split(".")
    # Numbers aside, what stands before the last name:
    # `cond_stage_model.model.transformer.resblocks.24`.
    return ".".join(head[: max(1, min(len(head) - 1, 5))])[:80]


def _expected(name: str, family: Family, configs: Mapping[str, Any]) -> bool:
    """Whether a tensor that no module takes tells nothing that is lost."""
    if name in (V_MARKER, ZERO_SNR_MARKER) or _SCHEDULE.fullmatch(name) or _BUFFER.fullmatch(name):
        return True
    for encoder in family.text_encoders:
        if encoder.open_clip and name.startswith(encoder.file_prefix):
            inner = name[len(encoder.file_prefix) :]
            layer = re.match(r"transformer\.resblocks\.(\d+)\.", inner)
            last = int(configs[encoder.part]["num_hidden_layers"]) + encoder.file_extra_layers
            # The layer beyond those used is in every file of such a family, and written again.
            return inner in _KEPT_BACK or (layer is not None and int(layer[1]) < last)
    return False

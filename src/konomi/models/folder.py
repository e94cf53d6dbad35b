"""A base in a diffusers folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from konomi.diffusion.noise import Prediction
from konomi.errors import ModelError
from konomi.families import published_config
from konomi.families.family import Family, Part
from konomi.families.recognition import denoiser_folders, family_of_folder
from konomi.models.config_check import check_configs, short, without_nulls
from konomi.models.identify import check_channels
from konomi.models.noise_config import prediction_of, prediction_word
from konomi.models.parts import canonical_tensors
from konomi.models.single_file import NO_VAE
from konomi.models.tensor_files import open_component, read_json
from konomi.models.tokenizer import Vocabulary, read_vocabulary
from konomi.models.unused import unused_settings

_LEGACY_END = 2
"""`eos_token_id` in the published configs, a mistake that transformers works around by taking the
highest token. That goes wrong once words are added, so the true number is set."""
_CLIP_END = 49407
_VAE_DEFAULTS = {"latent_channels": 4, "block_out_channels": [64]}
_OTHER_PROCESS = ("EDM", "FlowMatch", "KarrasVe", "ScoreSde", "VQDiffusion", "RePaint", "UnCLIP")
"""How the names of diffusers' schedulers begin whose noise process is not Stable Diffusion's."""


@dataclass(frozen=True, slots=True)
class FolderSource:
    """Parts of a diffusers folder."""

    path: Path
    family: Family
    prediction: Prediction
    configs: Mapping[str, Mapping[str, Any]]
    notes: tuple[str, ...] = ()
    """Settings that nothing applies, a line each."""

    @property
    def where(self) -> str:
        return str(self.path)

    def tensors(self, part: Part) -> dict[str, Tensor]:
        spec = self.family.part(part)
        return canonical_tensors(spec, component_tensors(self.path / spec.folder))

    def missing_layers(self, part: Part) -> int:
        return 0

    def vocabulary(self, tokenizer: str) -> tuple[Vocabulary, str]:
        return read_vocabulary(self.path / tokenizer)


def component_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of one component's folder."""
    result: dict[str, Tensor] = {}
    for file in open_component(folder, ("diffusion_pytorch_model", "model", "pytorch_model")):
        result.update(file.read(file.shapes))
    return result


def open_folder(
    path: Path, *, prediction: Prediction | None = None, needs_vae: bool = True
) -> FolderSource:
    """Read the configs of a diffusers folder. Raises ModelError naming the file that is missing or
    wrong.
    """
    folders = {child.name for child in path.iterdir() if child.is_dir()}
    configs = {
        name: read_json(path / name / "config.json")
        for name in denoiser_folders()
        if name in folders
    }
    if not configs:
        raise ModelError(f"{path}: {_not_a_base(path)}")
    family = family_of_folder(folders, configs)
    if family is None:
        kind = short(next(iter(configs.values())).get("addition_embed_type"))
        raise ModelError(
            f"{path}: its UNet (addition_embed_type {kind}) belongs to no family that konomi knows."
        )
    for encoder in family.text_encoders:
        text = configs[encoder.part] = read_json(path / encoder.part / "config.json")
        if text.get("model_type", "clip_text_model") != "clip_text_model":
            kind = short(text["model_type"]).strip("'")
            raise ModelError(
                f"{path}: its {encoder.part} is a {kind}, not CLIP; konomi does not read it."
            )
    if (path / "vae" / "config.json").is_file():
        configs["vae"] = read_json(path / "vae" / "config.json")
    elif needs_vae:
        raise ModelError(f"{path}: {NO_VAE}")
    else:
        configs["vae"] = published_config(family, "vae")
    scheduler = path / "scheduler" / "scheduler_config.json"
    configs["scheduler"] = (
        read_json(scheduler) if scheduler.is_file() else published_config(family, "scheduler")
    )
    try:
        _complete(family, configs)
        for encoder in family.text_encoders:
            text = configs[encoder.part]
            if text.get("eos_token_id") == _LEGACY_END and text.get("vocab_size", 0) > _CLIP_END:
                text["eos_token_id"] = _CLIP_END
        _check_process(str(configs["scheduler"].get("_class_name", "")))
        if prediction == "epsilon":
            configs["scheduler"].pop("rescale_betas_zero_snr", None)
        prediction = prediction or prediction_of(configs["scheduler"])
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    configs["scheduler"]["prediction_type"] = prediction_word(prediction)
    check_channels(
        configs[family.denoiser.folder]["in_channels"], configs["vae"]["latent_channels"], str(path)
    )
    notes = tuple(f"{path}: {line}" for line in unused_settings(configs))
    return FolderSource(path, family, prediction, configs, notes)


def _check_process(scheduler: str) -> None:
    if scheduler.startswith(_OTHER_PROCESS):
        raise ModelError(
            f"its scheduler is {scheduler}: another noise process than konomi trains and samples."
        )


def _complete(family: Family, configs: dict[str, dict[str, Any]]) -> None:
    """Fill in what old configs leave out (diffusers' own defaults), and check the types of what is
    read.
    """
    for name, config in configs.items():
        configs[name] = without_nulls(name, config)
    unet = family.denoiser.folder
    sample_size = published_config(family, unet)["sample_size"]
    _fill(configs[unet], {"sample_size": sample_size, "in_channels": 4, "out_channels": 4})
    _fill(configs["vae"], _VAE_DEFAULTS)
    check_configs(configs)


def _fill(config: dict[str, Any], defaults: Mapping[str, Any]) -> None:
    for setting, value in defaults.items():
        if config.get(setting) is None:
            config[setting] = value


def complete_vae_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A VAE's config with what old ones leave out. Raises ModelError for a setting of the wrong
    type.
    """
    completed = without_nulls("vae", config)
    _fill(completed, _VAE_DEFAULTS)
    check_configs({"vae": completed})
    return completed


def _not_a_base(path: Path) -> str:
    if (path / "transformer").is_dir():
        return (
            "this looks like SD3 or FLUX (a transformer in place of a UNet), which konomi does "
            "not read yet."
        )
    if (path / "prior").is_dir() or (path / "decoder").is_dir():
        return "this looks like Stable Cascade, which konomi does not read."
    if (path / "adapter_config.json").is_file() or (
        path / "pytorch_lora_weights.safetensors"
    ).is_file():
        return "this is a LoRA, not a base model. Use it with --add."
    if (path / "config.json").is_file() and not (path / "model_index.json").is_file():
        return (
            "this is one part of a model. Give the folder above it, which holds model_index.json."
        )
    files = [file.name for file in sorted(path.glob("*.safetensors"))]
    if files:
        return (
            "not a diffusers folder (no unet). Give one of the files in it: "
            f"{', '.join(files[:3])}."
        )
    return (
        "not a diffusers folder: it has no unet. Give a folder with model_index.json, or a "
        ".safetensors file."
    )

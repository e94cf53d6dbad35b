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
from konomi.models.architecture import Configs, StoredTokenizer
from konomi.models.architectures import architecture_of, completed_configs, config_rules
from konomi.models.config_check import short
from konomi.models.noise_config import noise_process, prediction_for, with_prediction
from konomi.models.single_file import NO_VAE
from konomi.models.tensor_files import open_component, read_json
from konomi.models.unused import unused_settings


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
        tensors = component_tensors(self.path / spec.folder)
        return architecture_of(self.family).canonical(spec, tensors)

    def missing_layers(self, part: Part) -> int:
        return 0

    def tokenizer(self, name: str) -> StoredTokenizer:
        return architecture_of(self.family).read_tokenizer(self.path / name)


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
    denoisers = {
        name: read_json(path / name / "config.json")
        for name in denoiser_folders()
        if name in folders
    }
    family = family_of_folder(folders, denoisers)
    if family is None:
        raise ModelError(f"{path}: {_not_a_base(path, denoisers)}")
    configs = {name: denoisers[name] for name in (family.denoiser.folder,)}
    for encoder in family.text_encoders:
        configs[encoder.folder] = read_json(path / encoder.folder / "config.json")
    vae, scheduler = family.vae.folder, path / "scheduler" / "scheduler_config.json"
    if (path / vae / "config.json").is_file():
        configs[vae] = read_json(path / vae / "config.json")
    elif needs_vae:
        raise ModelError(f"{path}: {NO_VAE}")
    else:
        configs[vae] = published_config(family, vae)
    configs["scheduler"] = (
        read_json(scheduler) if scheduler.is_file() else published_config(family, "scheduler")
    )
    try:
        _check_text_encoders(family, configs)
        configs = completed_configs(family, configs)
        if prediction == "epsilon":
            configs["scheduler"].pop("rescale_betas_zero_snr", None)
        prediction = prediction_for(configs["scheduler"], family, asked=prediction)
        configs["scheduler"] = with_prediction(configs["scheduler"], prediction)
        # What is no noise process is told with the path.
        noise_process(configs["scheduler"], prediction)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    notes = tuple(f"{path}: {line}" for line in unused_settings(config_rules(family), configs))
    return FolderSource(path, family, prediction, configs, notes)


def _check_text_encoders(family: Family, configs: Configs) -> None:
    for encoder in family.text_encoders:
        kind = configs[encoder.folder].get("model_type", encoder.model_type)
        if kind != encoder.model_type:
            said = short(kind).strip("'")
            raise ModelError(
                f"its {encoder.part} is a {said}, not a {encoder.model_type}; konomi does not "
                "read it."
            )


def _not_a_base(path: Path, denoisers: Configs) -> str:
    """What a folder is, by its name and by the configs of denoisers in it."""
    if "unet" in denoisers:
        kind = short(denoisers["unet"].get("addition_embed_type"))
        return f"its UNet (addition_embed_type {kind}) belongs to no family that konomi knows."
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

"""A base whose VAE comes from another file: of a checkpoint that holds none, or in place of its
own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from konomi.diffusion.noise import Prediction
from konomi.errors import ModelError
from konomi.families import published_config
from konomi.families.autoencoder import VAE_PREFIX
from konomi.families.family import Family, Part, Shapes
from konomi.formats.ldm_keys import vae_to_diffusers
from konomi.models.architecture import StoredTokenizer
from konomi.models.architectures import architecture_of, completed_configs
from konomi.models.folder import component_tensors
from konomi.models.hub import download, is_hub_id, wanted_vae_files
from konomi.models.infer import DECLARED, infer_vae
from konomi.models.single_file import declared_configs, vae_tensors
from konomi.models.source import PartSource
from konomi.models.tensor_files import TensorFile, open_tensor_file, read_json
from konomi.storage.home import expanded


@dataclass(frozen=True, slots=True)
class WithVae:
    """A source whose VAE comes from elsewhere."""

    main: PartSource
    path: Path
    configs: dict[str, Any]
    prefix: str | None
    """Of the VAE's names in an LDM file; None for diffusers' names."""
    notes: tuple[str, ...] = ()

    @property
    def family(self) -> Family:
        return self.main.family

    @property
    def prediction(self) -> Prediction:
        return self.main.prediction

    @property
    def where(self) -> str:
        return self.main.where

    def tensors(self, part: Part) -> dict[str, Tensor]:
        if part != "vae":
            return self.main.tensors(part)
        canonical = architecture_of(self.family).canonical
        if self.path.is_dir():
            return canonical(self.family.vae, component_tensors(self.path))
        file = open_tensor_file(self.path)
        if self.prefix is None:
            return canonical(self.family.vae, file.read(file.shapes))
        return vae_tensors(file, self.prefix, self.configs["vae"])

    def missing_layers(self, part: Part) -> int:
        return self.main.missing_layers(part)

    def tokenizer(self, name: str) -> StoredTokenizer:
        return self.main.tokenizer(name)


def with_vae(main: PartSource, source: str | Path) -> WithVae:
    """`source`: a file (the VAE alone in LDM's or diffusers' names, or a whole checkpoint), a
    diffusers folder or its `vae` folder, or a hub id. Raises ModelError if there is no VAE that
    fits.
    """
    path, family, architecture = _found(source), main.family, architecture_of(main.family)
    notes = list(main.notes)
    prefix: str | None = None
    if path.is_dir():
        path = path / "vae" if (path / "vae").is_dir() else path
        config = read_json(path / "config.json")
    elif architecture.single_file is None:
        raise ModelError(f"{path}: the VAE of {family.title} is given as a diffusers folder.")
    else:
        file = open_tensor_file(path)
        declared = _declared(main, file)
        try:
            if any(name.startswith("encoder.down_blocks.") for name in file.shapes):
                config = _of_diffusers_names(main.family, file.shapes, declared)
            else:
                prefix = (
                    VAE_PREFIX if any(name.startswith(VAE_PREFIX) for name in file.shapes) else ""
                )
                config = infer_vae(main.family, file.shapes, declared, prefix=prefix)
                notes += _left(path, file.shapes, prefix)
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from error
    try:
        vae = family.vae.folder
        configs = {**main.configs, vae: completed_configs(family, {vae: config})[vae]}
        ours, theirs = (architecture.facts(family, each) for each in (main.configs, configs))
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    if theirs.latent_channels != ours.latent_channels:
        raise ModelError(
            f"{path}: this VAE has {theirs.latent_channels} channels; the base needs "
            f"{ours.latent_channels}."
        )
    usual = family.vae.latent_scale
    if path.is_dir() and theirs.latent_scale not in (usual, ours.latent_scale):
        notes.append(
            f"{path}: its latents are scaled by {theirs.latent_scale}, those of {family.title} by "
            f"{usual}: it is probably the VAE of another family."
        )
    return WithVae(main, path, configs, prefix, tuple(notes))


def _found(source: str | Path) -> Path:
    path = expanded(source)
    if path.exists():
        return path
    if not is_hub_id(str(source)):
        raise ModelError(
            f"{source}: there is no such VAE. Give a file, a folder, or a hub id owner/name."
        )
    return download(str(source), None, choose=wanted_vae_files, what="VAE")


def _declared(main: PartSource, file: TensorFile) -> dict[str, Any]:
    """What shapes do not tell: said by the file, or else by the base where its VAE is not the
    published one.
    """
    shipped, own = published_config(main.family, "vae"), main.configs["vae"]
    unusual = {
        name: own[name]
        for name in DECLARED["vae"]
        if name in own and own[name] != shipped.get(name)
    }
    return {**unusual, **declared_configs(file).get("vae", {})}


def _of_diffusers_names(
    family: Family, shapes: Shapes, declared: Mapping[str, Any]
) -> dict[str, Any]:
    """A VAE alone under diffusers' names, without its config: read as the same VAE in LDM's layout
    would be.
    """
    levels = _count(shapes, "encoder.down_blocks")
    layers = _count(shapes, "encoder.down_blocks.0.resnets")
    renamed = {}
    for name in _ldm_names(levels, layers):
        theirs = vae_to_diffusers(name, levels=levels, layers=layers)
        if theirs is not None and theirs in shapes:
            renamed[name] = shapes[theirs]
    return infer_vae(family, renamed, declared, prefix="")


def _ldm_names(levels: int, layers: int) -> list[str]:
    """Those that `infer_vae` looks at."""
    blocks = [
        f"encoder.down.{level}.block.{layer}.conv1.weight"
        for level in range(levels)
        for layer in range(layers)
    ]
    return [*blocks, "decoder.conv_in.weight"]


def _count(shapes: Shapes, stem: str) -> int:
    numbers = {
        name[len(stem) + 1 :].partition(".")[0] for name in shapes if name.startswith(f"{stem}.")
    }
    return min(len({number for number in numbers if number.isdigit()}), 64)


def _left(path: Path, shapes: Shapes, prefix: str) -> list[str]:
    """A line on the VAE's own tensors that are not of its encoder or decoder."""
    parts = tuple(
        prefix + part for part in ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
    )
    left = [name for name in shapes if name.startswith(prefix) and not name.startswith(parts)]
    return (
        [f"{path}: {len(left)} tensors beside the VAE's are not used, such as {left[0]}."]
        if left
        else []
    )

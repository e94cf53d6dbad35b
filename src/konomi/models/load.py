"""Load a base from wherever it is. Only configs and headers are read; parts follow when they are used."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from torch import Tensor

from konomi.diffusion.noise import Prediction
from konomi.errors import ModelError
from konomi.models.base import Part
from konomi.models.family import VAE_PREFIX, Family
from konomi.models.folder import component_tensors, open_folder
from konomi.models.hub import cached_snapshot, download, is_hub_id
from konomi.models.infer import infer_vae
from konomi.models.latent_diffusion import LatentDiffusion
from konomi.models.parts import canonical_tensors
from konomi.models.single_file import open_single_file, vae_tensors
from konomi.models.source import PartSource
from konomi.models.tensor_files import open_tensor_file, read_json
from konomi.models.tokenizer import Vocabulary
from konomi.storage.home import expanded

BUILTIN = Path(__file__).parents[1] / "builtin"
"""The embedded base: `tiny/` or `tiny.safetensors`."""


def load_base(
    source: str | Path,
    *,
    vae: str | Path | None = None,
    prediction: Prediction | None = None,
    revision: str | None = None,
) -> LatentDiffusion:
    """A base from `tiny` (embedded), a diffusers folder, a .safetensors or .ckpt file, or a hub id `owner/name`.

    `vae` takes the VAE from another file or folder. `prediction` overrides what the file says. A single file of SD2 is
    told apart by `modelspec` metadata, a `.yaml` of the same name beside it, or its `global_step`; without any of them
    it is taken for v-prediction (768 pixels), an inpainting one for epsilon. `revision` is a hub branch, tag or commit.

    Raises ModelError or FileFormatError in one line: what the source is instead, what is missing, what to do.
    """
    if prediction is not None and prediction not in get_args(Prediction):
        raise ModelError(f"prediction is {prediction!r}; known: {', '.join(get_args(Prediction))}.")
    parts, name = _open(source, prediction, revision, needs_vae=vae is None)
    if vae is not None:
        parts = WithVae.open(parts, Path(vae))
    return LatentDiffusion(parts, name=name)


def _open(
    source: str | Path, prediction: Prediction | None, revision: str | None, *, needs_vae: bool
) -> tuple[PartSource, str]:
    if str(source) == "tiny":
        return _open_path(_builtin(), prediction, needs_vae=needs_vae), "tiny"
    path = expanded(source)
    if path.exists():
        name = path.resolve().name if path.is_dir() else path.stem
        return _open_path(path, prediction, needs_vae=needs_vae), name
    if not is_hub_id(str(source)):
        raise ModelError(f"{source}: there is no such file or folder. Give `tiny`, a path, or a hub id owner/name.")
    return _open_hub(str(source), prediction, revision, needs_vae=needs_vae), str(source)


def _open_path(path: Path, prediction: Prediction | None, *, needs_vae: bool) -> PartSource:
    if path.is_dir():
        return open_folder(path, prediction=prediction, needs_vae=needs_vae)
    found = open_single_file(path, prediction=prediction)
    if needs_vae and not found.has_vae:
        raise ModelError(f"{path}: holds no VAE. Give one with vae=FILE, or take a checkpoint that has it.")
    return found


def _open_hub(source: str, prediction: Prediction | None, revision: str | None, *, needs_vae: bool) -> PartSource:
    folder = cached_snapshot(source, revision)
    if folder is not None:
        files = list(folder.glob("*.safetensors"))
        candidate = files[0] if len(files) == 1 and not (folder / "unet").is_dir() else folder
        try:
            return _open_path(candidate, prediction, needs_vae=needs_vae)
        except ModelError:
            # Another tool may have cached only some of the files: fetch the rest.
            pass
    return _open_path(download(source, revision), prediction, needs_vae=needs_vae)


def _builtin() -> Path:
    for candidate in (BUILTIN / "tiny", BUILTIN / "tiny.safetensors"):
        if candidate.exists():
            return candidate
    raise ModelError(
        "the embedded base `tiny` is not part of this installation. Reinstall konomi, or give another base."
    )


@dataclass(frozen=True, slots=True)
class WithVae:
    """A source whose VAE comes from elsewhere."""

    main: PartSource
    path: Path
    configs: dict[str, Any]
    prefix: str | None
    """Of the VAE's names in an LDM file; None for a diffusers folder."""

    @classmethod
    def open(cls, main: PartSource, path: Path) -> "WithVae":
        """Raises ModelError if there is no VAE at the path that fits."""
        if path.is_dir():
            folder = path / "vae" if (path / "vae").is_dir() else path
            config, prefix = read_json(folder / "config.json"), None
            path = folder
        else:
            file = open_tensor_file(path)
            prefix = VAE_PREFIX if any(name.startswith(VAE_PREFIX) for name in file.shapes) else ""
            try:
                config = infer_vae(main.family, file.shapes, {}, prefix=prefix)
            except ModelError as error:
                raise ModelError(f"{path}: {error}") from error
        wanted = main.configs["vae"]["latent_channels"]
        if config.get("latent_channels") != wanted:
            raise ModelError(f"{path}: this VAE has {config.get('latent_channels')} channels; the base needs {wanted}.")
        return cls(main, path, {**main.configs, "vae": config}, prefix)

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
        if self.prefix is None:
            return canonical_tensors("vae", component_tensors(self.path))
        return vae_tensors(open_tensor_file(self.path), self.prefix, self.configs["vae"])

    def missing_layers(self, part: Part) -> int:
        return self.main.missing_layers(part)

    def vocabulary(self, tokenizer: str) -> tuple[Vocabulary, str]:
        return self.main.vocabulary(tokenizer)

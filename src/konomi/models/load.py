"""Load a base from wherever it is. Only configs and headers are read; parts follow when they are
used.
"""

from pathlib import Path

from konomi.diffusion.noise import Prediction
from konomi.errors import ModelError
from konomi.families.recognition import denoiser_folders
from konomi.models.architectures import architecture_of
from konomi.models.external_vae import with_vae
from konomi.models.folder import open_folder
from konomi.models.hub import cached_snapshot, download, is_hub_id
from konomi.models.identify import recognise
from konomi.models.latent_diffusion import LatentDiffusion
from konomi.models.noise_config import prediction_named
from konomi.models.single_file import with_ema_as_unet
from konomi.models.source import PartSource
from konomi.models.tensor_files import open_tensor_file
from konomi.storage.home import expanded

BUILTIN = Path(__file__).parents[1] / "builtin"
"""The embedded base: `tiny/` or `tiny.safetensors`."""


def load_base(
    source: str | Path,
    *,
    vae: str | Path | None = None,
    prediction: str | None = None,
    revision: str | None = None,
    needs_vae: bool = True,
) -> LatentDiffusion:
    """A base from `tiny` (embedded), a diffusers folder, a .safetensors or .ckpt file, or a hub id
    `owner/name`.

    `vae` takes the VAE from another file, folder or hub id; without `needs_vae` a base may come
    without any. `prediction` (`epsilon`, `v_prediction`, `sample`) overrides what the file says.
    Forms of a family with the same tensors are told apart in a single file by marker tensors,
    `modelspec` metadata, a `.yaml` of the same name beside it, or its `global_step`; without any
    of them it is taken for the family's first form, an inpainting one for epsilon. `revision` is a
    hub branch, tag or commit.

    Raises ModelError or FileFormatError in one line: what the source is instead, what is missing,
    what to do.
    """
    asked = None if prediction in (None, "", "auto") else prediction_named(str(prediction))
    parts, name = _open(source, asked, revision, needs_vae=needs_vae and not vae)
    if vae:
        parts = with_vae(parts, vae)
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
        raise ModelError(
            f"{source}: there is no such file or folder. Give `tiny`, a path, or a hub id "
            "owner/name."
        )
    return _open_hub(str(source), prediction, revision, needs_vae=needs_vae), str(source)


def _open_path(path: Path, prediction: Prediction | None, *, needs_vae: bool) -> PartSource:
    if path.is_dir():
        return open_folder(path, prediction=prediction, needs_vae=needs_vae)
    return _open_file(path, prediction, needs_vae=needs_vae)


def _open_file(path: Path, prediction: Prediction | None, *, needs_vae: bool) -> PartSource:
    file = open_tensor_file(path)
    family = recognise(with_ema_as_unet(file.shapes), str(path))
    layout = architecture_of(family).single_file
    if layout is None:
        raise ModelError(
            f"{path}: konomi reads {family.title} from a diffusers folder, not from one file."
        )
    return layout.open(file, family, prediction=prediction, needs_vae=needs_vae)


def _open_hub(
    source: str, prediction: Prediction | None, revision: str | None, *, needs_vae: bool
) -> PartSource:
    folder = cached_snapshot(source, revision)
    if folder is not None:
        files = list(folder.glob("*.safetensors"))
        parts = any((folder / name).is_dir() for name in denoiser_folders())
        candidate = files[0] if len(files) == 1 and not parts else folder
        try:
            return _open_path(candidate, prediction, needs_vae=needs_vae)
        except ModelError:
            # Another tool may have cached only some of the files: fetch the rest.
            pass
    return _open_path(download(source, revision), prediction, needs_vae=needs_vae)


def file_of(source: str | Path) -> Path:
    """Where a model or adapter lies; `tiny` is the base inside konomi, unless a file is called
    so."""
    path = Path(source)
    return _builtin() if str(source) == "tiny" and not path.exists() else path


def _builtin() -> Path:
    for candidate in (BUILTIN / "tiny", BUILTIN / "tiny.safetensors"):
        if candidate.exists():
            return candidate
    raise ModelError(
        "the embedded base `tiny` is not part of this installation. Reinstall konomi, or give "
        "another base."
    )

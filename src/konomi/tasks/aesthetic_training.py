"""`train aesthetic`: the mean of the CLIP features of pictures somebody likes. No step is taken
here; the tuning happens for each prompt when pictures are drawn.

Shapes: N pictures, P width of CLIP's space.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from konomi.config.sections import DataConfig, SourceConfig
from konomi.data.images import read_image
from konomi.data.preflight import summary_lines
from konomi.data.sources import scan
from konomi.errors import ModelError, RecipeError
from konomi.formats.aesthetic import (
    CLIP,
    IMAGES,
    SUFFIXES,
    AestheticEmbedding,
    write_aesthetic,
)
from konomi.generation.aesthetic_request import parse_weighted
from konomi.hardware.device import choose_device
from konomi.models.clip import load_clip
from konomi.models.clip_space import clip_of
from konomi.models.load import load_base
from konomi.storage.atomic import explained

_BATCH = 16


def train_aesthetic(
    images: Sequence[str],
    *,
    base: str = "",
    clip: str = "",
    output: str | Path = "",
    overwrite: bool = False,
    device: str = "auto",
    tell: Callable[[str], object] = lambda _: None,
) -> Path:
    """Write an aesthetic embedding (Gallego 2022): the mean of the unit CLIP features of pictures.

    images: folders, zips or images, `DIR` or `DIR:WEIGHT`; every picture of a folder counts so
        much, a negative weight takes it away.
    base: the base it is for, whose CLIP looks at the pictures: `tiny`, a folder, a file, a hub id.
        Of several text encoders the last one's counts, which has the most channels of the
        conditioning and the pooled text.
    clip: a folder or hub id of a CLIP, in place of the base's.
    output: the run folder, or a file that ends in .safetensors or .pt; by default runs/NAME.
    overwrite: replace a file that is there.
    device: where CLIP computes: auto, cpu, cuda, mps.
    tell: is handed a line on every picture that is left out, and on what has no effect.

    Returns the path of the file. Raises KonomiError.
    """
    folders = [parse_weighted(argument, "--images") for argument in images]
    if not folders:
        raise RecipeError("there are no pictures. Name their folder with --images DIR.")
    if not any(folder.weight for folder in folders):
        raise RecipeError("--images: every weight is 0, so no picture counts.")
    path = _target(output, folders[0].path)
    with explained(path):
        if path.exists() and not overwrite:
            raise RecipeError(
                f"{path}: exists already. Choose another --output, or add --overwrite."
            )
        path.parent.mkdir(parents=True, exist_ok=True)
    source = clip or _clip_of_base(base)
    if clip and base:
        tell("--base has no effect beside --clip: the CLIP alone looks at the pictures.")
    found: list[tuple[str, float]] = []
    for folder in folders:
        source_config = SourceConfig(path=str(folder.path))
        manifest = scan(DataConfig(sources=(source_config,)))
        for line in summary_lines((), manifest.excluded):
            tell(line)
        found += [
            (record.locator, folder.weight * record.repeats)
            for record in manifest.records
            if record.role == "train"
        ]
    vector_P = _mean(found, source, choose_device(device))
    if not bool(vector_P.norm() > 1e-6):
        raise RecipeError("--images: the weighted pictures cancel out. Choose other weights.")
    metadata = {CLIP: source, IMAGES: str(len(found))}
    write_aesthetic(AestheticEmbedding(vector_P, metadata), path)
    return path


def _mean(pictures: Sequence[tuple[str, float]], clip: str, device: torch.device) -> Tensor:
    """[P]: the weighted mean; weights count without their signs."""
    encoder = load_clip(clip)
    encoder.model.to(device)
    total, size = None, 0.0
    for start in range(0, len(pictures), _BATCH):
        some = pictures[start : start + _BATCH]
        images = [Image.fromarray(read_image(locator).pixels) for locator, _ in some]
        features_NP = functional.normalize(encoder.image_features(images).double(), dim=1)
        weights_N = torch.tensor([weight for _, weight in some], dtype=torch.float64)
        part_P = weights_N @ features_NP
        total = part_P if total is None else total + part_P
        size += float(weights_N.abs().sum())
    assert total is not None
    return (total / size).float()


def _clip_of_base(base: str) -> str:
    if not base:
        raise RecipeError(
            "base: must be set, for its CLIP looks at the pictures. Name it with --base, or a CLIP "
            "with --clip."
        )
    opened = load_base(base, needs_vae=False)
    # Of several the last is the one that also gives the pooled text.
    source = clip_of(opened, opened.spec.text_encoders[-1])
    if not source:
        raise ModelError(
            f"{opened.name} ({opened.spec.title}): its text encoder is of no CLIP, so it cannot "
            "be tuned by Aesthetic Gradients."
        )
    return source


def _target(output: str | Path, folder: Path) -> Path:
    if str(output).lower().endswith(SUFFIXES):
        return Path(output)
    name = folder.stem if folder.is_file() else folder.resolve().name
    run = Path(output) if str(output) else Path("runs") / name
    return run / f"{(run if str(output) else folder).resolve().name or name}.safetensors"

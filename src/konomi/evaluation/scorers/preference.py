"""What people would prefer: models that were trained on votes, where the user has them.

Of the CLIP family are PickScore (Kirstain et al. 2023, "Pick-a-Pic"), HPS v2 in transformers' form
(Wu et al. 2023, "Human Preference Score v2") and every other fine-tuned CLIPModel: the cosine of
picture and prompt, times the temperature. LAION's aesthetic predictor (Schuhmann 2022) is a small
network over CLIP ViT-L/14's features of the picture alone. ImageReward (Xu et al. 2023) is no
network of transformers; it is refused by name.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from konomi.errors import ModelError
from konomi.evaluation.encoders.encoder import TextImageEncoder
from konomi.evaluation.encoders.load import load_encoder
from konomi.evaluation.pictures import Material
from konomi.evaluation.prompts import PromptKind
from konomi.evaluation.scorers.closeness import of_kinds
from konomi.evaluation.scorers.scorer import Need, Scorer, Scores
from konomi.models.tensor_files import open_tensor_file
from konomi.storage.home import expanded

EVERY: frozenset[PromptKind] = frozenset({"subject", "context", "class", "unrelated"})
_HEAD_ENDINGS = (".pth", ".pt", ".bin", ".safetensors")


@dataclass(slots=True)
class Preference:
    """Cosine of picture and prompt, in plain words, times the temperature of a CLIP that was
    trained on people's choices."""

    name: str
    encoder: TextImageEncoder
    scale: float
    """The temperature, by which it was trained."""
    title: str = "Human preference"
    source: str = "Kirstain et al. 2023, Pick-a-Pic, section 4"
    unit: str = "score"
    bounds: tuple[float, float] = (-math.inf, math.inf)
    higher_is_better: bool = True
    needs: frozenset[Need] = frozenset()
    prompts: frozenset[PromptKind] = EVERY

    def score(self, material: Material) -> Scores:
        pictures = of_kinds(material.candidate, self.prompts)
        if not pictures:
            return {}
        prompts = material.candidate.prompts
        seen_ND = self.encoder.features(list(pictures.values())).double()
        texts = [prompts[prompt].plain for prompt, _ in pictures]
        read_ND = self.encoder.text_features(texts).double()
        scores = self.scale * (seen_ND * read_ND).sum(1)
        return dict(zip(pictures, scores.tolist(), strict=True))


@dataclass(slots=True)
class Aesthetic:
    """LAION's predictor of the mark, 1 to 10, that people give to a picture."""

    name: str
    encoder: TextImageEncoder
    layers: tuple[tuple[Tensor, Tensor], ...]
    """Weight [out, in] and bias [out] of each linear layer; nothing lies between them."""
    title: str = "Aesthetic mark"
    source: str = "Schuhmann et al. 2022, LAION-5B, section 5.2"
    unit: str = "mark"
    bounds: tuple[float, float] = (-math.inf, math.inf)
    higher_is_better: bool = True
    needs: frozenset[Need] = frozenset()
    prompts: frozenset[PromptKind] = EVERY

    def score(self, material: Material) -> Scores:
        pictures = of_kinds(material.candidate, self.prompts)
        if not pictures:
            return {}
        values = self.encoder.features(list(pictures.values())).double()
        for weight, bias in self.layers:
            values = values @ weight.T + bias
        return dict(zip(pictures, values[:, 0].tolist(), strict=True))


def preference_scorers(
    sources: Sequence[str], encoder: TextImageEncoder, *, device: torch.device | None = None
) -> tuple[Scorer, ...]:
    """A scorer for each: a CLIP trained on votes (a folder or hub id), or the file of LAION's
    predictor.

    sources: as the recipe has them.
    encoder: of texts and pictures, over whose features LAION's predictor works.
    device: where they compute, by default the CPU.

    Raises ModelError in one line: what is not there, not reachable, or of another kind.
    """
    return tuple(_scorer(source, encoder, device) for source in sources)


def _scorer(source: str, encoder: TextImageEncoder, device: torch.device | None) -> Scorer:
    if "imagereward" in source.lower().replace("-", ""):
        raise ModelError(
            f"{source}: ImageReward is no network that transformers can build. Take PickScore "
            "(yuvalkirstain/PickScore_v1) or another CLIP that was trained on votes."
        )
    if source.lower().endswith(_HEAD_ENDINGS):
        return _aesthetic(source, encoder)
    judge = load_encoder(source, device=device)
    if judge.network.scale is None:
        raise ModelError(
            f"{source}: is no CLIP that was trained on votes: it has no temperature. Take "
            "PickScore (yuvalkirstain/PickScore_v1), HPS v2, or LAION's predictor as a file."
        )
    return Preference(f"preference_{_word(source)}", judge, judge.network.scale)


def _aesthetic(source: str, encoder: TextImageEncoder) -> Scorer:
    path = expanded(source)
    if not path.is_file():
        raise ModelError(
            f"{source}: there is no such file. LAION's predictor is one, such as "
            "sac+logos+ava1-l14-linearMSE.pth."
        )
    file = open_tensor_file(path)
    layers = _layers(source, file.read(file.shapes))
    width, known = layers[0][0].shape[1], encoder.text_features(["a"]).shape[1]
    if width != known:
        raise ModelError(
            f"{source}: reads features of width {width}, and {encoder.name} has {known}. LAION's "
            "predictor works over openai/clip-vit-large-patch14 (evaluation.encoders.text)."
        )
    return Aesthetic(f"aesthetic_{_word(source)}", encoder, layers)


def _layers(source: str, tensors: Mapping[str, Tensor]) -> tuple[tuple[Tensor, Tensor], ...]:
    """In the order of their numbers: `layers.0.weight`, ..., or one `weight` alone."""
    names = sorted(
        (name for name in tensors if name.endswith("weight") and tensors[name].dim() == 2),
        key=lambda name: [int(number) for number in re.findall(r"\d+", name)],
    )
    found = [
        (tensors[name].double(), tensors[name.removesuffix("weight") + "bias"].double())
        for name in names
        if name.removesuffix("weight") + "bias" in tensors
    ]
    fits = all(
        before[0].shape[0] == after[0].shape[1] for before, after in pairwise(found)
    ) and all(weight.shape[0] == bias.numel() for weight, bias in found)
    if not found or len(found) != len(names) or not fits or found[-1][0].shape[0] != 1:
        raise ModelError(
            f"{source}: holds no linear layers that end in one mark, so it is not LAION's "
            "predictor."
        )
    return tuple(found)


def _word(source: str) -> str:
    """`pickscore_v1` of `yuvalkirstain/PickScore_v1`."""
    stem = Path(source).name
    for ending in _HEAD_ENDINGS:
        stem = stem.removesuffix(ending)
    return re.sub(r"[^a-z0-9]+", "_", stem.lower()).strip("_")

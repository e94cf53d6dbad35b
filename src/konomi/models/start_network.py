"""Networks that look at pictures and guess the embedding of a word for them.

LEAP ("Learning to Predict Embeddings", the seed of Textual Inversion in about 100 steps) learns a
small convolutional network from pictures that a base draws of words to the embeddings of these
words. `features` is the same with a CLIP in place of the convolutions: linear in its image
features, with the least squares in closed form (ridge regression, Hoerl & Kennard 1970).

Shapes: S subjects, N pictures, F features, E numbers of an answer (vectors x widths of all text
encoders), n vectors of a word, D width of a text encoder's token embeddings.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from konomi.errors import FileFormatError
from konomi.formats.start_network import StartFacts, StartNetwork
from konomi.models.clip import Clip

SIDE = 128
"""Pixels of the square that the convolutional network sees."""
_CHANNELS = (3, 32, 64, 64)
_STRIDES = (2, 2, 1)
_HIDDEN = 256
_LEAK = 0.01
RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Strengths that are tried, as shares of the features' mean variance."""
FOLDS = 5


class ConvolutionalNetwork(nn.Module):
    """LEAP's: three convolutions, each with a leaky ReLU and a maximum of 2x2, their features
    averaged over the pictures of a subject, and two linear layers.

    Its last word is a sigmoid between the least and the largest number of each place that training
    has seen.
    """

    low: Tensor
    high: Tensor

    def __init__(self, numbers: int, *, dropout: float = 0.1) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=stride, padding=1)
            for before, after, stride in zip(_CHANNELS, _CHANNELS[1:], _STRIDES)
        )
        self.dropout = dropout
        self.hidden = nn.Linear(_CHANNELS[-1] * 4 * 4, _HIDDEN)
        self.out = nn.Linear(_HIDDEN, numbers)
        self.register_buffer("low", torch.zeros(numbers))
        self.register_buffer("high", torch.ones(numbers))

    def features(self, pixels_N3HW: Tensor) -> Tensor:
        """[N, F] of pixels from -1 to 1."""
        grid = pixels_N3HW
        for convolution in self.convolutions:
            grid = functional.leaky_relu(convolution(grid), _LEAK)
            grid = functional.max_pool2d(grid, 2)
        return grid.flatten(1)

    def answer(self, features_SF: Tensor, drop_SF: Tensor | None = None) -> Tensor:
        """[S, E] of features that are averaged over the pictures of each subject. `drop_SF` in
        0 .. 1 says which of them are dropped in this step of training."""
        if drop_SF is not None:
            features_SF = features_SF * (drop_SF >= self.dropout) / (1 - self.dropout)
        hidden = functional.leaky_relu(self.hidden(features_SF), _LEAK)
        share: Tensor = torch.sigmoid(self.out(hidden))
        return self.low + (self.high - self.low) * share


def to_pixels(images: Sequence[Image.Image]) -> Tensor:
    """[N, 3, SIDE, SIDE] from -1 to 1: the middle square of each."""
    rows = []
    for image in images:
        short = min(image.size)
        left, top = (image.width - short) / 2, (image.height - short) / 2
        box = (left, top, left + short, top + short)
        square = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box)
        rows.append(torch.from_numpy(np.array(square)).permute(2, 0, 1).float() / 127.5 - 1)
    return torch.stack(rows)


def clip_features(clip: Clip, images: Sequence[Image.Image]) -> Tensor:
    """[F]: the mean of the pictures' unit features."""
    return clip.image_features(images).mean(0)


def fit_features(
    features_SF: Tensor, embeddings_SE: Tensor, groups: Sequence[object]
) -> dict[str, Tensor]:
    """The tensors of the linear network, float32.

    The strength of the ridge is the one that does best where each of `FOLDS` parts of the groups
    is kept aside in turn; subjects of one group, drawings of one word, are kept aside together.
    """
    x, y = features_SF.double(), embeddings_SE.double()
    names = list(dict.fromkeys(groups))
    fold_of = {name: number % FOLDS for number, name in enumerate(names)}
    folds = torch.tensor([fold_of[group] for group in groups])
    guesses = {ridge: torch.zeros_like(y) for ridge in RIDGES}
    for fold in folds.unique().tolist():
        inside, aside = folds != fold, folds == fold
        if not bool(inside.any()):
            inside = aside
        for ridge, guess in guesses.items():
            guess[aside] = _linear(x[aside], *_ridge(x[inside], y[inside], ridge))
    best = min(RIDGES, key=lambda ridge: float((guesses[ridge] - y).pow(2).sum()))
    mean_F, weight_FE, mean_E = _ridge(x, y, best)
    found = {"mean": mean_F, "weight": weight_FE, "bias": mean_E}
    return {name: tensor.float() for name, tensor in found.items()}


def _ridge(x_SF: Tensor, y_SE: Tensor, ridge: float) -> tuple[Tensor, Tensor, Tensor]:
    mean_F, mean_E = x_SF.mean(0), y_SE.mean(0)
    centred_SF = x_SF - mean_F
    gram_FF = centred_SF.T @ centred_SF
    strength = ridge * gram_FF.diagonal().mean().clamp_min(1e-12)
    identity = torch.eye(len(gram_FF), dtype=gram_FF.dtype)
    weight_FE = torch.linalg.solve(gram_FF + strength * identity, centred_SF.T @ (y_SE - mean_E))
    return mean_F, weight_FE, mean_E


def _linear(x_SF: Tensor, mean_F: Tensor, weight_FE: Tensor, bias_E: Tensor) -> Tensor:
    return (x_SF - mean_F) @ weight_FE + bias_E


@torch.no_grad()
def answer(network: StartNetwork, images: Sequence[Image.Image], clip: Clip | None) -> Tensor:
    """[E] for the pictures of one subject. `clip` is the one that `network` names.

    Raises FileFormatError where the tensors are not the network's.
    """
    if network.facts.kind == "features":
        assert clip is not None
        features_F = clip_features(clip, images)
        shapes = {
            "mean": (len(features_F),),
            "weight": (len(features_F), network.facts.numbers),
            "bias": (network.facts.numbers,),
        }
        _check(network, shapes)
        tensors = network.tensors
        return _linear(features_F, tensors["mean"], tensors["weight"], tensors["bias"])
    module = ConvolutionalNetwork(network.facts.numbers).eval()
    _check(network, {name: tuple(t.shape) for name, t in module.state_dict().items()})
    module.load_state_dict(dict(network.tensors))
    found: Tensor = module.answer(module.features(to_pixels(images)).mean(0, keepdim=True))[0]
    return found


def _check(network: StartNetwork, shapes: dict[str, tuple[int, ...]]) -> None:
    found = {name: tuple(tensor.shape) for name, tensor in network.tensors.items()}
    wrong = next((name for name in shapes if found.get(name) != shapes[name]), "")
    if wrong:
        raise FileFormatError(
            f"the network of starts for {network.facts.base}: {wrong} is missing or misshapen. "
            "Make it anew with konomi learn-start."
        )


def split_by_part(answer_E: Tensor, facts: StartFacts) -> dict[str, Tensor]:
    """Part of the text encoder -> vectors [n, D]."""
    rows_nD = answer_E.view(facts.vectors, -1)
    columns = torch.split(rows_nD, list(facts.widths.values()), dim=1)
    return {part: vectors.clone() for part, vectors in zip(facts.widths, columns, strict=True)}


def joined(vectors: dict[str, Tensor]) -> Tensor:
    """[E] of part -> [n, D]: the way back."""
    return torch.cat([part.float().cpu() for part in vectors.values()], dim=1).flatten()

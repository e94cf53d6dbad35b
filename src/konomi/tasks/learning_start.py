"""`learn-start`: once per base, a network that guesses where a word starts from its pictures.

The meta-data are LEAP's: pictures that the base draws of words of its vocabulary, and the token
embedding of each; or somebody's subjects with their trained embeddings. Two networks learn from
them, and the one that says more of subjects that were kept aside is written.

Shapes: S subjects, N pictures, F features, E numbers of an answer.
"""

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from konomi.diffusion.random import Rng
from konomi.errors import ModelError, RecipeError
from konomi.formats.start_network import StartFacts, StartNetwork, write_start_network
from konomi.hardware.device import choose_device
from konomi.hardware.precision import choose_precision
from konomi.methods.base_requirements import require_added_tokens
from konomi.methods.learned_start import network_of, token_fingerprint
from konomi.models.base import BaseModel
from konomi.models.clip import Clip, load_clip
from konomi.models.clip_space import clip_of
from konomi.models.load import load_base
from konomi.models.start_network import clip_features, fit_features, to_pixels
from konomi.storage.atomic import explained, sweep_temporaries
from konomi.tasks.convolutional_start import Examples, guesses, learn_convolutional
from konomi.tasks.start_subjects import (
    StartSubject,
    draw_words,
    subject_of_word,
    subjects_of_folder,
    word_pictures,
    words_of,
)
from konomi.training.events import Prepared, Warned

NetworkChoice = Literal["auto", "features", "convolutional"]
HELD_OUT = 0.1
"""Share of the names that are kept aside."""
FEWEST = 10
"""Subjects that a network can be learned from and measured on."""


@dataclass(frozen=True, slots=True)
class StartMeasured:
    """What a network was worth on the subjects that were kept aside."""

    kind: str
    subjects: int
    similarity: float
    """Mean cosine of guess and truth, both as seen from the mean embedding: 0 says nothing, 1
    everything."""
    error: float
    """Mean absolute error of a number."""
    mean_error: float
    """The same of the mean embedding, which needs no network."""


@dataclass(frozen=True, slots=True)
class StartLearned:
    """The last event: the file, and how its network compares."""

    path: str
    kind: str
    measured: tuple[StartMeasured, ...]


StartEvent = Prepared | Warned | StartMeasured | StartLearned


def learn_start(
    base: str,
    *,
    subjects: str | Path = "",
    words: int = 400,
    pictures: int = 16,
    network: NetworkChoice = "auto",
    clip: str = "",
    epochs: int = 250,
    rate: float = 1e-4,
    seed: int = 0,
    output: str | Path = "",
    overwrite: bool = False,
    device: str = "auto",
    precision: str = "auto",
) -> Iterator[StartEvent]:
    """Learn a network that guesses the first embedding of a word from its pictures (LEAP), for
    `method.initial = "leap"`. Yields progress; the last event is `StartLearned`.

    base: `tiny`, a diffusers folder, a .safetensors or .ckpt file, or a hub id.
    subjects: a folder of folders of pictures to learn from, each with an embedding file in it or
        called by words that the base knows; by default the base draws words of its vocabulary.
    words: how many words it draws.
    pictures: of each word, or at most of each folder.
    network: features (of a CLIP), convolutional (the paper's), or auto, the better of both.
    clip: a CLIP folder or hub id, in place of the one that the base's text encoder is of.
    epochs: of the convolutional network.
    rate: its learning rate.
    seed: of everything that is drawn by chance.
    output: the file; by default where training with this base looks for it.
    overwrite: replace a file that is there.
    device: auto, cpu, cuda, mps, ...
    precision: number format of drawing: auto, fp32, fp16, bf16.

    A command that was stopped goes on where it was. Raises KonomiError.
    """
    path = Path(output) if str(output) else network_of(base)
    _check(words, pictures, epochs, rate, path, overwrite=overwrite)
    opened = load_base(base, needs_vae=not subjects)
    require_added_tokens(opened, "learn-start")
    fingerprint = token_fingerprint(opened)
    facts: tuple[object, ...] = (fingerprint, str(subjects), words, pictures, seed)
    if not subjects:
        facts += (opened.fingerprint("denoiser"),)
    key = hashlib.sha256(repr(facts).encode()).hexdigest()[:8]
    work = path.absolute().with_name(f".{path.stem}-{key}")
    where = choose_device(device)
    known: list[StartSubject] = []
    for found in _subjects(opened, subjects, work, words, pictures):
        if isinstance(found, list):
            known = found
        else:
            yield found
    with explained(work):
        work.mkdir(parents=True, exist_ok=True)
    sweep_temporaries(work)
    if not subjects:
        opened.place(where, choose_precision(precision, where))
        yield from draw_words(opened, [one.name for one in known], work, pictures, seed)
    examples = _Learning(opened, base, fingerprint, known, pictures, seed, work, where)
    best: StartNetwork | None = None
    measured: list[StartMeasured] = []
    for news in examples.networks(network, clip, epochs, rate):
        if isinstance(news, StartNetwork):
            best = _better(best, news)
        else:
            measured += [news] if isinstance(news, StartMeasured) else []
            yield news
    assert best is not None
    write_start_network(best, path)
    shutil.rmtree(work, ignore_errors=True)
    yield StartLearned(str(path), best.facts.kind, tuple(measured))


def _subjects(
    base: BaseModel, folder: str | Path, work: Path, words: int, pictures: int
) -> Iterator[Warned | list[StartSubject]]:
    """Ends with the list; the pictures of words need not be there yet."""
    known: list[StartSubject] = []
    if folder:
        for found in subjects_of_folder(base, Path(folder)):
            if isinstance(found, list):
                known = found
            else:
                yield found
    else:
        known = [
            subject_of_word(base, word, word_pictures(work, word, pictures))
            for word in words_of(base, words)
        ]
    names = {one.name for one in known}
    if len(names) < FEWEST:
        raise RecipeError(
            f"{len(names)} subjects are too few to learn from; at least {FEWEST} are needed."
        )
    yield known


def _check(
    words: int, pictures: int, epochs: int, rate: float, path: Path, *, overwrite: bool
) -> None:
    for name, value in (("words", words), ("pictures", pictures), ("epochs", epochs)):
        if value < 1:
            raise RecipeError(f"--{name} is {value}; at least 1 is needed.")
    if not 0 < rate <= 1:
        raise RecipeError(f"--rate is {rate:g}; it must lie above 0 and not above 1.")
    if path.suffix.lower() != ".safetensors":
        raise RecipeError(f"{path}: a network of starts is written as .safetensors.")
    with explained(path):
        if path.exists() and not overwrite:
            raise RecipeError(
                f"{path}: exists already. Choose another --output, or add --overwrite."
            )


def _better(one: StartNetwork | None, other: StartNetwork) -> StartNetwork:
    if one is None or other.facts.similarity > one.facts.similarity:
        return other
    return one


@dataclass(frozen=True, slots=True)
class _Learning:
    """Both networks learn from the same subjects, and are measured on the same."""

    base: BaseModel
    source: str
    fingerprint: str
    subjects: Sequence[StartSubject]
    pictures: int
    seed: int
    work: Path
    device: torch.device

    def networks(
        self, choice: NetworkChoice, clip: str, epochs: int, rate: float
    ) -> Iterator[Prepared | Warned | StartMeasured | StartNetwork]:
        """Each network that was asked for, and before it what it is worth."""
        if choice != "convolutional":
            source = clip or clip_of(self.base, self.base.spec.text_encoders[-1])
            try:
                encoder = _clip(source, self.base)
            except ModelError as error:
                if choice == "features":
                    raise
                yield Warned(f"{error} Only the convolutional network is learned.")
            else:
                encoder.model.to(self.device)
                yield from self._features(encoder, source)
        if choice != "features":
            yield from self._convolutional(epochs, rate)

    def _features(
        self, encoder: Clip, source: str
    ) -> Iterator[Prepared | StartMeasured | StartNetwork]:
        rows = []
        for done, subject in enumerate(self.subjects):
            yield Prepared("features of pictures", done, len(self.subjects))
            rows.append(clip_features(encoder, subject.images(self.pictures)))
        yield Prepared("features of pictures", len(self.subjects), len(self.subjects))
        features_SF, learn = torch.stack(rows), ~self._aside()
        groups = [one.name for one, used in zip(self.subjects, learn.tolist()) if used]
        tensors = fit_features(features_SF[learn], self._truth()[learn], groups)
        guess_SE = (features_SF - tensors["mean"]) @ tensors["weight"] + tensors["bias"]
        yield from self._measured("features", guess_SE, StartNetwork(self._facts(source), tensors))

    def _convolutional(
        self, epochs: int, rate: float
    ) -> Iterator[Prepared | StartMeasured | StartNetwork]:
        truth_SE, learn = self._truth(), ~self._aside()
        rows = []
        for done, subject in enumerate(self.subjects):
            yield Prepared("pictures to learn from", done, len(self.subjects))
            rows.append((to_pixels(subject.images(self.pictures)) * 127.5 + 127.5).byte())
        yield Prepared("pictures to learn from", len(self.subjects), len(self.subjects))
        examples = Examples(
            [row for row, used in zip(rows, learn.tolist()) if used], truth_SE[learn]
        )
        kept = self.work / f"convolutional-{epochs}-{rate:g}.safetensors"
        tensors: dict[str, Tensor] = {}
        for news in learn_convolutional(
            examples, kept, epochs=epochs, rate=rate, seed=self.seed, device=self.device
        ):
            if isinstance(news, Prepared):
                yield news
            else:
                tensors = news
        guess_SE = guesses(tensors, rows)
        facts = replace(self._facts(""), kind="convolutional")
        yield from self._measured("convolutional", guess_SE, StartNetwork(facts, tensors))

    def _measured(
        self, kind: str, guess_SE: Tensor, network: StartNetwork
    ) -> Iterator[StartMeasured | StartNetwork]:
        truth_SE, aside = self._truth(), self._aside()
        mean_E = truth_SE[~aside].mean(0)
        guess, truth = guess_SE[aside], truth_SE[aside]
        similarity = float(functional.cosine_similarity(guess - mean_E, truth - mean_E).mean())
        error, plain = ((one - truth).abs().mean() for one in (guess, mean_E))
        yield StartMeasured(kind, len(truth), similarity, float(error), float(plain))
        facts = replace(network.facts, held_out=len(truth), similarity=round(similarity, 4))
        yield StartNetwork(facts, network.tensors)

    def _truth(self) -> Tensor:
        return torch.stack([one.embedding_E for one in self.subjects])

    def _aside(self) -> Tensor:
        """[S] bool: all subjects of some names."""
        names = list(dict.fromkeys(one.name for one in self.subjects))
        order = Rng.for_step(self.seed, 0).fork("held out").uniform((len(names),))[0].argsort()
        count = max(2, round(HELD_OUT * len(names)))
        aside = {names[index] for index in order[:count].tolist()}
        return torch.tensor([one.name in aside for one in self.subjects])

    def _facts(self, clip: str) -> StartFacts:
        vectors = self.subjects[0].vectors
        parts = self.base.text_encoders
        widths = {part: self.base.token_embedding(part).shape[1] for part in parts}
        return StartFacts(
            kind="features",
            base=self.base.name,
            fingerprint=self.fingerprint,
            widths=widths,
            vectors=vectors,
            clip=clip,
            subjects=int((~self._aside()).sum()),
        )


def _clip(source: str, base: BaseModel) -> Clip:
    if not source:
        raise ModelError(
            f"{base.name} ({base.spec.title}): its text encoder is of no CLIP. Name one with "
            "--clip."
        )
    return load_clip(source)

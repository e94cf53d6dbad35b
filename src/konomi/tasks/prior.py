"""What speaks for the class in a run, and what the subject is called: decided before anything is
drawn or encoded.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from PIL import Image

from konomi.config.prior import PriorSource
from konomi.config.recipe import Recipe
from konomi.data.buckets import Bucket
from konomi.data.images import read_image
from konomi.data.manifest import Record
from konomi.errors import DataError, RecipeError
from konomi.methods.method import Needs, for_width
from konomi.methods.preservation import class_prompt
from konomi.models.base import BaseModel
from konomi.models.clip import load_clip
from konomi.models.tokenizer import clip_vocabulary

NOUNS = Path(__file__).parents[1] / "builtin" / "nouns"
IDENTIFIER_TEMPLATE = "a [name]"
ORDINARY = 20_000
"""Entries of CLIP's vocabulary of 49,408 that are taken for ordinary: "walnut" is number 16,310,
"sks" 48,136."""
LOOKED_AT = 16
"""Images of which CLIP sees no more: enough to tell what they show."""


@dataclass(frozen=True, slots=True)
class ClassImages:
    """Pictures of the class that are made before training."""

    prompts: tuple[tuple[str, str], ...] = ()
    """(class noun, prompt), for each noun of the subjects."""
    count: int = 0
    """For each of them."""
    size: Bucket = (0, 0)

    @property
    def total(self) -> int:
        return len(self.prompts) * self.count


def with_identifier_captions(recipe: Recipe, needs: Needs) -> Recipe:
    """Images without caption are "a [identifier] [class]", where the method is about that and no
    template is given; a picture to edit is called as its target.
    """
    template = IDENTIFIER_TEMPLATE if needs.identifier else needs.edits_towards
    if not template:
        return recipe
    sources = tuple(
        source if source.template else replace(source, template=template)
        for source in recipe.data.sources
    )
    return replace(recipe, data=replace(recipe.data, sources=sources))


def with_prior(recipe: Recipe, needs: Needs, records: Sequence[Record], base: BaseModel) -> Recipe:
    """With `prior.source` and `prior.count` filled in.

    Raises RecipeError where the method cannot do what is asked, or the identifier or class noun it
    takes is not known.
    """
    prior = recipe.prior
    source = _source(recipe, needs, records)
    if source == "prediction" and not needs.predicts_prior:
        raise RecipeError(
            f'prior.source is "prediction", which {recipe.method.kind} cannot do. Use "generate" '
            'or "none".'
        )
    if source == "transparent" and recipe.data.images.alpha == "mask":
        raise RecipeError(
            'prior.source is "transparent" and data.images.alpha is "mask": transparent pixels '
            "then have no weight, "
            'and neither has the prior. Set data.images.alpha = "background".'
        )
    training = [record for record in records if record.role == "train"]
    if needs.identifier and any(not record.trigger and not record.captions for record in training):
        raise RecipeError(
            f"{recipe.method.kind} needs an identifier, a rare word that will mean the subject. "
            "Give --trigger WORD (trigger of the source); `konomi identifiers --base "
            f"{recipe.base}` lists such words."
        )
    speaks_of_class = source not in ("none", "images") and "[class]" in prior.prompt
    if speaks_of_class and any(not record.class_noun for record in training):
        raise RecipeError(
            f"{recipe.method.kind} needs a class noun, what the subject is in plain words."
            f"{_proposed(recipe, training)} Give --class NOUN (class_noun of the source), or "
            "prior.source=none to train without the class."
        )
    # The paper's supplement draws about as many as there are steps, Custom Diffusion 200; usual
    # are 100 to 200.
    least, each = for_width(base, published=(100, 40), narrow=(20, 10))
    count = prior.count or min(max(each * len(training), least), 200)
    return replace(recipe, prior=replace(prior, source=source, count=count))


def _source(recipe: Recipe, needs: Needs, records: Sequence[Record]) -> PriorSource:
    """What speaks for the class, with nothing left open. What counts nothing is not made."""
    asked = recipe.prior.source
    if asked == "generate" or asked == "prediction" or asked == "transparent":
        return asked
    if any(record.role == "prior" for record in records):
        return "images" if recipe.objective.prior_weight else "none"
    if asked == "images":
        raise RecipeError(
            'prior.source is "images", and the data has no class images. Give a source of role '
            '"prior", or a folder '
            'reg/ beside img/; "generate" has them drawn.'
        )
    return needs.prior if asked == "auto" and recipe.objective.prior_weight else "none"


def class_images_of(recipe: Recipe, records: Iterable[Record], size: Bucket) -> ClassImages:
    """The pictures to make for a recipe whose prior is decided; none where it needs none."""
    prior = recipe.prior
    if prior.source not in ("generate", "transparent"):
        return ClassImages()
    nouns = dict.fromkeys(record.class_noun for record in records if record.role == "train")
    prompts = {class_prompt(prior.prompt, noun): noun for noun in nouns}
    # One empty picture is like the other; the noise on it differs each time.
    count = prior.count if prior.source == "generate" else 1
    return ClassImages(tuple((noun, prompt) for prompt, noun in prompts.items()), count, size)


def identifier_notes(base: BaseModel, needs: Needs, records: Iterable[Record]) -> tuple[str, ...]:
    """A line for each identifier that is no rare single token. It works all the same, only less
    well.
    """
    if not needs.identifier:
        return ()
    words = dict.fromkeys(
        record.trigger for record in records if record.role == "train" and record.trigger
    )
    advice = "`konomi identifiers --base BASE` lists words that are one token and mean nothing yet."
    notes = []
    for word in words:
        pieces = max(base.tokens(word).values(), key=len)
        if len(pieces) > 1:
            shown = " + ".join(piece.removesuffix("</w>") for piece in pieces)
            notes.append(
                f"the identifier {word!r} is {len(pieces)} tokens to this base ({shown}), which "
                f"may mean something of their own; one rare token is learned more easily. {advice}"
            )
        elif is_ordinary(word):
            notes.append(
                f"the identifier {word!r} is an ordinary word: what the base already knows by it "
                f"interferes and is overwritten. {advice}"
            )
    return tuple(notes)


def propose_nouns(
    recipe: Recipe, records: Sequence[Record], *, count: int = 4
) -> tuple[tuple[str, float], ...]:
    """What CLIP takes the training images for: (noun, share), the likeliest first. None without a
    CLIP that fits.

    Raises ModelError for a `prior.clip` that is none.
    """
    source = recipe.prior.clip or ("tiny" if recipe.base == "tiny" else "")
    images = _some_images(records)
    if not source or not images:
        return ()
    nouns = _list("tiny") if source == "tiny" else everyday_nouns()
    shares = load_clip(source).zero_shot(images, nouns)
    best = shares.topk(min(count, len(nouns)))
    return tuple(
        (nouns[index], float(share))
        for share, index in zip(best.values, best.indices.tolist(), strict=True)
    )


def proposal_text(proposed: Sequence[tuple[str, float]]) -> str:
    """`cat (0.41), fox (0.20)`."""
    return ", ".join(f"{noun} ({share:.2f})" for noun, share in proposed)


def everyday_nouns() -> tuple[str, ...]:
    """About 500 things that people photograph and draw."""
    return _list("everyday")


def is_ordinary(word: str) -> bool:
    """An everyday noun, or among the most frequent words of the captions that CLIP was trained on.

    CLIP's byte-pair vocabulary is in the order of its merges, the most frequent first.
    """
    return (
        word.lower() in everyday_nouns()
        or clip_vocabulary().tokens.get(f"{word.lower()}</w>", ORDINARY) < ORDINARY
    )


@cache
def _list(name: str) -> tuple[str, ...]:
    return tuple((NOUNS / f"{name}.txt").read_text(encoding="utf-8").split("\n")[:-1])


def _proposed(recipe: Recipe, training: Sequence[Record]) -> str:
    proposed = propose_nouns(recipe, training)
    if proposed:
        return f" The images look like: {proposal_text(proposed)}."
    return " --clip MODEL (a CLIP folder or hub id) has it proposed."


def _some_images(records: Sequence[Record]) -> list[Image.Image]:
    found = []
    for record in [record for record in records if record.role == "train"][:LOOKED_AT]:
        try:
            found.append(Image.fromarray(read_image(record.locator).pixels))
        except DataError:
            # Named with all others that cannot be read, where images are read to be trained.
            continue
    return found

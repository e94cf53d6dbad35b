"""Which encoders measure, where a recipe leaves it open: what a finished training is measured by
must not depend on a network that is not there.
"""

import torch

from konomi.config.evaluation import EncodersConfig
from konomi.errors import ModelError
from konomi.evaluation.encoders.encoder import Encoders
from konomi.evaluation.encoders.load import folder_of, load_encoders
from konomi.models.hub import cached_snapshot

IMAGE = "facebook/dinov2-small"
"""84 MB, and nearer to how people see likeness than CLIP (Oquab et al. 2023; Ruiz et al. 2022,
section 4.1, of its predecessor)."""
TEXT = "openai/clip-vit-large-patch14"
OTHER_TEXTS = ("openai/clip-vit-base-patch32", "openai/clip-vit-base-patch16",
               "google/siglip2-base-patch16-224", "google/siglip-base-patch16-224",
               "laion/CLIP-ViT-B-32-laion2B-s34B-b79K")  # fmt: skip
"""Taken where they are on the machine and `TEXT` is not."""
TINY = "tiny"


def open_encoders(
    config: EncodersConfig, *, small_base: bool, device: torch.device
) -> tuple[Encoders, tuple[str, ...]]:
    """The encoders of a recipe, and what is to be said of a choice that had to be made.

    small_base: the base draws what `tiny` draws.
    device: where they compute.

    Raises ModelError where an encoder that the recipe names is not there or of another kind.
    """
    notes: list[str] = []
    text = config.text
    if text == "auto":
        text = TINY if small_base else _text(notes)
    image = config.image
    if image == "auto":
        image = TINY if small_base else _image(text, notes)
    try:
        return load_encoders(image, text, copies=config.copies, device=device), tuple(notes)
    except ModelError as error:
        if "auto" not in (config.image, config.text) or TINY == image == text:
            raise
        # Files that lie there and cannot be read.
        named = EncodersConfig(
            image=TINY if config.image == "auto" else image,
            text=TINY if config.text == "auto" else text,
            copies=config.copies,
            preference=config.preference,
        )
        encoders, _ = open_encoders(named, small_base=small_base, device=device)
        return encoders, (f"{error} Measured by the small CLIP inside konomi instead.",)


def _text(notes: list[str]) -> str:
    reason = _why_not(TEXT)
    if not reason:
        return TEXT
    other = next((name for name in OTHER_TEXTS if cached_snapshot(name, None)), TINY)
    notes.append(_instead("prompt following", TEXT, other, "text", reason))
    return other


def _image(text: str, notes: list[str]) -> str:
    reason = _why_not(IMAGE)
    if reason:
        notes.append(_instead("likeness", IMAGE, text, "image", reason))
    return text if reason else IMAGE


def _why_not(name: str) -> str:
    """Why an encoder is not to be had; "" for one that is on this machine now."""
    try:
        folder_of(name)
    except ModelError as error:
        return str(error)
    return ""


def _instead(what: str, wanted: str, other: str, setting: str, reason: str) -> str:
    taken = "the small CLIP inside konomi, which knows drawings" if other == TINY else other
    told = (
        f"{what} is measured by {taken}: {wanted} is not on this machine and cannot be fetched. "
        f"Fetch it once (hf download {wanted}), or name another folder or hub id in "
        f"evaluation.encoders.{setting}."
    )
    return told if "cannot be reached" in reason else f"{told} ({reason})"

"""What to draw, and what was drawn."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from PIL import Image

from konomi.adapters.adapter import Edit
from konomi.config.generation import GenerationConfig
from konomi.config.problems import check_values
from konomi.errors import RecipeError

MAX_SIDE = 9999
EDIT_GUIDANCE = 3.0
"""Of an edit where nobody says another: the state that draws the picture is far from any text, and
more overdraws it (docs/notes.md)."""
MAX_ETA = 10
DEFAULT_ETA = 0.7
"""Useful values lie between 0.6 and 0.8 (Kawar et al. 2022, section 4.3)."""
MAX_PROMPT = 20_000
"""Characters of a prompt: about 5,000 tokens, of which no base has learned to read more than a few
hundred."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request(GenerationConfig):
    """One picture to draw. Frozen, so that the same request is the same picture."""

    prompt: str
    """May hold emphasis, BREAK, switching, mixing. `<lora:...>` tags are kept for the infotext and
    not drawn: whoever calls attaches the adapters first (`konomi.generation.adapter_request`)."""
    width: int = 0
    """In pixels, a multiple of the base's latent factor; 0: the initial picture's, fitted to the
    base's area where it is larger, else the base's own size."""
    height: int = 0
    clip_skip: int = 0
    """As `text.clip_skip`: 1 the last layer, 2 the one before, 0 the base's own choice."""
    init: Image.Image | None = None
    """Picture to start from (img2img)."""
    strength: float = 1.0
    """How much of `init` is drawn anew, 0 to 1: the share of the steps that is done."""
    edit: Edit | None = None
    """What draws one picture edited (Imagic), put on with its adapter; `prompt` is the target."""
    eta: float = DEFAULT_ETA
    """How far from the picture's own text state to the target's: 0 the picture, 1 the target;
    below and above too."""
    mask: Image.Image | None = None
    """White where `init` is to be drawn anew (inpainting); everything else keeps its pixels."""

    @classmethod
    def of(cls, settings: GenerationConfig, **others: Any) -> "Request":
        """A request with settings from elsewhere, such as a recipe's section."""
        return cls(**{name: getattr(settings, name) for name in SHARED} | others)

    def check(self) -> None:
        """Raises RecipeError, naming the value that cannot be drawn."""
        check_values({name: getattr(self, name) for name in SHARED}, GenerationConfig)
        if max(self.width, self.height) > MAX_SIDE:
            raise RecipeError(
                f"size is {self.width}x{self.height}; at most {MAX_SIDE} pixels a side can be "
                "drawn."
            )
        for name, text in (("prompt", self.prompt), ("negative prompt", self.negative)):
            if len(text) > MAX_PROMPT:
                raise RecipeError(
                    f"the {name} has {len(text):,} characters; at most {MAX_PROMPT:,}. Shorten it: "
                    f"{text[:40]!r}..."
                )
        if self.clip_skip < 0:
            raise RecipeError(
                f"clip_skip is {self.clip_skip}; 0 (the base's own choice) or a layer from the end."
            )
        if not -MAX_ETA <= self.eta <= MAX_ETA:
            raise RecipeError(f"eta is {self.eta:g}; it must lie between -{MAX_ETA} and {MAX_ETA}.")
        if not 0 < self.strength <= 1:
            raise RecipeError(
                f"strength is {self.strength:g}; it must lie above 0 and not above 1."
            )
        if int(self.steps * self.strength) < 1:
            raise RecipeError(
                f"strength is {self.strength:g}; of {self.steps} steps that leaves none. Raise "
                "strength or steps."
            )
        if self.mask is not None and self.init is None:
            raise RecipeError(
                "mask is given without init. Give the picture that the mask belongs to."
            )


SHARED = tuple(item.name for item in fields(GenerationConfig))


@dataclass(frozen=True, slots=True)
class UsedAdapter:
    """An adapter that was attached while drawing."""

    name: str
    denoiser_weight: float = 1.0
    text_weight: float = 1.0
    hash: str = ""
    """First 12 characters of the sha256 that web UIs show (of the tensors, `sshs_model_hash`)."""
    kind: str = "lora"
    """The tag that calls it, `lora` or `hypernet`; `embedding` where its name as a word does."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What a picture was drawn with, besides the request."""

    model: str = ""
    model_hash: str = ""
    """First 10 characters of the file's sha256."""
    adapters: tuple[UsedAdapter, ...] = ()
    extra: Mapping[str, str] = field(default_factory=dict)
    """Further entries of the infotext."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A drawn picture."""

    image: Image.Image
    """RGB."""
    request: Request
    """With width and height filled in."""
    infotext: str
    """As web UIs write it into the PNG chunk `parameters`."""

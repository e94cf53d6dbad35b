"""The methods of additional training. A new one is its file and one entry here."""

from konomi.config.recipe import Recipe
from konomi.errors import RecipeError
from konomi.methods.custom_diffusion import CustomDiffusion
from konomi.methods.dreamartist import DreamArtist
from konomi.methods.dreambooth import Dreambooth
from konomi.methods.full import Full
from konomi.methods.hypernetwork import HypernetworkMethod
from konomi.methods.imagic import Imagic
from konomi.methods.lora import Lora
from konomi.methods.method import Method
from konomi.methods.pivotal import Pivotal
from konomi.methods.textual_inversion import TextualInversion

METHODS: tuple[type[Method], ...] = (
    Lora,
    Full,
    Dreambooth,
    HypernetworkMethod,
    CustomDiffusion,
    TextualInversion,
    Pivotal,
    DreamArtist,
    Imagic,
)


def method_of(recipe: Recipe) -> type[Method]:
    """The method whose settings a recipe has. Raises RecipeError if there is none."""
    for method in METHODS:
        if isinstance(recipe.method, method.config_type):
            return method
    raise RecipeError(f"method.kind is {recipe.method.kind!r}, which konomi does not have.")

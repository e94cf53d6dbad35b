"""What methods do by default: as papers and practice have it on published widths, as measured on
`tiny` below.
"""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from konomi.config.prior import PriorConfig
from konomi.config.sections import RunConfig
from konomi.errors import RecipeError
from konomi.methods.custom_diffusion import CustomDiffusionConfig
from konomi.methods.hypernetwork import HypernetworkConfig
from konomi.methods.method import Needs
from konomi.tasks.prior import with_prior

PUBLISHED = {"unet": {"block_out_channels": [320, 32, 32], "norm_num_groups": 8}}


@pytest.fixture(scope="module")
def bases():
    """Nothing is loaded: a default is decided from the configuration."""
    from konomi.models.random_base import random_base

    return {"published": random_base("sd1", configs=PUBLISHED), "narrow": random_base("sd1")}


@pytest.mark.parametrize(
    ("kind", "images", "published", "narrow"),
    [
        ("textual_inversion", 5, 3000, 300),
        ("textual_inversion", 1, 1000, 300),
        ("textual_inversion", 20, 5000, 1200),
        ("hypernetwork", 5, 2000, 400),
        ("hypernetwork", 14, 5600, 1120),
        ("lora", 5, 500, 400),
        ("lora", 14, 1400, 1120),
        ("dreambooth", 3, 800, 600),
        ("pivotal", 5, 2000, 550),
    ],
)
def test_steps(kit, bases, kind, images, published, narrow):
    method_type = kit.method_type(kind)
    for width, expected in (("published", published), ("narrow", narrow)):
        method = kit.method(bases[width], kit.recipe(method_type.config_type()))
        assert method.default_steps(images) == expected, width


def test_a_hypernetwork_learns_by_the_practice_on_published_widths(kit):
    for configs, expected in ((PUBLISHED, 1e-5), ({}, 3e-4)):
        base = kit.base("sd1", configs=configs)
        method = kit.method(base, kit.recipe(HypernetworkConfig(), learning_rate=None))
        (phase,) = method.plan()
        assert [group.learning_rate for group in phase.groups] == [expected]


@pytest.mark.parametrize(
    ("batch", "prior", "expected"),
    [
        (1, "none", 1e-5),
        (1, "images", 2e-5),
        (1, "generate", 2e-5),
        (4, "none", 4e-5),
        (2, "generate", 4e-5),
    ],
)
def test_custom_diffusions_rate_is_for_each_picture_of_a_step(kit, batch, prior, expected):
    base = kit.base("sd1", configs=PUBLISHED)
    recipe = kit.recipe(CustomDiffusionConfig(), learning_rate=None)
    recipe = replace(recipe, run=RunConfig(batch_size=batch), prior=PriorConfig(source=prior))
    (phase,) = kit.method(base, recipe).plan()
    assert [group.learning_rate for group in phase.groups] == pytest.approx([expected, expected])


@pytest.mark.parametrize(
    ("width", "images", "count"), [(320, 5, 200), (320, 1, 100), (64, 5, 50), (64, 1, 20)]
)
def test_class_images(kit, width, images, count):
    records = [SimpleNamespace(role="train", trigger="sks", class_noun="dog", captions=())] * images
    recipe = kit.recipe(kit.method_type("dreambooth").config_type())
    filled = with_prior(
        recipe,
        Needs(prior="generate", identifier=True),
        records,
        SimpleNamespace(width=width, published_width=320),
    )
    assert filled.prior.count == count


@pytest.mark.parametrize("asked", ["auto", "none", "images"])
@pytest.mark.parametrize("weight", [1.0, 0.0])
def test_class_images_in_the_data_count_however_they_came_there(kit, asked, weight):
    """A source of role `prior`, kohya's reg/ folder, `is_reg` of a dataset file: all are records
    of that role.
    """
    records = [
        SimpleNamespace(role=role, trigger="sks", class_noun="", captions=())
        for role in ("train", "prior")
    ]
    recipe = replace(kit.recipe(CustomDiffusionConfig()), prior=PriorConfig(source=asked))
    recipe = replace(recipe, objective=replace(recipe.objective, prior_weight=weight))
    filled = with_prior(recipe, Needs(), records, SimpleNamespace(width=320, published_width=320))
    assert filled.prior.source == ("images" if weight else "none")
    assert (
        with_prior(filled, Needs(), records, SimpleNamespace(width=320, published_width=320))
        == filled
    )


def test_class_images_that_are_not_there_are_asked_for_in_vain(kit):
    recipe = replace(kit.recipe(CustomDiffusionConfig()), prior=PriorConfig(source="images"))
    records = [SimpleNamespace(role="train", trigger="sks", class_noun="dog", captions=())]
    with pytest.raises(RecipeError, match="reg/"):
        with_prior(recipe, Needs(), records, SimpleNamespace(width=320, published_width=320))

"""`initial = "leap"` with every method that has it, on every family: the first vectors are what the
network says, computed here by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from konomi.config.sections import DataConfig, SourceConfig
from konomi.errors import FileFormatError, RecipeError
from konomi.formats.start_network import StartFacts, StartNetwork, write_start_network
from konomi.methods.custom_diffusion import CustomDiffusionConfig
from konomi.methods.dreamartist import DreamArtistConfig
from konomi.methods.learned_start import token_fingerprint
from konomi.methods.pivotal import PivotalConfig
from konomi.methods.textual_inversion import TextualInversionConfig
from konomi.models.clip import load_clip

WIDTH = 128
"""Of the features of the CLIP inside konomi."""


def network_for(base, **changes):
    widths = {part: base.token_embedding(part).shape[1] for part in base.text_encoders}
    facts = StartFacts("features", base.name, token_fingerprint(base), widths, clip="tiny")
    g = torch.Generator().manual_seed(3)
    shapes = {"mean": (WIDTH,), "weight": (WIDTH, facts.numbers), "bias": (facts.numbers,)}
    # Half precision is what files have.
    tensors = {n: torch.randn(shape, generator=g).half().float() for n, shape in shapes.items()}
    return StartNetwork(replace(facts, **changes), tensors)


def pictures():
    g = np.random.default_rng(0)
    return [Image.fromarray(g.integers(0, 256, (40, 32, 3), dtype=np.uint8)) for _ in range(3)]


def by_hand(network):
    features = load_clip("tiny").image_features(pictures()).double()
    mean = functional.normalize(features, dim=1).mean(0)
    tensors = {name: tensor.double() for name, tensor in network.tensors.items()}
    answer = (mean - tensors["mean"]) @ tensors["weight"] + tensors["bias"]
    parts = answer.split(list(network.facts.widths.values()))
    return dict(zip(network.facts.widths, parts, strict=True))


def configs(path):
    file = str(path)
    words = TextualInversionConfig(initial="leap", initial_file=file, vectors=3)
    return (
        words,
        PivotalConfig(words=words),
        DreamArtistConfig(start="leap", start_file=file),
        CustomDiffusionConfig(initial=("leap",), initial_file=file, size_augmentation=False),
    )


def recipe_of(kit, config):
    source = SourceConfig(path="x", trigger="sks")
    return replace(kit.recipe(config), data=DataConfig(sources=(source,)))


@pytest.mark.parametrize("family", ["sd1", pytest.param("sd2", marks=pytest.mark.slow), "sdxl"])
def test_words_start_where_the_network_says(kit, tmp_path, family):
    base = kit.base(family, small=family == "sd1")
    network, path = network_for(base), tmp_path / "start.safetensors"
    write_start_network(network, path)
    expected = by_hand(network)
    for config in configs(path):
        method = kit.method(base, recipe_of(kit, config))
        assert method.learned_start.words == ("sks",)
        method.learned_start.look({"sks": pictures})
        method.plan()
        learned = method.export().embeddings["sks"]
        for part, vector in expected.items():
            rows = learned[part].double()
            torch.testing.assert_close(rows, vector.expand_as(rows), rtol=1e-4, atol=1e-4)
        method.close()


def test_another_network_is_refused_in_one_line(kit, tmp_path, monkeypatch):
    base, path = kit.base("sd1", small=True), tmp_path / "start.safetensors"
    recipe = recipe_of(kit, TextualInversionConfig(initial="leap", initial_file=str(path)))
    for changes, said in (
        ({"fingerprint": "0"}, "whose text encoder has other weights"),
        ({"widths": {"text_encoder": 7}}, "another kind of base"),
        ({"kind": "guess"}, "describe no network of starts"),
        ({"vectors": 0}, "describe no network of starts"),
    ):
        write_start_network(network_for(base, **changes), path)
        with pytest.raises((RecipeError, FileFormatError), match=said) as caught:
            kit.method(base, recipe)
        assert "\n" not in str(caught.value)
    network = network_for(base)
    write_start_network(replace(network, tensors={"mean": network.tensors["mean"]}), path)
    with pytest.raises(FileFormatError, match="weight is missing or misshapen"):
        kit.method(base, recipe).learned_start.look({"sks": pictures})
    path.unlink()
    with pytest.raises(FileFormatError, match="there is no such file"):
        kit.method(base, recipe)
    # Without a name it is looked for beside the base.
    monkeypatch.chdir(tmp_path)
    beside = recipe_of(kit, TextualInversionConfig(initial="leap"))
    with pytest.raises(RecipeError, match=r"random-start.safetensors: there is no network"):
        kit.method(base, beside)
    idle = recipe_of(kit, TextualInversionConfig(initial="dog", initial_file=str(path)))
    assert kit.needs(base, idle).unused["method.initial_file"] == 'method.initial is not "leap".'

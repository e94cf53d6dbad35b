"""What the embedded base is made with: scenes and captions as pure functions, and the mathematics
of two shortcuts.
"""

import itertools
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPTokenizer

ROOT = Path(__file__).parents[3]
DATA = ROOT.parent / "shared" / "data"
sys.path.insert(0, str(ROOT))

from tools.tiny import (  # noqa: E402
    captions,
    clip,
    dataset,
    mascot,
    norm,
    pack,
    scenes,
    second_thing,
    stage,
    tokenizer,
    vae,
)


def sprite(name: str, style: str, colour: str) -> scenes.Sprite:
    image = Image.new("RGBA", (128, 128), (0, 0, 0, 0))
    image.paste(colour, (32, 32, 96, 96))
    return scenes.Sprite(name, ("round", "thing"), 3, style, image)


@pytest.fixture(scope="module")
def sprites() -> scenes.Sprites:
    names = ("cat", "egg", "glasses", "old key")
    return scenes.index_sprites([sprite(n, s, "red") for s in scenes.STYLES for n in names])


def test_scene_is_a_pure_function_of_its_seed(sprites: scenes.Sprites) -> None:
    for seed in range(20):
        first, second = scenes.describe(sprites, seed), scenes.describe(sprites, seed)
        assert first == second
        assert np.array_equal(scenes.render(sprites, first), scenes.render(sprites, second))
        assert captions.caption(sprites, first, 1) == captions.caption(sprites, second, 1)
    assert len({captions.caption(sprites, scenes.describe(sprites, 7), k) for k in range(20)}) > 3


def test_border_has_the_named_colour(sprites: scenes.Sprites) -> None:
    table = np.array(list(scenes.COLOURS.values()))
    for seed in range(200):
        scene = scenes.describe(sprites, seed)
        if scene.background.kind == "plain":
            corner = scenes.render(sprites, scene)[0, 0].astype(int)
            nearest = np.abs(table - corner).sum(1).argmin()
            assert list(scenes.COLOURS)[nearest] == scene.background.colour


def test_captions_name_what_is_there(sprites: scenes.Sprites) -> None:
    for seed in range(200):
        scene = scenes.describe(sprites, seed)
        words = captions.caption(sprites, scene, 0)
        for item in scene.items:
            assert sprites.all[item.sprite].name in words
        for colour in scenes.COLOURS:
            named = f"{colour} background" in words or f"{colour} to " in words
            assert not named or scene.background.colour.endswith(colour)


def test_articles() -> None:
    assert captions.with_article("egg") == "an egg"
    assert captions.with_article("egg", "big") == "a big egg"
    assert captions.with_article("glasses") == "glasses"
    assert captions.with_article("walrus") == "a walrus"


def test_merges_join_the_most_frequent_neighbours_first() -> None:
    """By hand: `ab</w>` comes 5 times, `a b` in `abc` twice, so (a, b</w>) is first, then c</w>
    after a+b.
    """
    from collections import Counter

    merges = tokenizer.learn_merges(Counter({"ab": 5, "abc": 2}), 3)
    assert merges == [("a", "b</w>"), ("a", "b"), ("ab", "c</w>")]


def test_group_norm_backward_equals_pytorchs() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 8, 5, 4, dtype=torch.float32, requires_grad=True)
    weight, bias = torch.randn(8, requires_grad=True), torch.randn(8, requires_grad=True)
    seen = torch.randn(3, 8, 5, 4)
    answers = []
    for function in (torch.nn.functional.group_norm, None):
        if function is None:
            y = norm.GroupNormFunction.apply(x, weight, bias, 4, 1e-6)
        else:
            y = function(x, 4, weight, bias, 1e-6)
        answers.append((y, *torch.autograd.grad(y, (x, weight, bias), seen)))
    for mine, theirs in zip(*answers):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_folding_the_scale_keeps_pictures_and_gives_unit_latents() -> None:
    model = vae.new_vae().eval()
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(6)]
    pixels = vae.to_tensor(pictures, "cpu")
    with torch.no_grad():
        before = model.decode(model.encode(pixels).latent_dist.mean).sample
        deviation = model.encode(pixels).latent_dist.std
        gain = 1 / (vae.SCALING * model.encode(pixels).latent_dist.mean.std((0, 2, 3)))
    vae.fold_scale(model, pictures)
    with torch.no_grad():
        latents = model.encode(pixels).latent_dist
        after = model.decode(latents.mean).sample
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-4)
    scaled = latents.mean * vae.SCALING
    torch.testing.assert_close(scaled.mean((0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-3)
    torch.testing.assert_close(scaled.std((0, 2, 3)), torch.ones(4), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(
        latents.std, deviation * gain[None, :, None, None], rtol=1e-3, atol=1e-5
    )


def test_mascot_is_drawn_as_shipped(tmp_path: Path) -> None:
    shipped = ROOT / "src" / "konomi" / "builtin" / "mascot"
    for path in mascot.write_pictures(tmp_path):
        with Image.open(path) as mine, Image.open(shipped / path.name) as theirs:
            difference = np.abs(np.asarray(mine, dtype=int) - np.asarray(theirs, dtype=int))
        assert difference.mean() < 1


def test_a_band_holds_both_things_of_a_pair_whole(sprites: scenes.Sprites) -> None:
    for scene in itertools.islice(dataset.bands_from(sprites, 0), 30):
        plain = replace(scene, background=scenes.Background("plain", "blue"))
        whole, band = scenes.render(sprites, plain), dataset.render_band(sprites, plain)
        assert band.shape == (dataset.BAND, scenes.SIDE, 3)
        red = (whole[..., 0] > 200).sum(0), (band[..., 0] > 200).sum(0)
        assert np.array_equal(*red)
        assert red[1][: scenes.SIDE // 2].any() and red[1][scenes.SIDE // 2 :].any()


def test_the_mixture_has_as_many_scenes_of_each_kind_as_it_says(
    sprites: scenes.Sprites, tmp_path: Path
) -> None:
    folders = dataset.write_mixture(sprites, tmp_path, count=16, side=96, lot=1)
    rows = {
        f.name: list(map(json.loads, (f / "metadata.jsonl").read_text("utf-8").splitlines()))
        for f in folders
    }
    assert {name: len(found) for name, found in rows.items()} == {
        "all": 6,
        "favourites": 2,
        "pairs": 8,
    }
    names = [r["text"] for r in rows["pairs"]]
    assert all(sum(text.count(name) for name in sprites.names) == 2 for text in names)
    assert not any("key" in r["text"] or "glasses" in r["text"] for r in rows["favourites"])
    for folder in folders:
        for row in rows[folder.name]:
            with Image.open(folder / row["file_name"]) as image:
                assert image.size == (96, 96)


def test_a_second_thing_is_found_after_the_first() -> None:
    """In a caption's ids: `7 8` stands for a name of two tokens that also ends the other name, `6
    7 8`.
    """
    row = [0, 1, 6, 7, 8, 2, 1, 7, 8, 9]
    assert second_thing.find(row, [6, 7, 8]) == 2
    assert second_thing.find(row, [7, 8]) == 3
    assert second_thing.find(row, [7, 8], 2 + 3) == 7
    assert second_thing.find(row, [8, 7]) == -1
    assert second_thing.find(row, [9, 9]) == -1


@pytest.mark.slow
def test_a_second_thing_comes_to_mean_what_it_means_alone(
    sprites: scenes.Sprites, tmp_path: Path
) -> None:
    tiny = ROOT / "src" / "konomi" / "builtin" / "tiny"
    words = CLIPTokenizer.from_pretrained(tiny / "tokenizer")
    torch.manual_seed(0)
    clip_model = pack.load_clip_model(tiny)
    # The packed tower has been taught; a random mixing of positions in its first layer undoes that.
    torch.nn.init.normal_(
        clip_model.text.text_model.encoder.layers[0].self_attn.out_proj.weight, std=0.1
    )
    things = ("a cat", "an egg", "glasses", "an old key")
    texts = [f"{one} next to {other}" for one in things for other in things if one != other]
    alone = [other for one in things for other in things if one != other]

    def last_states() -> tuple[torch.Tensor, torch.Tensor]:
        """Of the last word of each text, means taken off: in a pair and alone."""
        with torch.no_grad():
            found = []
            for asked in (texts, alone):
                tokens = clip.tokenize(words, asked, "cpu")
                end = (tokens == tokens.max()).int().argmax(1)
                states = clip_model.text(input_ids=tokens).last_hidden_state[
                    range(len(asked)), end - 1
                ]
                found.append(states - states.mean(0))
        return found[0], found[1]

    pairs, single = last_states()
    before = torch.cosine_similarity(pairs, single).mean()
    work = stage.Work(tmp_path, tmp_path)
    second_thing.train_second_thing(work, clip_model, sprites, sprites, words, steps=25, batch=24)
    pairs, kept = last_states()
    after = torch.cosine_similarity(pairs, kept).mean()
    assert 1 - after < (1 - before) / 2
    assert torch.cosine_similarity(kept, single).mean() > 0.9


@pytest.mark.skipif(not DATA.is_dir(), reason="the emoji sprites are not on this machine")
def test_novel_concepts_and_styles_are_never_seen() -> None:
    trained = scenes.load_sprites(DATA)
    novel = {s.name for s in scenes.read_zip(DATA / "emoji-novel.zip")}
    assert not novel & set(trained.names)
    assert {s.style for s in trained.all} == set(scenes.STYLES)


def test_a_stage_that_was_stopped_ends_as_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(folder: Path, *sittings: int) -> torch.Tensor:
        for steps in sittings:
            torch.manual_seed(0)
            model = torch.nn.Linear(3, 2)
            optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
            progress = stage.Progress(folder, model, optimizer, decay=0.9)

            def loss_at(step: int, model: torch.nn.Linear = model) -> tuple[torch.Tensor, str]:
                inputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
                return model(inputs).square().mean(), ""

            # A constant rate: the schedule is a matter of the whole length.
            monkeypatch.setattr(stage, "learning_rate", lambda *_, **__: 0.1)
            stage.train(progress, loss_at, steps=steps, peak=0.1, warmup=0)
        saved: torch.Tensor = load_file(folder / "weights.safetensors")["weight"]
        return saved

    whole = trained(tmp_path / "whole", 8)
    assert torch.equal(trained(tmp_path / "parts", 3, 8), whole)
    assert not torch.equal(trained(tmp_path / "short", 3), whole)


@pytest.mark.skipif(not DATA.is_dir(), reason="the emoji sprites are not on this machine")
@pytest.mark.slow
def test_the_clip_inside_names_drawings_among_all_names() -> None:
    """Scenes of their own, on any background; chance is one in three hundred."""
    from konomi.models.clip import load_clip

    drawings = scenes.load_sprites(DATA)
    seen = [scenes.describe(drawings, 987_000_000 + n, pair_share=0.0) for n in range(48)]
    clip = load_clip("tiny")
    pictures = clip.image_features(
        [Image.fromarray(scenes.render(drawings, scene)) for scene in seen]
    )
    names = clip.text_features([captions.with_article(name) for name in drawings.names])
    first = (pictures @ names.T).topk(5).indices.tolist()
    right = [
        drawings.all[s.items[0].sprite].name in {drawings.names[n] for n in row}
        for s, row in zip(seen, first)
    ]
    assert np.mean(right) > 0.6

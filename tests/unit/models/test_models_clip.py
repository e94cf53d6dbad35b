"""CLIP as konomi reads it against transformers' own class, and what the one inside konomi knows."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from konomi.errors import ModelError
from konomi.models.clip import load_clip
from konomi.models.tokenizer import clip_vocabulary, write_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small random CLIP as the hub has them."""
    from transformers import CLIPConfig, CLIPModel

    size = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    vision = {**size, "image_size": 32, "patch_size": 8, "projection_dim": 24}
    torch.manual_seed(0)
    model = CLIPModel(
        CLIPConfig(
            text_config={**size, "projection_dim": 24}, vision_config=vision, projection_dim=24
        )
    )
    path = tmp_path_factory.mktemp("clip") / "model"
    write_tokenizer(path, clip_vocabulary(), pad_token="<|endoftext|>")
    model.save_pretrained(path)
    return path


def pictures(count=3, size=(32, 32)):
    g = np.random.default_rng(0)
    return [
        Image.fromarray(g.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
        for _ in range(count)
    ]


@pytest.mark.filterwarnings("ignore")
def test_features_are_those_of_transformers(folder):
    from transformers import CLIPModel, CLIPTokenizer

    model, tokenizer = CLIPModel.from_pretrained(folder), CLIPTokenizer.from_pretrained(folder)
    clip = load_clip(folder)
    texts = ["a photo of a cat", "dog", "a very long caption " * 40]
    told = tokenizer(texts, padding=True, truncation=True, max_length=77, return_tensors="pt")
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    images = pictures()
    pixels = torch.stack(
        [(torch.tensor(np.asarray(i)).permute(2, 0, 1) / 255 - mean) / std for i in images]
    )
    with torch.no_grad():
        wanted = model(
            input_ids=told["input_ids"], attention_mask=told["attention_mask"], pixel_values=pixels
        )
    torch.testing.assert_close(
        clip.text_features(texts, batch=2), wanted.text_embeds, rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        clip.image_features(images, batch=2), wanted.image_embeds, rtol=1e-4, atol=1e-5
    )
    shares = clip.zero_shot(images[:1], texts, template="{}")
    torch.testing.assert_close(shares, wanted.logits_per_image[0].softmax(0), rtol=1e-4, atol=1e-5)


def test_the_middle_square_of_a_picture_is_seen(folder):
    clip = load_clip(folder)
    (square,) = pictures(1)
    wide = Image.new("RGB", (64, 32), (9, 9, 9))
    wide.paste(square, (16, 0))
    torch.testing.assert_close(clip.image_features([wide]), clip.image_features([square]))


def test_the_one_inside_konomi_tells_a_pizza_from_a_snake():
    clip = load_clip("tiny")
    assert clip.side == 128
    for features in (
        clip.image_features(pictures(2, (90, 70))),
        clip.text_features(["a cat", "a dog"]),
    ):
        torch.testing.assert_close(features.norm(dim=1), torch.ones(2))
    shares = clip.zero_shot(pictures(2), ["cat", "dog", "pizza"])
    assert shares.sum().item() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "siglip"}, "is of type 'siglip', not a CLIP"),
        ({"projection_dim": 48}, "missing or misshapen, first"),
    ],
)
def test_what_is_no_clip_is_said_in_one_line(folder, tmp_path, change, message):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=message) as error:
        load_clip(tmp_path)
    assert "\n" not in str(error.value)


def test_nothing_there():
    with pytest.raises(ModelError, match="no folder of a CLIP model"):
        load_clip("./nowhere/at/all")

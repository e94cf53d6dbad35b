"""Encoders against transformers' own classes and image processors, on small random networks."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch.nn import functional

from konomi.errors import ModelError
from konomi.evaluation.encoders import load_encoder, load_encoders
from konomi.evaluation.encoders.gram import gram
from konomi.evaluation.encoders.load import wanted_encoder_files
from konomi.evaluation.encoders.network import open_network
from konomi.evaluation.encoders.preprocessing import IMAGENET_STATISTICS, Preprocessing
from konomi.models.clip import load_clip

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 28,
    "patch_size": 14,
}
PICTURE = {"dinov2": (256, 224), "clip": (28, 28)}


def pictures(count: int = 3) -> list[Image.Image]:
    """Of several shapes, smooth enough that filters matter."""
    drawn = np.random.default_rng(0)
    return [
        Image.fromarray(drawn.integers(0, 255, (9, 7, 3), dtype=np.uint8)).resize(size)
        for size in [(61, 40), (33, 77), (300, 260)][:count]
    ]


def saved(folder, model, processor: dict | None = None):
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    model.eval().save_pretrained(folder)
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return model


def unit(features: torch.Tensor) -> torch.Tensor:
    return functional.normalize(features.detach(), dim=1)


def dino_processor():
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

    return BitImageProcessorPil(
        size={"shortest_edge": 32},
        crop_size={"height": 28, "width": 28},
        image_mean=IMAGENET_STATISTICS[0],
        image_std=IMAGENET_STATISTICS[1],
    )


def plain_vit():
    from transformers import ViTConfig, ViTModel

    return ViTModel(ViTConfig(**SIZES), add_pooling_layer=True)


def dinov2():
    from transformers import Dinov2Config, Dinov2Model

    return Dinov2Model(Dinov2Config(**SIZES))


def dinov2_with_registers():
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    return Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**SIZES))


def dinov3():
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    return DINOv3ViTModel(DINOv3ViTConfig(**SIZES, num_register_tokens=2))


@pytest.mark.parametrize("make", [plain_vit, dinov2, dinov2_with_registers, dinov3])
def test_class_tokens_are_those_of_transformers(tmp_path, make):
    processor = dino_processor()
    model = saved(tmp_path, make(), processor.to_dict())
    encoder = load_encoder(str(tmp_path))
    # DINOv3 scales before it resizes; its pixels are looked at below.
    pixels = (
        torch.stack([encoder.network.prepare(picture) for picture in pictures()])
        if make is dinov3
        else processor(pictures(), return_tensors="pt")["pixel_values"]
    )
    expected = unit(model(pixel_values=pixels).last_hidden_state[:, 0])
    torch.testing.assert_close(encoder.features(pictures()), expected, atol=1e-5, rtol=0)


def test_dinov3_of_convolutions(tmp_path):
    from transformers import DINOv3ConvNextConfig, DINOv3ConvNextModel

    model = saved(
        tmp_path, DINOv3ConvNextModel(DINOv3ConvNextConfig(hidden_sizes=[8] * 4, depths=[1] * 4))
    )
    encoder = load_encoder(str(tmp_path))
    pixels = torch.stack([encoder.network.prepare(picture) for picture in pictures()])
    assert pixels.shape == (3, 3, 224, 224)
    expected = unit(model(pixel_values=pixels).pooler_output)
    torch.testing.assert_close(encoder.features(pictures()), expected, atol=1e-5, rtol=0)


def test_dinov3_resizes_what_is_scaled_already():
    """As torchvision does, whose resizing of tensors is torch's own."""
    prepare = Preprocessing(
        (32, 48), None, None, *IMAGENET_STATISTICS, Image.Resampling.BILINEAR, rounded=False
    )
    for picture in pictures():
        scaled = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255
        resized = functional.interpolate(scaled, (32, 48), mode="bilinear", antialias=True)
        mean, std = (torch.tensor(values)[:, None, None] for values in IMAGENET_STATISTICS)
        expected = ((resized - mean) / std)[0]
        torch.testing.assert_close(prepare(picture), expected, atol=2e-5, rtol=0)


def clip_model():
    from transformers import CLIPConfig, CLIPModel

    text = {
        "vocab_size": 49408,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "eos_token_id": 49407,
        "bos_token_id": 49406,
        "pad_token_id": 49407,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=SIZES, projection_dim=8))


def test_clip_is_that_of_transformers(tmp_path, monkeypatch):
    import shutil

    from transformers import CLIPTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    from konomi.models.load import BUILTIN

    shutil.copytree(BUILTIN / "tiny" / "tokenizer", tmp_path, dirs_exist_ok=True)
    sides = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    processor = CLIPImageProcessorPil(**sides)
    model = saved(tmp_path, clip_model(), processor.to_dict())
    encoders = load_encoders(str(tmp_path), str(tmp_path))
    assert encoders.image is encoders.text
    pixels = processor(pictures(), return_tensors="pt")["pixel_values"]
    seen = unit(model.get_image_features(pixel_values=pixels).pooler_output)
    torch.testing.assert_close(encoders.image.features(pictures()), seen, atol=1e-5, rtol=0)
    texts = ["a dog", "a dog on the beach, at night"]
    ids = CLIPTokenizer.from_pretrained(tmp_path)(texts, padding=True, return_tensors="pt")
    read = unit(model.get_text_features(**ids).pooler_output)
    torch.testing.assert_close(encoders.text.text_features(texts), read, atol=1e-5, rtol=0)


def test_siglip_is_that_of_transformers(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, SiglipConfig, SiglipModel
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    words = {word: i for i, word in enumerate(["<pad>", "<unk>", "a", "dog", "on", "beach"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")
    fast.save_pretrained(tmp_path)
    text = {k: v for k, v in SIZES.items() if k not in ("image_size", "patch_size")}
    text |= {"vocab_size": 6, "max_position_embeddings": 8}
    processor = SiglipImageProcessorPil(size={"height": 28, "width": 28})
    model = saved(
        tmp_path,
        SiglipModel(SiglipConfig(text_config=text, vision_config=SIZES)),
        processor.to_dict(),
    )
    encoders = load_encoders(str(tmp_path), str(tmp_path))
    pixels = processor(pictures(), return_tensors="pt")["pixel_values"]
    seen = unit(model.get_image_features(pixel_values=pixels).pooler_output)
    torch.testing.assert_close(encoders.image.features(pictures()), seen, atol=1e-5, rtol=0)
    ids = torch.tensor([[2, 3, 4, 5, 0, 0, 0, 0], [2, 3, 0, 0, 0, 0, 0, 0]])
    read = unit(model.get_text_features(input_ids=ids).pooler_output)
    found = encoders.text.text_features(["A dog on BEACH", "a dog"])
    torch.testing.assert_close(found, read, atol=1e-5, rtol=0)


def test_the_clip_inside_konomi_sees_as_it_did():
    encoders = load_encoders("tiny", "tiny")
    clip = load_clip("tiny")
    square = [picture.resize((64, 64)) for picture in pictures()]
    torch.testing.assert_close(
        encoders.image.features(square), clip.image_features(square), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(
        encoders.text.text_features(["a cat"]), clip.text_features(["a cat"]), atol=0, rtol=0
    )


def test_a_picture_is_computed_once_whichever_object_it_is(tmp_path):
    saved(tmp_path, dinov2(), dino_processor().to_dict())
    encoder = load_encoder(str(tmp_path))
    first, second, _ = pictures()
    before = encoder.features([first, second, first.copy()])
    without = replace(encoder.network, see=None, early_layers=None)
    encoder = replace(encoder, network=without)
    assert torch.equal(encoder.features([first.copy(), second])[0], before[2])
    assert len(encoder._pictures) == 2


@pytest.mark.parametrize(
    "settings, shape, middle",
    [
        ({}, (224, 224), True),
        ({"size": 20, "crop_size": 18}, (18, 18), True),
        ({"size": {"height": 30, "width": 20}, "do_center_crop": False}, (30, 20), False),
        ({"size": {"shortest_edge": 10}, "crop_size": {"height": 40, "width": 40}}, (40, 40), True),
        ({"do_resize": False, "do_center_crop": False}, (40, 61), False),
    ],
)
def test_what_a_config_says_of_sizes(tmp_path, settings, shape, middle):
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

    usual = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]}
    saved(tmp_path, dinov2(), usual | settings)
    prepare = open_network("x", tmp_path, torch.device("cpu")).prepare
    found = prepare(pictures()[0])
    assert found.shape == (3, *shape)
    if settings:
        judge = BitImageProcessorPil(**usual | settings)
        expected = judge(pictures()[0], return_tensors="pt")["pixel_values"][0]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_grams_are_covariances_of_early_layers(tmp_path):
    """Against numpy in float64, on the hidden states that transformers gives."""
    model = saved(tmp_path, dinov2(), dino_processor().to_dict())
    encoder = load_encoder(str(tmp_path))
    pixels = torch.stack([encoder.network.prepare(picture) for picture in pictures()])
    states = model(pixel_values=pixels, output_hidden_states=True).hidden_states
    rows = []
    for number in range(3):
        layers = [states[i][number].detach().double().numpy() for i in (1, 1)]
        grams = [np.cov(layer, rowvar=False, bias=True).ravel() for layer in layers]
        rows.append(np.concatenate([gram / np.linalg.norm(gram) for gram in grams]))
    expected = np.stack(rows) / np.sqrt(2)
    found = encoder.style_features(pictures()).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_of_many_channels_some_are_compared():
    layer = torch.randn(1, 511, 40, generator=torch.Generator().manual_seed(0))
    expected = np.cov(layer[0, ::2].double().numpy(), bias=True).ravel()
    found = gram([layer])[0].double().numpy()
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected), atol=1e-6)


def test_style_is_told_by_how_it_is_drawn_not_by_what_is_shown():
    """Outlined and filled shapes, at other places."""
    encoder = load_encoder("tiny")

    def drawing(outlined: bool, shift: int) -> Image.Image:
        image = Image.new("RGB", (128, 128), "white")
        box = (20 + shift, 24, 70 + shift, 90)
        fill = None if outlined else "red"
        ImageDraw.Draw(image).ellipse(
            box, fill=fill, outline="black" if outlined else fill, width=4
        )
        return image

    filled, again, outlined = drawing(False, 0), drawing(False, 25), drawing(True, 0)
    style = encoder.style_features([filled, again, outlined])
    assert style[0] @ style[1] > style[0] @ style[2] + 0.1


def test_what_is_not_there_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="no folder of a network to compare pictures by"):
        load_encoder(str(tmp_path / "nowhere"))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ModelError, match=r"is of type 'bert'.*DINOv3"):
        load_encoder(str(tmp_path))
    saved(tmp_path, dinov2())
    with pytest.raises(ModelError, match="knows no texts"):
        load_encoders("tiny", str(tmp_path))
    (tmp_path / "preprocessor_config.json").write_text('{"size": {"shortest_edge": -3}}')
    with pytest.raises(ModelError, match="a side of -3"):
        load_encoder(str(tmp_path))


def test_a_hub_id_without_network_is_one_clear_line(monkeypatch):
    from konomi.evaluation.encoders import load

    def unreachable(*_, **__):
        raise OSError("offline")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    with pytest.raises(ModelError, match=r"^nobody/nothing: .*the hub cannot be reached"):
        load_encoder("nobody/nothing")
    assert load.wanted_encoder_files(["config.json", "README.md"]) == []


def test_weights_that_do_not_fit_are_named(tmp_path):
    from safetensors.torch import load_file, save_file

    saved(tmp_path, dinov2())
    tensors = load_file(tmp_path / "model.safetensors")
    tensors.pop("embeddings.cls_token")
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"1 tensors .* first embeddings.cls_token"):
        load_encoder(str(tmp_path))


def test_of_a_repository_weights_are_fetched_once():
    names = ["config.json", "model.safetensors", "pytorch_model.bin", "flax_model.msgpack"]
    assert wanted_encoder_files(names) == ["config.json", "model.safetensors"]
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    some = ["config.json", "model.safetensors.index.json", *shards, "tf_model.h5"]
    assert wanted_encoder_files(some) == [
        "config.json",
        "model.safetensors.index.json",
        *shards,
    ]

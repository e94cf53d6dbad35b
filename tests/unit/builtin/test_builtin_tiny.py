"""The embedded base: its files, its vocabulary, and that it loads as any Stable Diffusion 1
checkpoint.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import konomi
from konomi.config.sections import TextConfig
from konomi.errors import FileFormatError

TINY = Path(konomi.__file__).parent / "builtin" / "tiny"
WEIGHTS = sorted(TINY.rglob("*.safetensors"))
RARE = ("sks", "ohwx", "zwx", "xjy", "qvk", "znt", "blorf", "mochi")


def test_weights_fit_and_are_half_precision() -> None:
    assert {path.parent.name for path in WEIGHTS} == {"unet", "vae", "text_encoder", "clip"}
    assert sum(path.stat().st_size for path in WEIGHTS) <= 24 * 2**20
    for path in WEIGHTS:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_tensor(name)
                assert tensor.dtype == torch.float16, (path, name)
                assert torch.isfinite(tensor).all(), (path, name)


def test_vocabulary_is_numbered_as_clips() -> None:
    """Bytes, bytes at a word's end, merges in order, start, end; the end token has the
    greatest id.
    """
    vocabulary = json.loads((TINY / "tokenizer" / "vocab.json").read_text(encoding="utf-8"))
    lines = (TINY / "tokenizer" / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    in_order = sorted(vocabulary, key=vocabulary.__getitem__)
    assert sorted(vocabulary.values()) == list(range(4096))
    assert in_order[512:-2] == [line.replace(" ", "") for line in lines]
    assert in_order[-2:] == ["<|startoftext|>", "<|endoftext|>"]


def test_rare_words_are_one_token_each() -> None:
    from konomi.models.tokenizer import build_tokenizer, read_vocabulary

    vocabulary, pad = read_vocabulary(TINY / "tokenizer")
    tokenizer = build_tokenizer(vocabulary, pad_token=pad)
    for word in (*RARE, "cat", "pizza", "noto", "twemoji", "background"):
        assert len(tokenizer.tokenize(word)) == 1, word
    assert (
        tokenizer.decode(tokenizer("a photo of sks dog").input_ids[1:-1]).strip()
        == "a photo of sks dog"
    )


def test_loads_as_stable_diffusion_1() -> None:
    base = konomi.load_base("tiny")
    assert (base.family, base.process.prediction, base.resolution) == ("sd1", "epsilon", 128)
    assert (base.latent_factor, base.latent_channels) == (8, 4)
    assert base.text_traits.num_positions == 77
    states = base.encode_captions(["a cat, noto style", ""], TextConfig()).states
    assert states.shape == (2, 77, 192)
    noisy = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    answer = base.predict(
        noisy, torch.tensor([999, 10]), base.encode_captions(["a cat", "a dog"], TextConfig())
    )
    assert answer.shape == noisy.shape
    assert torch.isfinite(answer).all()


def test_autoencoder_restores_the_mascot() -> None:
    """Pictures that it has never seen: well above what a single colour reaches (about 10 dB
    here).
    """
    from PIL import Image

    base = konomi.load_base("tiny")
    for path in sorted((TINY.parent / "mascot").glob("*.png")):
        with Image.open(path) as image:
            raw = torch.frombuffer(
                bytearray(image.convert("RGB").resize((128, 128)).tobytes()), dtype=torch.uint8
            )
        pixels = raw.view(128, 128, 3).permute(2, 0, 1)[None].float() / 127.5 - 1
        with torch.no_grad():
            restored = base.decode_latents(base.encode_images(pixels).mean).clamp(-1, 1)
        error = (restored - pixels).square().mean()
        assert 10 * torch.log10(4 / error) > 18, path.name


def test_sample_pictures_have_captions_with_the_identifier() -> None:
    from PIL import Image

    pictures = sorted((TINY.parent / "mascot").glob("*.png"))
    assert len(pictures) == 5
    for path in pictures:
        with Image.open(path) as image:
            assert image.mode == "RGB"
            assert min(image.size) >= 128
        assert "sks creature" in path.with_suffix(".txt").read_text(encoding="utf-8")


def test_model_card_names_every_source() -> None:
    card = (TINY / "MODEL_CARD.md").read_text(encoding="utf-8")
    for words in (
        "Noto Emoji",
        "Google",
        "Twemoji",
        "CC BY 4.0",
        "Twitter",
        "Blobmoji",
        "C1710",
        "Apache",
    ):
        assert words in card


@pytest.mark.slow
def test_diffusers_loads_the_folder() -> None:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(TINY)
    assert pipeline.vae_scale_factor == 8
    assert pipeline.text_encoder.config.hidden_size == pipeline.unet.config.cross_attention_dim
    assert next(pipeline.text_encoder.parameters()).dtype == torch.float32


def test_it_is_inspected_and_converted_by_its_name(tmp_path: Path) -> None:
    assert konomi.inspect("tiny").kind == "model folder"
    konomi.convert("tiny", tmp_path / "one.safetensors")
    assert konomi.inspect(tmp_path / "one.safetensors").kind == "checkpoint"
    with pytest.raises(FileFormatError, match=r"tinny: no such file or folder\."):
        konomi.convert("tinny", tmp_path / "two.safetensors")

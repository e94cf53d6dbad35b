"""Which layer of a text encoder is read, whatever a file holds of those that nothing reads.

The oracle is transformers' own encoder on the untouched base's weights: LDM reads SD2's 23rd of 24
layers and the 11th of 12 of SDXL's first encoder by their number, so that dropping the last one
changes nothing.
"""

from pathlib import Path

import pytest
import torch

from konomi.config.sections import TextConfig
from konomi.errors import ModelError, RecipeError
from konomi.families import family_named
from konomi.models.infer import infer_text
from konomi.models.load import load_base
from konomi.models.random_base import random_base
from konomi.models.save import save_folder, save_single_file
from konomi.models.tokenizer import build_tokenizer, clip_vocabulary
from konomi.storage.tensor_file import read_header, read_tensors, write_tensors
from twins import transformers_text

OPEN_CLIP = {"sd2": "cond_stage_model.model.", "sdxl": "conditioner.embedders.1.model."}


def without_layer(source: Path, target: Path, mark: str) -> int:
    tensors = read_tensors(source)
    kept = {name: tensor for name, tensor in tensors.items() if mark not in name}
    write_tensors(target, kept, read_header(source).metadata)
    return len(tensors) - len(kept)


def layer_table(family: str, layers: int) -> dict[str, tuple[int, ...]]:
    """Shapes of SD2's or SDXL's OpenCLIP at full size."""
    width = 1024 if family == "sd2" else 1280
    table = {"token_embedding.weight": (49408, width), "positional_embedding": (77, width)}
    table |= {
        f"transformer.resblocks.{i}.mlp.c_fc.weight": (4 * width, width) for i in range(layers)
    }
    table["text_projection"] = (width, width)
    return {OPEN_CLIP[family] + name: shape for name, shape in table.items()}


@pytest.mark.parametrize(
    ("family", "held", "count"),
    [
        ("sd2", 24, 23),
        ("sd2", 23, 23),
        ("sd2", 22, 22),
        ("sd2", 26, 23),
        ("sdxl", 32, 32),
        ("sdxl", 31, 32),
        ("sdxl", 33, 32),
    ],
)
def test_layers_are_counted_from_the_file(family: str, held: int, count: int) -> None:
    """31 of SDXL's 32 are an incomplete file: its last layer is pooled."""
    spec = family_named(family)
    assert (
        infer_text(spec, spec.text_encoders[-1], layer_table(family, held), {})["num_hidden_layers"]
        == count
    )


@torch.no_grad()
def test_sd2_with_and_without_the_layer_that_nothing_reads(tmp_path: Path) -> None:
    base = random_base("sd2")
    whole, cut = tmp_path / "24.safetensors", tmp_path / "23.safetensors"
    save_single_file(base, whole, dtype=torch.float32)
    assert without_layer(whole, cut, ".resblocks.3.")
    theirs = transformers_text(
        base.loaded_encoders()[0].module, base.source.configs["text_encoder"]
    )
    tokenizer = build_tokenizer(clip_vocabulary(), pad_token="!")
    ids = tokenizer("a red cat", padding="max_length", max_length=77, return_tensors="pt").input_ids
    expected = theirs(ids).last_hidden_state
    for path in (whole, cut):
        found = load_base(path)
        torch.testing.assert_close(
            found.encode_captions(["a red cat"], TextConfig()).states, expected
        )
        keys = found.select_layers("text")
        assert "text_encoder.text_model.encoder.layers.2.self_attn.q_proj" in keys
        assert len(keys) == 3 * 6
        skipped = found.encode_captions(["a red cat"], TextConfig(clip_skip=2)).states
        hidden = theirs(ids, output_hidden_states=True).hidden_states[-2]
        torch.testing.assert_close(
            skipped, base.loaded_encoders()[0].module.text_model.final_layer_norm(hidden)
        )
        # And written again, it has the layer that other tools look for.
        again = tmp_path / f"again-{path.stem}.safetensors"
        save_single_file(found, again, dtype=torch.float32)
        assert read_header(again).tensors.keys() == read_header(whole).tensors.keys()


@torch.no_grad()
def test_sdxls_first_encoder_without_its_last_layer(tmp_path: Path) -> None:
    base = random_base("sdxl")
    whole, cut = tmp_path / "12.safetensors", tmp_path / "11.safetensors"
    save_single_file(base, whole, dtype=torch.float32)
    assert without_layer(whole, cut, "embedders.0.transformer.text_model.encoder.layers.2.")
    found = load_base(cut)
    expected = base.encode_captions(["a red cat"], TextConfig())
    states = found.encode_captions(["a red cat"], TextConfig())
    assert torch.equal(states.states, expected.states)
    assert torch.equal(states.pooled, expected.pooled)  # type: ignore[arg-type]
    deeper = TextConfig(clip_skip=3)
    assert torch.equal(
        found.encode_captions(["a"], deeper).states, base.encode_captions(["a"], deeper).states
    )
    with pytest.raises(
        RecipeError,
        match=r"clip_skip is 1; this base's file holds only the first 2 of the 3 layers",
    ):
        found.encode_captions(["a"], TextConfig(clip_skip=1))
    # diffusers counts from the end: a folder has all layers, in their places.
    save_folder(found, tmp_path / "folder", dtype=torch.float32)
    again = load_base(tmp_path / "folder").encode_captions(["a red cat"], TextConfig())
    assert torch.equal(again.states, expected.states)


def test_sdxls_second_encoder_without_its_last_layer_is_incomplete(tmp_path: Path) -> None:
    whole, cut = tmp_path / "32.safetensors", tmp_path / "31.safetensors"
    save_single_file(random_base("sdxl"), whole, dtype=torch.float32)
    assert without_layer(whole, cut, "embedders.1.model.transformer.resblocks.2.")
    with pytest.raises(
        ModelError, match=r"tensors of text_encoder_2 are missing, first .*layers\.2\."
    ):
        load_base(cut).loaded_encoders()

"""What konomi saves, as other tools read it."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from konomi.config.sections import TextConfig
from konomi.errors import FileFormatError, ModelError, RunError
from konomi.models.latent_diffusion import LatentDiffusion
from konomi.models.load import load_base
from konomi.models.random_base import random_base
from konomi.models.save import save_folder, save_single_file
from konomi.models.tokenizer import Vocabulary, clip_vocabulary, vocabulary_of_merges
from konomi.storage.tensor_file import read_header, read_tensors

REFERENCE = Path(__file__).parents[4] / "shared" / "reference"


def pipeline(folder: Path) -> Any:
    from diffusers import DiffusionPipeline

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs, of missing torchvision and the like
        loaded = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.mark.parametrize(
    ("family", "inpainting", "kind"),
    [
        ("sd1", False, "StableDiffusionPipeline"),
        ("sd1", True, "StableDiffusionInpaintPipeline"),
        ("sd2", False, "StableDiffusionPipeline"),
        ("sdxl", False, "StableDiffusionXLPipeline"),
        ("sdxl", True, "StableDiffusionXLInpaintPipeline"),
    ],
)
def test_folders_are_diffusers_pipelines(
    family: str, inpainting: bool, kind: str, tmp_path: Path
) -> None:
    base = random_base(family, inpainting=inpainting)
    save_folder(base, tmp_path / "model", dtype=torch.float32)
    loaded = pipeline(tmp_path / "model")
    assert type(loaded).__name__ == kind
    wanted = {"epsilon": "epsilon", "v": "v_prediction"}[base.process.prediction]
    assert loaded.scheduler.config.prediction_type == wanted
    torch.testing.assert_close(
        loaded.scheduler.alphas_cumprod, base.process.schedule.alphas_cumprod, rtol=0, atol=1e-7
    )
    with torch.no_grad():
        encoded = loaded.encode_prompt(
            "a photo of a cat",
            device="cpu",
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
        )
        ours = base.encode_captions(["a photo of a cat"], TextConfig())
        torch.testing.assert_close(ours.states, encoded[0], rtol=0, atol=2e-6)
        if family == "sdxl":
            torch.testing.assert_close(ours.pooled, encoded[2], rtol=0, atol=2e-6)
            ours = base.with_sizes(ours, torch.tensor([[64, 64, 0, 0, 64, 64]]))
        inputs = torch.randn(
            1, 9 if inpainting else 4, 8, 8, generator=torch.Generator().manual_seed(0)
        )
        added = {"text_embeds": ours.pooled, "time_ids": ours.sizes}
        theirs = loaded.unet(
            inputs, torch.tensor([501]), encoder_hidden_states=encoded[0], added_cond_kwargs=added
        ).sample
        conditioning = (
            ours
            if not inpainting
            else type(ours)(ours.states, ours.pooled, ours.sizes, inputs[:, 4:])
        )
        answer = base.predict(inputs[:, :4], torch.tensor([501]), conditioning)
    torch.testing.assert_close(answer, theirs, rtol=0, atol=2e-6)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_single_files_load_in_diffusers(family: str, tmp_path: Path) -> None:
    """diffusers' own converter, with the folder's configs, gives the same tensors."""
    import diffusers

    base = random_base(family)
    save_folder(base, tmp_path / "model", dtype=torch.float32)
    save_single_file(base, tmp_path / "model.safetensors", dtype=torch.float32)
    kind: Any = getattr(diffusers, base.spec.pipeline.class_name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = kind.from_single_file(
            str(tmp_path / "model.safetensors"),
            config=str(tmp_path / "model"),
            local_files_only=True,
        )
    assert_same_tensors(base, loaded)


def assert_same_tensors(base: LatentDiffusion, loaded: Any) -> None:
    for part, module in (
        ("denoiser", loaded.unet),
        ("vae", loaded.vae),
        ("text_encoder", loaded.text_encoder),
    ):
        state = {
            name.removeprefix("text_model."): tensor for name, tensor in module.state_dict().items()
        }
        expected = {
            name.removeprefix("text_model."): tensor for name, tensor in base.state(part).items()
        }  # type: ignore[arg-type]
        assert expected.keys() <= state.keys()
        assert all(torch.equal(tensor, state[name]) for name, tensor in expected.items())


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_full_size_names_are_the_published_ones(family: str, tmp_path: Path) -> None:
    """With the published block structure and 1/40 of its widths."""
    reference = REFERENCE / f"stable_diffusion_{family}.json"
    if not reference.is_file():
        pytest.skip("the measured key maps (../shared/reference) are not here")
    data = json.loads(reference.read_text())
    published = set(data["ldm_diffusers_keymap"]) | set(data["ldm_diffusers_operator_map"])
    small = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_attention_heads": 1,
        "projection_dim": 8,
    }
    unet = {"block_out_channels": [8, 16, 32, 32], "norm_num_groups": 8, "attention_head_dim": 1}
    unet["cross_attention_dim"] = 16 if family == "sdxl" else 8
    configs: dict[str, Any] = {"unet": unet, "text_encoder": small}
    configs["vae"] = {"block_out_channels": [8, 16, 32, 32], "norm_num_groups": 8}
    if family == "sdxl":
        sizes = {"addition_time_embed_dim": 2, "projection_class_embeddings_input_dim": 20}
        unet |= {**sizes, "block_out_channels": [8, 16, 32]}
        configs["text_encoder_2"] = small
    base = random_base(family, size="full", configs=configs, vocabulary=vocabulary_of_merges(()))
    path = tmp_path / "model.safetensors"
    save_single_file(base, path, dtype=torch.float16)
    written = set(read_header(path).tensors)
    # The measured map leaves out OpenCLIP's own; they are written because other tools look for
    # them.
    unmapped = set() if family == "sd1" else {"logit_scale", "text_projection"}
    # The marker of v-prediction, which SD2's first files did without.
    unmapped |= {"v_pred"} if family == "sd2" else set()
    surplus = {name for name in written - published if ".resblocks.23." not in name}
    assert {name.rpartition(".")[2] for name in surplus} == unmapped
    assert published <= written


def test_trained_tensors_stand_in_for_the_bases(tmp_path: Path) -> None:
    base = random_base("sd1")
    name = "text_encoder.text_model.final_layer_norm.weight"
    trained = {name: torch.full((32,), 3.0), "denoiser.conv_in.bias": torch.full((16,), -2.0)}
    save_single_file(
        base,
        tmp_path / "a.safetensors",
        dtype=torch.bfloat16,
        tensors=trained,
        metadata={"konomi": "x"},
    )
    save_folder(base, tmp_path / "a", dtype=torch.bfloat16, tensors=trained)
    tensors = read_tensors(tmp_path / "a.safetensors")
    assert tensors["cond_stage_model.transformer.text_model.final_layer_norm.weight"].eq(3).all()
    assert all(tensor.dtype == torch.bfloat16 for tensor in tensors.values())
    assert read_header(tmp_path / "a.safetensors").metadata["konomi"] == "x"
    assert (
        read_header(tmp_path / "a.safetensors").metadata["modelspec.architecture"]
        == "stable-diffusion-v1"
    )
    for path in (tmp_path / "a.safetensors", tmp_path / "a"):
        assert load_base(path).state("denoiser")["conv_in.bias"].eq(-2).all()
    assert base.state("denoiser")["conv_in.bias"].abs().max() < 1


def test_a_base_changed_in_memory_is_saved_as_it_is(tmp_path: Path) -> None:
    base = random_base("sd1")
    base.state("denoiser")["conv_in.bias"].fill_(4.0)
    save_folder(base, tmp_path / "a", dtype=torch.float32)
    again = load_base(tmp_path / "a")
    assert again.state("denoiser")["conv_in.bias"].eq(4).all()
    again.place("cpu", torch.bfloat16)
    again.unload("denoiser")
    weight = again.state("denoiser")["conv_in.weight"]
    assert weight.dtype == torch.bfloat16
    save_folder(again, tmp_path / "b", dtype=torch.float32)
    file = "unet/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_sd2s_unused_last_layer_survives(tmp_path: Path) -> None:
    base = random_base("sd2")
    save_single_file(base, tmp_path / "a.safetensors", dtype=torch.float32)
    tensors = read_tensors(tmp_path / "a.safetensors")
    last = "cond_stage_model.model.transformer.resblocks.3.ln_1.weight"
    assert last in tensors
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    tensors[last].fill_(7.0)
    from konomi.storage.tensor_file import write_tensors

    write_tensors(
        tmp_path / "b.safetensors", tensors, read_header(tmp_path / "a.safetensors").metadata
    )
    save_single_file(
        load_base(tmp_path / "b.safetensors"), tmp_path / "c.safetensors", dtype=torch.float32
    )
    again = read_tensors(tmp_path / "c.safetensors")
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)


def test_nothing_bad_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = random_base("sd1")
    target = tmp_path / "a.safetensors"
    target.write_bytes(b"earlier")
    poisoned = {"denoiser.conv_in.bias": torch.full((16,), torch.nan)}
    for write, path in ((save_single_file, target), (save_folder, tmp_path / "folder")):
        with pytest.raises(FileFormatError, match=r"conv_in\.bias holds NaN"):
            write(base, path, dtype=torch.float32, tensors=poisoned)
    with pytest.raises(
        ModelError, match=r"denoiser\.conv_in\.surprise: random-sd1 has no such tensor"
    ):
        save_single_file(
            base, target, dtype=torch.float32, tensors={"denoiser.conv_in.surprise": torch.zeros(1)}
        )
    with pytest.raises(ModelError, match=r"conv_in\.bias has shape \[3\]"):
        save_single_file(
            base, target, dtype=torch.float32, tensors={"denoiser.conv_in.bias": torch.zeros(3)}
        )
    with pytest.raises(ModelError, match="no part 'encoder'"):
        save_single_file(base, target, dtype=torch.float32, tensors={"encoder.x": torch.zeros(3)})
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(RunError, match="are needed and"):
        save_single_file(base, target, dtype=torch.float32)
    assert target.read_bytes() == b"earlier"
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_own_vocabulary_travels_in_both_layouts(tmp_path: Path) -> None:
    vocabulary = vocabulary_of_merges((("c", "a"), ("ca", "t</w>"), ("d", "o"), ("do", "g</w>")))
    base = random_base("sd1", vocabulary=vocabulary)
    ids = base.tokenizer(base.spec.text_encoders[0]).ids("a cat dog")
    assert ids == [320, 513, 515]
    save_folder(base, tmp_path / "a", dtype=torch.float32)
    save_single_file(base, tmp_path / "a.safetensors", dtype=torch.float32)
    for path in (tmp_path / "a", tmp_path / "a.safetensors"):
        found = load_base(path)
        assert found.tokenizer(found.spec.text_encoders[0]).ids("a cat dog") == ids
        assert found.state("text_encoder")[
            "text_model.embeddings.token_embedding.weight"
        ].shape == (518, 32)


def test_shipped_vocabulary_is_clips() -> None:
    vocabulary: Vocabulary = clip_vocabulary()
    assert len(vocabulary.tokens) == 49408
    assert vocabulary.tokens["<|startoftext|>"] == 49406
    base = random_base("sdxl")
    first, second = (base.tokenizer(loaded_encoder) for loaded_encoder in base.spec.text_encoders)
    assert (
        first.ids("a photo of a cat")
        == second.ids("a photo of a cat")
        == [320, 1125, 539, 320, 2368]
    )
    assert (first.bos_token_id, first.eos_token_id, first.pad_token_id) == (49406, 49407, 49407)
    assert (second.bos_token_id, second.eos_token_id, second.pad_token_id) == (49406, 49407, 0)

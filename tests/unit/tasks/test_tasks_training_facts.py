"""What a result says of its training, and what files saved on the way are called: as sd-scripts
has both.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open

import konomi
from konomi.adapters.adapter import Adapter
from konomi.adapters.kinds import Difference, LowRank
from konomi.formats.kohya_metadata import training_metadata
from konomi.models.random_base import random_base
from konomi.models.save import save_folder
from konomi.tasks.preparing import Job, prepare
from konomi.tasks.recipes import recipe_from_flags
from konomi.tasks.training_facts import folder_names, network_size, training_facts
from konomi.training.events import Saved


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("facts")
    save_folder(random_base("sd1", prediction="v"), folder / "v", dtype=torch.float32)
    for parent, tags in (("x", "red; blue, green"), ("y", "red")):
        images = folder / parent / "10_sks dog"
        images.mkdir(parents=True)
        Image.new("RGB", (64, 64), "#405060" if parent == "x" else "#605040").save(images / "a.png")
        (images / "a.txt").write_text(tags, encoding="utf-8")
    return folder


def recipe(place: Path, *changes: str) -> Any:
    flags: dict[str, Any] = {
        "images": [place / "x", place / "y"],
        "base": str(place / "v"),
        "trigger": "sks",
    }
    cached = f"data.cache.folder={place / 'cache'}"
    return recipe_from_flags(
        "lora", **flags, overrides=[cached, "run.device=cpu", "run.preview_every=0", *changes]
    )


def job(place: Path, *changes: str) -> Job:
    return prepare(recipe(place, *changes))


LINEAR = "denoiser.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "denoiser.mid_block.resnets.0.conv1"
TEXT = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"


def low_rank(rank: int, alpha: float) -> LowRank:
    return LowRank(down=torch.zeros(rank, 8), up=torch.zeros(8, rank), alpha=alpha)


def trained(rank: int) -> Adapter:
    return Adapter(layers={LINEAR: low_rank(rank, float(rank))})


def test_sizes_are_what_the_tensors_have() -> None:
    layers = {TEXT: low_rank(8, 8.0), CONV: low_rank(2, 1.0), LINEAR: low_rank(4, 6.0)}
    family = random_base("sd1").spec
    assert network_size(Adapter(layers=layers), family) == (4, 6.0, 2)
    assert network_size(Adapter(layers={TEXT: layers[TEXT]}), family) == (8, 8.0, None)
    assert network_size(Adapter(layers={CONV: layers[CONV]}), family) == (2, 1.0, 2)
    whole = {LINEAR: Difference(weight=torch.zeros(8, 8))}
    assert network_size(Adapter(layers=whole, embeddings={}), family) == (None, None, None)


def test_names_and_formats_are_kohyas(place: Path) -> None:
    changes = [
        "run.steps=30", "run.batch_size=2", "optimizer.schedule=cosine_restarts",
        "optimizer.warmup=0.1",
        "objective.weighting=min_snr", "objective.noise_offset=0.05", "memory.accumulation=2",
        "run.precision=fp32",
        "objective.zero_terminal_snr=true", "method.text_rank=4",
    ]  # fmt: skip
    prepared = job(place, *changes)
    rates = {"denoiser.a": 1e-4, "denoiser.b": 1.6e-3, "text.a": 5e-5}
    found = training_metadata(training_facts(prepared, 20, trained(16), rates=rates, hashes=False))
    wanted = {
        "learning_rate": "0.0016", "unet_lr": "0.0001", "text_encoder_lr": "5e-05",
        "optimizer": "torch.optim.adamw.AdamW(weight_decay=0.01,betas=(0.9, 0.999))",
        "lr_scheduler": "cosine_with_restarts", "lr_warmup_steps": "3", "max_train_steps": "30",
        "num_epochs": "3",
        "num_batches_per_epoch": "10", "batch_size_per_device": "1", "total_batch_size": "2",
        "gradient_accumulation_steps": "2", "gradient_checkpointing": "False",
        "mixed_precision": "no",
        "max_grad_norm": "1.0", "noise_offset": "0.05", "min_snr_gamma": "5.0",
        "ip_noise_gamma": "None",
        "zero_terminal_snr": "True", "v_parameterization": "True", "prior_loss_weight": "1.0",
        "loss_type": "l2",
        "cache_latents": "True", "steps": "20", "epoch": "2", "network_dim": "16",
    }  # fmt: skip
    assert {name: found.get(f"ss_{name}") for name in wanted} == wanted
    assert found["modelspec.prediction_type"] == "v"
    assert all(isinstance(value, str) for value in found.values())


def test_what_is_off_is_none_as_kohya_writes_it(place: Path) -> None:
    found = training_metadata(
        training_facts(job(place), 1, None, rates={"denoiser.a": 1e-4}, hashes=False)
    )
    for name in (
        "noise_offset",
        "min_snr_gamma",
        "text_encoder_lr",
        "ip_noise_gamma",
        "max_token_length",
    ):
        assert found[f"ss_{name}"] == "None"
    assert found["ss_lr_scheduler"] == "constant" and found["ss_zero_terminal_snr"] == "False"


def test_tags_are_divided_as_the_recipe_says_and_folders_of_one_name_stay_apart(
    place: Path,
) -> None:
    found = training_metadata(training_facts(job(place), 1, None, rates={}, hashes=False))
    assert json.loads(found["ss_tag_frequency"]) == {
        "x/10_sks dog": {"sks": 1, "red; blue": 1, "green": 1}, "y/10_sks dog": {"sks": 1, "red": 1}
    }  # fmt: skip
    assert set(json.loads(found["ss_dataset_dirs"])) == {"x/10_sks dog", "y/10_sks dog"}
    other = training_metadata(
        training_facts(job(place, 'data.captions.separator=";"'), 1, None, rates={}, hashes=False)
    )
    assert json.loads(other["ss_tag_frequency"])["x/10_sks dog"].keys() >= {"red", "blue, green"}
    assert str(place) not in json.dumps(found | other)


def test_folder_names_are_as_short_as_they_may_be() -> None:
    names = folder_names(
        ["/home/me/a/10_sks/1.png", "/home/me/b/10_sks/1.png", "/home/me/c/2.png", "/3.png"]
    )
    assert list(names.values()) == ["a/10_sks", "b/10_sks", "c", ""]
    nested = folder_names(["/m/x/x/1.png", "/m/x/2.png"])
    assert len(set(nested.values())) == 2 and not any(
        name.startswith("/") for name in nested.values()
    )


def test_files_on_the_way_are_named_as_kohya_names_them(place: Path, tmp_path: Path) -> None:
    changes = [
        f"run.output={tmp_path / 'run'}", "run.steps=6", "run.batch_size=5", "run.save_every=3",
        "run.save_every_epochs=1", "method.rank=2", 'method.targets=["attention.kv"]',
    ]  # fmt: skip
    saved = [event for event in konomi.train(recipe(place, *changes)) if isinstance(event, Saved)]
    assert [(event.step, Path(event.path).name) for event in saved] == [
        (3, "sks-step00000003.safetensors"),
        (4, "sks-000001.safetensors"),
        (6, "sks.safetensors"),
    ]
    assert [bool(event.works) for event in saved] == [False, False, True]
    assert "layers used by ComfyUI, A1111, diffusers" in saved[-1].works[0]
    with safe_open(saved[0].path, "pt") as file:
        metadata = file.metadata()
    assert (
        float(metadata["ss_learning_rate"]) > 0
        and metadata["ss_unet_lr"] == metadata["ss_learning_rate"]
    )

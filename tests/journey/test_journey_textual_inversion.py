"""A word from training to pictures: through files, previews, folders, prompts of all shapes, and
diffusers.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import konomi
from konomi.adapters.adapter import Adapter
from konomi.config.sections import TextConfig
from konomi.formats.adapter_file import read_adapter, write_adapter
from konomi.training.events import Previewed, Saved

VECTORS = torch.randn(3, 32, generator=torch.Generator().manual_seed(4))
DRAW = {"seed": 5, "steps": 3, "guidance": 5.0, "sampler": "euler", "size": "64"}


def drawn(prompt, base, output, **options):
    (path,) = konomi.generate([prompt], base=str(base), output=output, **(DRAW | options))
    return np.asarray(Image.open(path)).astype(int)


def embedding(path: Path, word: str = "<cat>", vectors: torch.Tensor = VECTORS) -> Path:
    write_adapter(Adapter(embeddings={word: {"text_encoder": vectors}}, family="sd1"), path)
    return path


@pytest.mark.parametrize(
    "options", [{}, {"keep_norm": "clip", "vectors": 2, "initial": "dog"}], ids=["plain", "clip"]
)
@pytest.mark.kernels
def test_previews_are_what_generate_draws_with_the_saved_file(
    make_recipe, base_folder, tmp_path, options
):
    folder = tmp_path / "run"
    overrides = [f"method.{name}={value}" for name, value in options.items()] + [
        "run.preview_every=2",
        "run.save_every=2",
        "preview.steps=3",
        'preview.size="64"',
        'preview.prompts=["a photo of sks"]',
        "optimizer.learning_rate=0.5",
    ]
    events = list(
        konomi.train(make_recipe(folder, method="textual_inversion", steps=4, overrides=overrides))
    )
    previews = {e.step: e.paths[0] for e in events if isinstance(e, Previewed)}
    saved = {e.step: Path(e.path) for e in events if isinstance(e, Saved)}
    assert sorted(saved) == [2, 4]
    for step, file in saved.items():
        again = drawn(
            "a photo of sks",
            base_folder,
            tmp_path / str(step),
            add=[str(file)],
            sampler="dpmpp_2m",
            seed=0,
            guidance=7.0,
        )
        assert np.array_equal(again, np.asarray(Image.open(previews[step])))
    # Web UIs call the file by its name.
    assert list(read_adapter(saved[2]).embeddings) == ["sks-step00000002"]
    named = drawn(
        "a photo of sks-step00000002",
        base_folder,
        tmp_path / "n",
        add=[str(saved[2])],
        sampler="dpmpp_2m",
        seed=0,
        guidance=7.0,
    )
    assert np.array_equal(named, np.asarray(Image.open(previews[2])))


@pytest.mark.kernels
def test_stopped_and_resumed_equals_uninterrupted(make_recipe, tmp_path, same_tensors):
    options = {"method": "textual_inversion", "steps": 5, "overrides": ["method.keep_norm=rescale"]}
    list(konomi.train(make_recipe(tmp_path / "whole", **options)))
    list(konomi.train(make_recipe(tmp_path / "parts", **(options | {"steps": 2}))))
    list(konomi.resume(tmp_path / "parts", steps=5))
    assert same_tensors(
        tmp_path / "whole" / "sks.safetensors", tmp_path / "parts" / "sks.safetensors"
    )


def test_a_word_is_called_by_its_files_name_from_a_folder(base_folder, tmp_path, monkeypatch):
    embedding(tmp_path / "my-cat.safetensors")
    added = drawn(
        "a photo of my-cat", base_folder, tmp_path / "a", add=[str(tmp_path / "my-cat.safetensors")]
    )
    plain = drawn("a photo of my-cat", base_folder, tmp_path / "b")
    assert not np.array_equal(added, plain)
    monkeypatch.chdir(tmp_path)
    assert np.array_equal(drawn("a photo of my-cat", base_folder, tmp_path / "c"), added)
    trained = drawn("a photo of <cat>", base_folder, tmp_path / "d", add=["my-cat.safetensors"])
    assert np.array_equal(trained, added)
    half = drawn("a photo of my-cat", base_folder, tmp_path / "e", add=["my-cat.safetensors:0.5"])
    assert not np.array_equal(half, added)
    refused = drawn("a photo of <cat>", base_folder, tmp_path / "f", add=["my-cat.safetensors:0"])
    assert np.array_equal(refused, drawn("a photo of <cat>", base_folder, tmp_path / "g"))


@pytest.mark.kernels
def test_prompts_of_all_shapes_hold_the_word(base_folder, tmp_path):
    """Against a base whose own rows hold the vectors: emphasis, BREAK, the 75-token border, a
    `<lora:...>` tag.
    """
    from konomi.generation.embedding_request import named_as_trained
    from konomi.models.load import load_base

    file = embedding(tmp_path / "x.safetensors")
    base, other = load_base(str(base_folder)), load_base(str(base_folder))
    base.added_tokens |= named_as_trained(read_adapter(file)).embeddings
    rows = other.token_vectors("zebra violin umbrella")["text_encoder"]
    assert len(rows) == 3
    loaded_encoder = other.loaded_encoders()[0]
    ids = loaded_encoder.tokenizer.ids("zebra violin umbrella")
    with torch.no_grad():
        loaded_encoder.module.text_model.embeddings.token_embedding.weight[ids] = VECTORS
    for prompt in (
        "a <cat> on a mat",
        "a (<cat>:1.3) on [a mat]",
        "red BREAK <cat>, blue",
        "dog " * 72 + "<cat> end",
        "dog " * 73 + "<CAT> end",
        "dog " * 80 + "(<cat>:0.7)",
        "<cat>",
    ):
        text = TextConfig(emphasis=True, max_tokens=150)
        plain = prompt.replace("<cat>", "zebra violin umbrella").replace(
            "<CAT>", "zebra violin umbrella"
        )
        if prompt.startswith("dog " * 73 + "<"):
            # A learned word is never torn apart: its three vectors begin the next chunk.
            plain = plain.replace("zebra", "BREAK zebra")
        with torch.no_grad():
            ours = base.encode_captions([prompt], text).states
            theirs = other.encode_captions([plain], text).states
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("to", ["webui", "diffusers", "pt"])
def test_diffusers_loads_the_file_and_draws_the_same(base_folder, tmp_path, to):
    from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline

    source = embedding(tmp_path / "toy.safetensors")
    file = source
    if to != "webui":
        file = konomi.convert(
            source,
            tmp_path / f"out{'.pt' if to == 'pt' else '.safetensors'}",
            to="webui" if to == "pt" else to,
        )
    pipeline = StableDiffusionPipeline.from_pretrained(
        str(base_folder),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        local_files_only=True,
    )
    config = dict(pipeline.scheduler.config) | {"timestep_spacing": "linspace", "steps_offset": 0}
    pipeline.scheduler = EulerDiscreteScheduler.from_config(config)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_textual_inversion(
        str(file.parent),
        weight_name=file.name,
        local_files_only=True,
        **({"token": "<cat>"} if to == "webui" else {}),
    )
    picture = pipeline(
        "a <cat> on a mat", num_inference_steps=3, guidance_scale=5.0, width=64, height=64,
        generator=torch.Generator("cpu").manual_seed(5),
    ).images[0]  # fmt: skip
    # A .pt calls its word by the file's name alone.
    word = "out" if to == "pt" else "<cat>"
    ours = drawn(f"a {word} on a mat", base_folder, tmp_path / "o", add=[str(file)])
    assert np.abs(np.asarray(picture).astype(int) - ours).max() <= 1
    assert np.abs(drawn("a <cat> on a mat", base_folder, tmp_path / "p") - ours).max() > 10


def test_several_words_of_one_run_come_back_together(make_recipe, base_folder, pictures, tmp_path):
    from dataclasses import replace

    recipe = make_recipe(tmp_path / "run", method="textual_inversion", steps=2)
    source = recipe.data.sources[0]
    recipe = replace(
        recipe, data=replace(recipe.data, sources=(source, replace(source, trigger="<two>")))
    )
    list(konomi.train(recipe))
    assert (tmp_path / "run" / "sks.two.safetensors").is_file()
    assert read_adapter(tmp_path / "run" / "sks.safetensors").embeddings.keys() == {"sks", "<two>"}


def test_an_embedding_of_another_width_is_refused_in_one_line(base_folder, tmp_path, konomi_cli):
    file = embedding(tmp_path / "wide.safetensors", vectors=torch.ones(1, 768))
    done = konomi_cli.run(
        "generate", "a wide", "--base", base_folder, "--add", file, "--output", tmp_path / "o"
    )
    assert done.returncode == 1
    assert "'wide' is 768 wide; text_encoder of this base has width 32" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_on_the_embedded_base(tmp_path, konomi_cli):
    mascot = Path(konomi.__file__).parent / "builtin" / "mascot"
    run = tmp_path / "run"
    done = konomi_cli.run(
        "train", "textual_inversion", "--images", mascot, "--base", "tiny", "--trigger", "sks",
        "--steps", 6,
        "--output", run, f'data.cache.folder="{tmp_path / "cache"}"',
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = konomi_cli.run(
        "generate", "sks creature", "--base", "tiny", "--add", run / "sks.safetensors", "--steps",
        2, "--seed", 1,
        "--output", tmp_path / "o",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "o").glob("*.png"))) == 1

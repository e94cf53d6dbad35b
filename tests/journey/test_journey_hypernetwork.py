"""A hypernetwork from training to pictures, as a user asks for it."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import konomi
from konomi.adapters.adapter import Adapter, Hypernetwork, Perceptron
from konomi.adapters.hypernetwork import build_network
from konomi.adapters.kinds import LowRank
from konomi.errors import KonomiError
from konomi.formats.adapter_file import read_adapter, write_adapter
from konomi.generation.infotext import read_infotext


@pytest.fixture(scope="module")
def trained(base_folder, pictures, cache, tmp_path_factory):
    """The folder of a run with a preview at its end."""
    output = tmp_path_factory.mktemp("runs") / "hyper"
    recipe = konomi.recipe_from_flags(
        "hypernetwork",
        images=[pictures],
        base=str(base_folder),
        trigger="sks",
        class_noun="dog",
        steps=4,
        output=str(output),
        overrides=[
            f'data.cache.folder="{cache}"',
            'data.resolution="64"',
            "run.batch_size=2",
            "run.name=hyper",
            "run.preview_every=4",
            "optimizer.learning_rate=0.05",
            'preview.prompts=["a dog"]',
            "preview.steps=2",
            "preview.seed=3",
            "preview.sampler=dpmpp_2m",
            "preview.guidance=7",
        ],
    )
    *_, finished = konomi.train(recipe)
    assert Path(finished.path) == output / "hyper.pt"
    return output


def other(folder, name, *, width=32, family="sd1"):
    """A hypernetwork of large effect."""
    spec = Hypernetwork(pairs={}, structure=(1, 2, 1), activation="tanh")
    torch.manual_seed(len(name))
    halves = [
        Perceptron(
            {
                f"linear.{n}": torch.randn(t.shape) * 0.3
                for n, t in build_network(width, spec).state_dict().items()
            }
        )
        for _ in range(2)
    ]
    whole = Hypernetwork(
        pairs={width: (halves[0], halves[1])}, structure=(1, 2, 1), activation="tanh"
    )
    write_adapter(Adapter(hypernetwork=whole, family=family, name=name), folder / f"{name}.pt")


def test_the_file_is_one_for_web_uis(trained):
    table = torch.load(trained / "hyper.pt", weights_only=True)
    assert sorted(key for key in table if isinstance(key, int)) == [16, 32]
    assert table["step"] == 4 and table["name"] == "hyper" and table["layer_structure"] == [1, 2, 1]
    assert table["activation_func"] == "relu" and table["activate_output"] is False
    assert table["sd_checkpoint_name"] == "sd1-small"
    assert read_adapter(trained / "hyper.pt").family == "sd1"


@pytest.mark.kernels
def test_add_tag_strength_and_preview(trained, draw):
    file = trained / "hyper.pt"
    (plain,), _ = draw("a dog")
    (added,), paths = draw("a dog", add=[str(file)])
    (none,), _ = draw("a dog", add=[f"{file}:0"])
    (half,), half_paths = draw("a dog", add=[f"{file}:unet=0.5"])
    (tagged,), tag_paths = draw("a dog <hypernet:hyper:1>", add=[f"{file}:0"])
    assert np.array_equal(plain, none)
    assert not np.array_equal(plain, added)
    assert np.array_equal(added, tagged)
    assert not np.array_equal(added, half)
    assert read_infotext(paths[0]).prompt == "a dog <hypernet:hyper:1>"
    assert read_infotext(half_paths[0]).prompt == "a dog <hypernet:hyper:0.5>"
    assert read_infotext(tag_paths[0]).prompt == "a dog <hypernet:hyper:1>"
    assert "Lora hashes" not in read_infotext(paths[0]).settings
    preview = np.asarray(Image.open(trained / "previews" / "step-000004-00.png")).astype(int)
    assert np.array_equal(preview, added)


@pytest.mark.kernels
def test_several_in_one_prompt_chain_in_order(trained, draw, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other(tmp_path, "second")
    other(tmp_path, "third!")
    pictures, _ = draw(
        "a dog <hypernet:second:1>",
        "a dog <hypernet:second:1> <hypernet:third!:0.5>",
        "a dog <hypernet:third!:0.5> <hypernet:second:1>",
        "a dog",
    )
    (plain,), _ = draw("a dog")
    assert np.array_equal(pictures[3], plain)
    assert all(not np.array_equal(a, b) for a, b in pairwise(pictures))
    (chained,), _ = draw(
        "a dog", add=[str(tmp_path / "second.pt"), f"{tmp_path / 'third!.pt'}:0.5"]
    )
    assert np.array_equal(pictures[1], chained)


def test_the_words_of_tags_are_for_what_the_files_hold(draw, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    key = "denoiser.mid_block.attentions.0.transformer_blocks.0.attn1.to_k"
    lora = Adapter(layers={key: LowRank(torch.ones(2, 32), torch.ones(32, 2), 2.0)}, family="sd1")
    write_adapter(lora, tmp_path / "both.safetensors")
    other(tmp_path, "both")
    other(tmp_path, "net")
    write_adapter(lora, tmp_path / "low.safetensors")
    # Of one name, each word finds its own.
    (low,), _ = draw("a dog <lora:both:1>")
    (net,), paths = draw("a dog <hypernet:both:1>")
    (expected,), _ = draw("a dog", add=[str(tmp_path / "both.pt")])
    assert np.array_equal(net, expected) and not np.array_equal(net, low)
    assert read_infotext(paths[0]).prompt == "a dog <hypernet:both:1>"
    (_,), paths = draw("a dog <lora:both:1>", add=[str(tmp_path / "both.pt")])
    assert read_infotext(paths[0]).prompt == "a dog <lora:both:1> <hypernet:both:1>"
    with pytest.raises(
        KonomiError,
        match=r"<hypernet:low> finds .*low.safetensors, which is a lora. Write <lora:low:1>",
    ):
        draw("a dog <hypernet:low:1>")
    with pytest.raises(
        KonomiError,
        match=r"<lora:net> finds .*net.pt, which is a hypernetwork. Write <hypernet:net:1>",
    ):
        draw("a dog <lora:net:1>")
    with pytest.raises(KonomiError, match=r"<hypernet:nobody>: no such adapter"):
        draw("a dog <hypernet:nobody:1>")


@pytest.mark.parametrize(("width", "family"), [(768, ""), (32, "sdxl")])
def test_another_familys_is_refused_before_anything_is_drawn(
    draw, tmp_path, monkeypatch, width, family
):
    monkeypatch.chdir(tmp_path)
    other(tmp_path, "foreign", width=width, family=family)
    with pytest.raises(KonomiError, match="hypernetwork foreign is for") as error:
        draw("a dog", "a dog <hypernet:foreign:1>")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.rglob("*.png"))


@pytest.mark.slow
def test_inspect_and_convert_both_ways(trained, konomi_cli, tmp_path):
    shown = konomi_cli.run("inspect", trained / "hyper.pt", "--all")
    assert (
        shown.returncode == 0
        and "hypernetwork" in shown.stdout
        and "layer_structure" in shown.stdout
    )
    for source, target in (
        (trained / "hyper.pt", "a.safetensors"),
        (tmp_path / "a.safetensors", "b.pt"),
    ):
        done = konomi_cli.run("convert", source, tmp_path / target)
        assert done.returncode == 0, done.stderr
    one, two = (torch.load(p, weights_only=True) for p in (trained / "hyper.pt", tmp_path / "b.pt"))
    assert {k: v for k, v in one.items() if isinstance(k, str)} == {
        k: v for k, v in two.items() if isinstance(k, str)
    }
    for width in (16, 32):
        for ours, theirs in zip(one[width], two[width]):
            assert list(ours) == list(theirs) and all(torch.equal(ours[n], theirs[n]) for n in ours)


@pytest.mark.slow
def test_the_command_line_on_tiny(konomi_cli, tmp_path):
    mascot = Path(konomi.__file__).parent / "builtin" / "mascot"
    cache = f'data.cache.folder="{tmp_path / "cache"}"'
    trained = konomi_cli.run(
        "train",
        "hypernetwork",
        "--images",
        mascot,
        "--base",
        "tiny",
        "--steps",
        "6",
        "--output",
        tmp_path / "run",
        cache,
    )
    assert trained.returncode == 0, trained.stderr
    (file,) = (tmp_path / "run").glob("*.pt")
    drawn = konomi_cli.run(
        "generate", f"a house <hypernet:{file.stem}:1>", "--base", "tiny", "--add", f"{file}:0",
        "--steps", "2",
        "--output", tmp_path / "images",
    )  # fmt: skip
    assert drawn.returncode == 0, drawn.stderr
    assert len(list((tmp_path / "images").glob("*.png"))) == 1

"""`learn-start`, and training from what it wrote."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from konomi import tasks
from konomi.cli.main import main
from konomi.diffusion.random import Rng
from konomi.formats.adapter_file import read_adapter
from konomi.formats.start_network import read_start_network
from konomi.models.load import load_base
from konomi.models.start_network import FOLDS, RIDGES, fit_features
from konomi.tasks import convolutional_start, start_subjects
from konomi.tasks.convolutional_start import Examples, learn_convolutional
from konomi.training.events import Prepared

WORDS = ("cat", "dog", "bird", "fish", "apple", "banana", "car", "bus", "tree", "moon", "star",
         "pizza")  # fmt: skip


def noise(path, number, side=32):
    path.parent.mkdir(parents=True, exist_ok=True)
    g = np.random.default_rng(number)
    Image.fromarray(g.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path)


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    root = tmp_path_factory.mktemp("subjects")
    for number, word in enumerate(WORDS):
        noise(root / f"{word}.drawn" / "a.png", number)
    (root / "empty").mkdir()
    noise(root / "red apple" / "a.png", 99)
    return root


def test_a_network_is_learned_and_training_starts_from_it(subjects, tmp_path, capsys):
    file = tmp_path / "start.safetensors"
    command = ["learn-start", "--base", "tiny", "--subjects", str(subjects), "--epochs", "1"]
    command += ["--output", str(file), "--device", "cpu"]
    assert main([*command, "--json"]) == 0
    *notes, result = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [note["note"] for note in notes] == [
        f"{subjects / 'empty'}: no pictures in it; left out.",
        "1 subjects are left out, because most have 1 vectors or tokens and they have not: "
        "red apple.",
    ]
    assert [one["kind"] for one in result["measured"]] == ["features", "convolutional"]
    best = max(result["measured"], key=lambda one: one["similarity"])
    facts = read_start_network(file).facts
    assert facts.kind == result["kind"] == best["kind"]
    assert (facts.subjects, facts.held_out, facts.base) == (10, 2, "tiny")
    assert not list(tmp_path.glob(".start*"))
    report = tasks.inspect(file)
    assert (report.kind, report.name, report.problem) == ("network of starts", "tiny", "")
    assert main(command) == 1
    assert "exists already" in capsys.readouterr().err

    run = tmp_path / "run"
    recipe = tasks.recipe_from_flags(
        "textual_inversion",
        images=[subjects / "cat.drawn"],
        base="tiny",
        trigger="sks",
        output=str(run),
        steps=1,
        overrides=["method.initial=leap", f"method.initial_file={file}", "data.resolution=64",
                   "optimizer.learning_rate=0", f"data.cache.folder={tmp_path / 'cache'}",
                   "run.device=cpu"],
    )  # fmt: skip
    for _ in tasks.train(recipe):
        pass
    (learned,) = read_adapter(run / "sks.safetensors").embeddings.values()
    network = read_start_network(file)
    from konomi.models.clip import load_clip
    from konomi.models.start_network import answer

    clip = load_clip("tiny") if network.facts.clip else None
    with Image.open(subjects / "cat.drawn" / "a.png") as image:
        said = answer(network, [image.convert("RGB")], clip)
    torch.testing.assert_close(
        learned["text_encoder"].float(), said.expand(4, -1), atol=1e-3, rtol=0
    )


def test_what_is_asked_wrongly_is_said_in_one_line(subjects, tmp_path, capsys):
    few = tmp_path / "few"
    noise(few / "cat" / "a.png", 0)
    asked = ["learn-start", "--base", "tiny", "--output", str(tmp_path / "n.safetensors")]
    for more, said in (
        (["--subjects", str(tmp_path / "none")], "there is no such folder of subjects"),
        (["--subjects", str(few)], "1 subjects are too few to learn from; at least 10"),
        (["--words", "0"], "--words is 0; at least 1 is needed"),
        (["--rate", "0"], "--rate is 0; it must lie above 0"),
        (["--output", "n.pt"], "is written as .safetensors"),
    ):
        assert main([*asked, *more]) == 1
        error = capsys.readouterr().err
        assert said in error
        assert len([line for line in error.splitlines() if not line.startswith("note: ")]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["few"]
    assert main([*asked, "--subjects", str(subjects), "--network=features", f"--clip={few}"]) == 1
    assert f"{few / 'config.json'}: is missing" in capsys.readouterr().err


def test_the_linear_network_is_ridge_regression():
    """Against numpy's least squares in float64, with a row for each penalty."""
    g = np.random.default_rng(0)
    x = g.normal(size=(60, 6))
    y = x @ g.normal(size=(6, 4)) + 2 * g.normal(size=(60, 4)) + 1
    groups = [number // 2 for number in range(60)]

    def said(inside, outside, ridge):
        centred, mean = x[inside] - x[inside].mean(0), y[inside].mean(0)
        penalty = np.sqrt(ridge * (centred**2).sum(0).mean()) * np.eye(6)
        rows, wanted = (
            np.vstack([centred, penalty]),
            np.vstack([y[inside] - mean, np.zeros((6, 4))]),
        )
        return (x[outside] - x[inside].mean(0)) @ np.linalg.lstsq(rows, wanted)[0] + mean

    folds, errors = np.array([group % FOLDS for group in groups]), {}
    for ridge in RIDGES:
        guess = np.zeros((60, 4))
        for fold in range(FOLDS):
            guess[folds == fold] = said(folds != fold, folds == fold, ridge)
        errors[ridge] = ((guess - y) ** 2).sum()
    best = min(RIDGES, key=errors.__getitem__)
    assert RIDGES[0] < best < RIDGES[-1]
    found = fit_features(torch.tensor(x).float(), torch.tensor(y).float(), groups)
    answer = (torch.tensor(x).float() - found["mean"]) @ found["weight"] + found["bias"]
    np.testing.assert_allclose(answer.numpy(), said(slice(None), slice(None), best), atol=1e-4)


def test_the_convolutional_network_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    g = torch.Generator().manual_seed(0)
    pictures = [
        torch.randint(0, 256, (2, 3, 128, 128), generator=g, dtype=torch.uint8) for _ in range(4)
    ]
    examples = Examples(pictures, torch.randn(4, 5, generator=g))
    options = {"epochs": 3, "rate": 1e-3, "seed": 1, "device": torch.device("cpu")}
    *progress, whole = learn_convolutional(examples, tmp_path / "a", **options)
    assert progress[-1] == Prepared("network", 3, 3)
    monkeypatch.setattr(convolutional_start, "SAVE_SECONDS", 0.0)
    kept = tmp_path / "b"
    for event in learn_convolutional(examples, kept, **options):
        if event == Prepared("network", 2, 3):
            break
    first, *_, again = learn_convolutional(examples, kept, **options)
    assert first == Prepared("network", 2, 3)
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    said = convolutional_start.guesses(whole, pictures)
    low, high = examples.embeddings_SE.min(0).values, examples.embeddings_SE.max(0).values
    assert bool(((said >= low) & (said <= high)).all())


def test_pictures_of_words_do_not_depend_on_where_drawing_stopped(tmp_path, monkeypatch):
    base = load_base("tiny")
    asked = []

    def drawn(base, requests, *, batch):
        asked.extend(request.prompt for request in requests)
        for request in requests:
            bits = Rng.for_step(request.seed, len(request.prompt)).integers(0, 256, (300, 300, 3))
            image = Image.fromarray(bits[0].numpy().astype(np.uint8))
            yield type("Picture", (), {"image": image})

    monkeypatch.setattr(start_subjects, "generate", drawn)
    words = start_subjects.words_of(base, 2)
    assert words == ["alien", "ambulance"]
    draw = list(start_subjects.draw_words(base, words, tmp_path, 6, 0))
    assert draw[-1] == Prepared("pictures of words", 12, 12)
    assert asked[:2] == ["a photo of alien", "a picture of alien"]
    files = start_subjects.word_pictures(tmp_path, "alien", 6)
    before = [file.read_bytes() for file in files]
    with Image.open(files[0]) as image:
        assert image.size == (256, 256)
    files[1].unlink()
    asked.clear()
    list(start_subjects.draw_words(base, words, tmp_path, 6, 0))
    assert len(asked) == 4
    assert [file.read_bytes() for file in files] == before
    subject = start_subjects.subject_of_word(base, "alien", files)
    torch.testing.assert_close(
        subject.embedding_E, base.token_vectors("alien")["text_encoder"].flatten()
    )

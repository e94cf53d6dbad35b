"""Whether what is said of settings without effect is true: each setting is changed alone, and the
weights are compared.

What changes the weights must not be named; what leaves them bit for bit the same must be, unless
it is of a kind that has nothing to do with weights.
"""

import pytest
import torch
from PIL import Image

from konomi import recipe_from_flags
from konomi.config.schema import recipe_settings
from konomi.data.loader import BatchStream
from konomi.errors import KonomiError
from konomi.methods import METHODS
from konomi.tasks.preparing import open_stream, prepare
from konomi.training.stop import Stop
from konomi.training.trainer import Trainer

NOT_OF_WEIGHTS = (
    *(
        "run.output",
        "run.name",
        "run.device",
        "run.checkpoint_every",
        "run.keep_checkpoints",
        "run.save_every",
    ),
    *(
        "run.steps",
        "run.preview_every",
        "run.validate_every",
        "run.trackers",
        "run.precision",
        "memory.",
        "preview.",
    ),
    *(
        "validation.",
        "save.",
        "data.workers",
        "data.cache.",
        "data.sources",
        "data.buckets.",
        "base",
        "prior.",
    ),
    *("method.kind", "method.start", "method.dora_axis", "optimizer.kind"),
    *("method.lora.kind", "method.lora.start", "method.lora.dora_axis", "method.words.kind"),
)
"""Where settings begin that are about other things, or are tried elsewhere."""
OTHER_VALUES = {
    "data.resolution": "32",
    "data.captions.separator": ";",
    "data.images.background": "#123456",
    "objective.min_timestep": 400,
    "objective.max_timestep": 500,
    "optimizer.betas": "[0.5, 0.6]",
    "optimizer.rates": "1e-4:1, 5e-5",
    "optimizer.ema_decay": 0.9,
    "optimizer.weight_decay": 0.9,
    "optimizer.clip_norm": 1e-6,
    "run.seed": 8,
    "run.epochs": 2,
    "text.max_tokens": 150,
    "text.clip_skip": 2,
    "method.targets": "attention",
    "method.lora.targets": "attention",
    "method.structure": "1,1",
    "method.dropout": {"hypernetwork": "0,0.5,0"},
    "method.widths": "16",
    "method.words": "ohwx",
    "method.initial": {"custom_diffusion": "dog", "textual_inversion": "cat"},
    "method.words.initial": "cat",
    "method.word": "ohwx",
    "method.words.word": "ohwx",
    "method.initialization": "xavier_normal",
    "method.start": "dog",
    "method.low_guidance": 1.5,
    "method.reconstruction": 0.5,
    "method.max_norm": 1e-5,
    "method.lora.max_norm": 1e-5,
    "method.word_steps": 2.0,
    "method.state_steps": 2.0,
    "method.word_rate": 1e-3,
}
SILENT = {
    # Whether pictures are transparent is not known before they are decoded.
    *("data.images.background", "data.images.alpha"),
    # Chances that no draw of so short a run met.
    *("data.captions.dropout", "data.captions.tag_dropout"),
}
"""What may change nothing here without being named."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    from konomi.models.random_base import random_base
    from konomi.models.save import save_folder

    folder = tmp_path_factory.mktemp("changed")
    save_folder(random_base("sd1"), folder / "base", dtype=torch.float32)
    (folder / "dog").mkdir()
    for index in range(3):
        picture = Image.effect_noise((64, 64), 60 + 20 * index).convert("RGB")
        picture.save(folder / "dog" / f"{index}.png")
        (folder / "dog" / f"{index}.txt").write_text(
            f"a dog {index}, grass, blue", encoding="utf-8"
        )
    return folder


def trained(place, kind, *overrides):
    """(weights after three steps, what was said before)."""
    recipe = recipe_from_flags(
        kind,
        images=[place / "dog" / "0.png" if kind == "imagic" else place / "dog"],
        base=str(place / "base"),
        trigger="sks",
        class_noun="dog",
        steps=3,
        overrides=[
            f'data.cache.folder="{place / "cache"}"',
            *(
                []
                if any(o.startswith("data.resolution") for o in overrides)
                else ["data.resolution=64"]
            ),
            *(["prior.source=none"] if kind == "dreambooth" else []),
            *(["method.prompt=a cat"] if kind == "imagic" else []),
            "run.device=cpu",
            "run.precision=fp32",
            *overrides,
        ],
    )
    torch.manual_seed(0)
    job = prepare(recipe)
    stream = next(event for event in open_stream(job) if isinstance(event, BatchStream))
    trainer = Trainer(
        job.method.plan(),
        job.recipe,
        processes=job.processes,
        total_steps=job.total_steps,
        precision=job.precision,
    )
    list(trainer.run(stream, stop=Stop()))
    with trainer.weights_for_use():
        weights = {
            name: tensor.clone() for name, tensor in trainer.state().tensors["weights"].items()
        }
    job.method.close()
    return weights, job.notes


def another_value(kind, setting):
    """A value that is allowed and not the default, or None where the setting is left out of this
    test.
    """
    if setting.path in OTHER_VALUES:
        value = OTHER_VALUES[setting.path]
        return value.get(kind) if isinstance(value, dict) else value
    if setting.shape.word == "section" or setting.path.endswith(".N") or ".N." in setting.path:
        return None
    if isinstance(setting.default, bool):
        return str(not setting.default).lower()
    if setting.choices:
        return next(choice for choice in reversed(setting.choices) if choice != setting.default)
    if isinstance(setting.default, int):
        return setting.default - 1 if setting.default > 1 else setting.default + 1
    if isinstance(setting.default, float):
        return setting.default * 1.5 if setting.default else 0.3
    return 0.0017 if "a number" in setting.type else None


def same(a, b):
    return a.keys() == b.keys() and all(
        a[name].shape == b[name].shape and torch.equal(a[name], b[name]) for name in a
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", [method.config_type().kind for method in METHODS])
def test_what_is_said_of_a_setting_is_what_it_does(place, kind):
    method = next(method for method in METHODS if method.config_type().kind == kind)
    usual, _ = trained(place, kind)
    wrong = []
    for setting in recipe_settings(method.config_type):
        if setting.path.startswith(NOT_OF_WEIGHTS):
            continue
        # How finished files are measured; what is held out for that is not trained on.
        if setting.path.startswith("evaluation.") and setting.path != "evaluation.hold_out":
            continue
        if kind != "lora" and not setting.path.startswith(("method.", "optimizer.")):
            continue
        value = another_value(kind, setting)
        if value is None:
            continue
        try:
            weights, notes = trained(place, kind, f"{setting.path}={value}")
        except KonomiError:
            # Refused: nobody is left in the dark.
            continue
        named = any(
            note.startswith(f"{setting.path} = ") and "does nothing" in note for note in notes
        )
        if named and not same(weights, usual):
            wrong.append(f"{setting.path}={value} is named, and changes the weights")
        if not named and same(weights, usual) and setting.path not in SILENT:
            wrong.append(f"{setting.path}={value} changes nothing, and is not named")
    assert not wrong, wrong

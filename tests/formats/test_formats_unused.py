"""Nothing in a file goes unsaid: what a reader does not use is named by every verb that reads the
file.
"""

import io
import json
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from konomi import load_base
from konomi.cli.main import main
from konomi.errors import FileFormatError, RecipeError
from konomi.formats import ADAPTER_FORMATS
from konomi.formats.adapter_file import format_of, inspect_file, read_adapter
from konomi.formats.source import leaf_names, open_source
from konomi.tasks import merge_custom
from konomi.tasks.preparing import prepare
from konomi.tasks.recipes import recipe_from_flags

UNET = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
TEXT = "text_model.encoder.layers.0.self_attn.q_proj"
DOWN, UP = torch.ones(2, 768), torch.ones(320, 2)
KOHYA = {
    f"lora_unet_{UNET.replace('.', '_')}.lora_down.weight": DOWN,
    f"lora_unet_{UNET.replace('.', '_')}.lora_up.weight": UP,
}
CLONEOFSIMO = {f"text_encoder:{i}:{half}": torch.ones(*shape) for i in range(48)
               for half, shape in (("up", (768, 1)), ("down", (1, 768)))}  # fmt: skip
TABLES: dict[str, dict[str, Tensor]] = {
    "kohya": KOHYA,
    "comfyui": {
        "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.lora_A.weight": DOWN,
        "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.lora_B.weight": UP,
    },
    "diffusers": {f"unet.{UNET}.lora_A.weight": DOWN, f"unet.{UNET}.lora_B.weight": UP},
    "cloneofsimo": CLONEOFSIMO,
    "custom diffusion": {
        f"{UNET.removesuffix('.to_k')}.processor.to_k_custom_diffusion.weight": torch.ones(320, 768)
    },
    "hypernetwork": {
        f"768.{half}.linear.{i}.weight": torch.ones(*shape) for half in "kv"
        for i, shape in enumerate([(1536, 768), (768, 1536)])
    } | {f"768.{half}.linear.{i}.bias": torch.ones(n) for half in "kv" for i,
    n in enumerate([1536, 768])},
    "webui embedding": {"emb_params": torch.ones(2, 768)},
    "diffusers embedding": {"<cat>": torch.ones(2, 768)},
}  # fmt: skip


def said(path: Path) -> str:
    """All that is told of a file, by whichever way."""
    try:
        notes = read_adapter(path).notes
    except FileFormatError as error:
        return str(error)
    report = inspect_file(path)
    assert report.ignored or not notes or report.notes
    return "\n".join((*notes, *report.ignored, *report.unknown))


@pytest.mark.parametrize("name", TABLES)
def test_an_additional_tensor_is_named_in_every_format(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.safetensors"
    save_file(TABLES[name], path)
    assert read_adapter(path).notes == () and not inspect_file(path).ignored
    for odd in ("odd_one.weight", "oddity"):
        save_file(TABLES[name] | {odd: torch.ones(3, 5)}, path)
        assert odd in said(path), name


PICKLES: dict[str, Callable[[], Any]] = {
    "webui embedding": lambda: {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": torch.ones(2, 768)},
        "step": 1,
    },
    "custom diffusion": lambda: {
        "unet": {f"{UNET}.weight": torch.ones(320, 768)},
        "modifier_token": {},
    },
    "hypernetwork": lambda: {768: tuple(_half() for _ in "kv"), "step": 3},
    "kohya": lambda: {"state_dict": dict(KOHYA)},
}


def _half() -> dict[str, Tensor]:
    shapes = {"0.weight": (1536, 768), "0.bias": (1536,), "1.weight": (768, 1536), "1.bias": (768,)}
    return {f"linear.{name}": torch.ones(*shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("name", PICKLES)
def test_an_additional_entry_of_a_pickle_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.pt"
    torch.save(PICKLES[name](), path)
    assert read_adapter(path).notes == ()
    for odd in (torch.ones(2), {"inner": torch.ones(2)}, "a text", [1, 2]):
        torch.save(PICKLES[name]() | {"odd_one": odd}, path)
        assert "odd_one" in said(path), (name, odd)


def test_every_format_is_in_these_tests(tmp_path: Path) -> None:
    seen = set()
    for table in TABLES.values():
        save_file(table, tmp_path / "x.safetensors")
        seen.add(format_of(open_source(tmp_path / "x.safetensors")))
    missing = {form.__name__ for form in ADAPTER_FORMATS if form not in seen}  # type: ignore[attr-defined]
    # PEFT's folders have their own tests.
    assert missing <= {"konomi.formats.peft_lora"}


def test_header_entries_on_the_scale_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    meta = {
        "format": "pt",
        "lora_alpha": "8",
        "ss_network_alpha": "4",
        "modelspec.title": "t",
        "note": "hello",
    }
    save_file(KOHYA, path, meta | {"lora_adapter_metadata": '{"unet.lora_alpha": 9}'})
    assert set(inspect_file(path).ignored) == {
        "metadata lora_alpha",
        "metadata lora_adapter_metadata",
    }
    assert any("metadata lora_alpha" in note for note in read_adapter(path).notes)
    assert load_file(path).keys() == KOHYA.keys()


def test_tables_that_hold_themselves_end() -> None:
    table: dict[str, Any] = {"a": torch.ones(1)}
    table["self"] = table
    shared: list[Any] = [{"x": 1}]
    for _ in range(40):
        shared = [{"l": shared, "r": shared}]
    assert leaf_names(table) == ["a"] and len(leaf_names(shared)) < 20


def run(*arguments: object) -> tuple[int, str, str]:
    """The command line, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    return code, out.getvalue(), err.getvalue()


def test_the_verbs_tell_of_it(tmp_path: Path) -> None:
    """`inspect` as text and as JSON, `convert`, `generate --add` and the notes of a run that goes
    on from a file.
    """
    base = load_base("tiny")
    key, module = next(iter(base.select_layers("attention").items()))
    name = f"lora_unet_{key.removeprefix('denoiser.').replace('.', '_')}"
    outputs, inputs = module.weight.shape  # type: ignore[misc]
    tensors = {
        f"{name}.lora_down.weight": torch.zeros(2, inputs),
        f"{name}.lora_up.weight": torch.zeros(outputs, 2),
    }
    path = tmp_path / "x.safetensors"
    save_file(tensors, path, {"lora_alpha": "7"})
    code, out, _ = run("inspect", path)
    assert code == 0 and "metadata lora_alpha" in out
    (report,) = json.loads(run("inspect", path, "--json")[1])
    assert list(report["ignored"]) == ["metadata lora_alpha"]
    code, _, err = run("convert", path, tmp_path / "y.safetensors")
    assert code == 0 and "note: " in err and "metadata lora_alpha is not used" in err
    code, out, err = run(
        "generate",
        "a cat",
        "--base",
        "tiny",
        "--add",
        path,
        "--steps",
        1,
        "--size",
        "32x32",
        "--output",
        tmp_path / "o",
    )
    assert code == 0 and "metadata lora_alpha is not used" in err and "note" not in out
    told: list[str] = []
    with pytest.raises(RecipeError, match="is not a Custom Diffusion file"):
        merge_custom([path, path], tmp_path / "m.safetensors", base="tiny", tell=told.append)
    assert len(told) == 2
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    recipe = recipe_from_flags(
        "lora",
        images=[tmp_path],
        base="tiny",
        trigger="sks",
        overrides=[
            f"method.start={path}",
            "run.device=cpu",
            f"data.cache.folder={tmp_path / 'cache'}",
        ],
    )
    assert any("metadata lora_alpha is not used" in note for note in prepare(recipe).notes)

"""PEFT's settings, with PEFT itself as the judge of what an adapter does to a layer."""

import dataclasses
import json
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from torch import Tensor, nn

from konomi.adapters.delta import bias_delta, delta
from konomi.errors import FileFormatError
from konomi.formats.adapter_file import inspect_file, read_adapter, write_adapter
from konomi.formats.peft_config import _CHANGING, _TRAINING_ONLY

KEY = "denoiser.attn1.to_q"


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn1 = nn.ModuleDict({"to_q": nn.Linear(12, 10)})

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.attn1["to_q"](x)
        return result


def trained(folder: Path, **settings: Any) -> tuple[Model, Tensor, Tensor]:
    """An adapter saved by PEFT after a made-up training, with the base, and PEFT's own load and
    merge.
    """
    torch.manual_seed(0)
    base = Model()
    weights = {name: value.clone() for name, value in base.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(
            base, LoraConfig(r=2, lora_alpha=5, target_modules=["to_q"], **settings)
        )
        model.save_pretrained(str(folder / "pissa_init"))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter += torch.randn_like(parameter) * 0.1
        model.save_pretrained(str(folder))
        original_base = Model()
        original_base.load_state_dict(weights)
        merged = PeftModel.from_pretrained(original_base, str(folder)).merge_and_unload()
    base = Model()
    base.load_state_dict(weights)
    to_q = merged.attn1["to_q"]
    return base, to_q.weight.detach(), to_q.bias.detach()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"lora_bias": True},
        {"lora_bias": True, "use_rslora": True},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "olora"},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "orthogonal"},
        {"use_dora": True},
        {"alpha_pattern": {r"attn\d\.to_[qk]": 3}},
    ],
)
def test_it_is_what_peft_makes_of_it(tmp_path: Path, settings: dict[str, Any]) -> None:
    base, weight, bias = trained(tmp_path, **settings)
    if settings.get("init_lora_weights") == "olora":
        (tmp_path / "pissa_init").rename(tmp_path / "olora_init")
    adapter = read_adapter(tmp_path)
    layer, module = adapter.layers[KEY], base.attn1["to_q"]
    torch.testing.assert_close(
        module.weight + delta(layer, module.weight), weight, rtol=1e-5, atol=2e-6
    )
    change = bias_delta(layer, module.bias)
    torch.testing.assert_close(module.bias + (0 if change is None else change), bias)
    assert (change is not None) == settings.get("lora_bias", False)
    if "use_dora" not in settings:
        # The bias lives on in every format that holds a LoRA.
        for to, name in (("peft", "p"), ("diffusers", "d.safetensors"), ("kohya", "k.safetensors")):
            write_adapter(dataclasses.replace(adapter, family="sd1"), tmp_path / "out" / name, to)  # type: ignore[arg-type]
            if to == "kohya":
                continue  # Its names know the layers of real models only.
            back = read_adapter(tmp_path / "out" / name).layers[KEY]
            again = bias_delta(back, module.bias)
            assert (again is None) == (change is None)
            if change is not None:
                torch.testing.assert_close(again, change)


def config(folder: Path, **changes: Any) -> Path:
    table = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(table | changes))
    return folder


@pytest.mark.parametrize(
    "init", ["pissa", "pissa_niter_16", "olora", "OLoRA", "corda", "loftq", "lora_ga"]
)
def test_what_fits_a_residual_base_only_is_refused_by_name(tmp_path: Path, init: str) -> None:
    trained(tmp_path)
    (tmp_path / "pissa_init").rename(tmp_path / "elsewhere")
    folder = config(tmp_path, init_lora_weights=init)
    with pytest.raises(FileFormatError, match=f"init_lora_weights is '{init}'") as caught:
        read_adapter(folder)
    # What is in it is told all the same.
    report = inspect_file(folder)
    assert (report.kind, report.problem, report.num_tensors) == ("unreadable", str(caught.value), 2)
    assert report.health.checked and report.num_parameters == 2 * 12 + 10 * 2


@pytest.mark.parametrize("name", _CHANGING)
def test_settings_that_change_the_meaning_are_refused_by_name(tmp_path: Path, name: str) -> None:
    trained(tmp_path)
    assert read_adapter(config(tmp_path, **{name: None})).notes == ()
    with pytest.raises(FileFormatError, match=name):
        read_adapter(config(tmp_path, **{name: [[0, 1]]}))


def test_every_field_of_peft_is_known_and_others_are_named(tmp_path: Path) -> None:
    assert {
        field.name for field in dataclasses.fields(LoraConfig)
    } <= _TRAINING_ONLY | _CHANGING.keys()
    trained(tmp_path)
    config(tmp_path, use_something_new=True, another=None, third={})
    assert inspect_file(tmp_path).ignored.keys() == {"adapter_config.json use_something_new"}
    assert "use_something_new is not used" in read_adapter(tmp_path).notes[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"lora_alpha": 10**400}, {"lora_alpha": True}, {"lora_alpha": []},
        {"alpha_pattern": {"x": 10**400}},
        {"alpha_pattern": [1]}, {"use_rslora": "yes"}, {"lora_bias": 2}, {"peft_type": ["LORA"]},
        {"bias": [1]},
        {"alpha_pattern": {"(?=a)": 1}}, {"alpha_pattern": {f"{i}.*": 1 for i in range(2001)}},
    ],
)  # fmt: skip
def test_wrong_types_and_numbers_are_one_line(tmp_path: Path, changes: dict[str, Any]) -> None:
    trained(tmp_path)
    with pytest.raises(FileFormatError, match=r"adapter_config\.json") as caught:
        read_adapter(config(tmp_path, **changes))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("changes", "said", "loads"),
    [
        ({}, "", True),
        (
            {"r": 4},
            (
                "rank 4 for attn1.to_q, the tensors have 2: read with the tensors' rank, at the "
                "scale 2.5"
            ),
            False,
        ),
        ({"rank_pattern": {"to_q": 3}}, "rank 3 for attn1.to_q, the tensors have 2", False),
        (
            {"rank_pattern": {r"attn\d\.to_[qk]": 3}},
            "rank 3 for attn1.to_q, the tensors have 2",
            False,
        ),
        ({"r": 4, "rank_pattern": {"to_q": 2}}, "", True),
        ({"rank_pattern": {"to_x": 3}}, "rank_pattern 'to_x' is the name of no layer here", True),
        (
            {"alpha_pattern": {"to_x": 3, "to_y": 3}},
            "alpha_pattern 'to_x' and 1 more: is the name of no layer",
            True,
        ),
    ],
)
def test_settings_that_contradict_the_tensors_are_said(
    tmp_path: Path, changes: dict[str, Any], said: str, loads: bool
) -> None:
    base, weight, _ = trained(tmp_path)
    folder = config(tmp_path, **changes)
    adapter, module = read_adapter(folder), base.attn1["to_q"]
    assert [said in note for note in adapter.notes] == ([True] if said else [])
    # PEFT judges which of them it does not load; what is read is what the file was.
    torch.testing.assert_close(
        module.weight + delta(adapter.layers[KEY], module.weight), weight, rtol=1e-5, atol=2e-6
    )
    original_base = Model()
    if loads:
        with pytest.warns(RuntimeWarning, match="did not match any") if said else nullcontext():
            PeftModel.from_pretrained(original_base, str(folder))
    else:
        with pytest.raises(RuntimeError, match="size mismatch"):
            PeftModel.from_pretrained(original_base, str(folder))


@pytest.mark.parametrize(
    "changes",
    [
        {"r": "four"},
        {"r": True},
        {"rank_pattern": [1]},
        {"rank_pattern": {"a": "b"}},
        {"rank_pattern": {"(?=a)": 1}},
        {"rank_pattern": {f"{i}.*": 1 for i in range(2001)}},
    ],
)
def test_ranks_that_say_nothing_are_named_and_nothing_depends_on_them(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    trained(tmp_path)
    (note,) = read_adapter(config(tmp_path, **changes)).notes
    assert next(iter(changes)) in note and len(note) < 400


def test_ranks_in_the_metadata_of_diffusers_are_compared_too(tmp_path: Path) -> None:
    tensors = {
        f"unet.attn1.to_q.lora_{half}.weight": torch.ones(*shape)
        for half, shape in (("A", (2, 4)), ("B", (4, 2)))
    }
    for rank, number in ((2, 0), (8, 1)):
        settings = json.dumps({"unet.r": rank, "unet.lora_alpha": 2})
        save_file(
            tensors, tmp_path / "x.safetensors", {"format": "pt", "lora_adapter_metadata": settings}
        )
        assert len(read_adapter(tmp_path / "x.safetensors").notes) == number


@pytest.mark.parametrize("init", ["pissa", "olora"])
@pytest.mark.parametrize("rslora", [False, True])
def test_starts_of_pissa_and_olora_are_computed_from_the_base_as_peft_does(
    tmp_path: Path, init: str, rslora: bool
) -> None:
    base, weight, _ = trained(tmp_path, init_lora_weights=init, use_rslora=rslora)
    (tmp_path / "pissa_init").rename(tmp_path / "elsewhere")
    with pytest.raises(
        FileFormatError, match=r"--base BASE.*path_initial_model_for_weight_conversion"
    ):
        read_adapter(tmp_path)
    module = base.attn1["to_q"]
    adapter = read_adapter(tmp_path, weight_of={KEY: module.weight}.__getitem__)
    layer = adapter.layers[KEY]
    torch.testing.assert_close(
        module.weight + delta(layer, module.weight), weight, rtol=1e-5, atol=2e-6
    )
    assert "with the start computed from the base" in adapter.notes[0]
    with pytest.raises(FileFormatError, match="another base"):
        read_adapter(tmp_path, weight_of=lambda _: torch.ones(10, 13))
    if init == "pissa":
        with pytest.raises(FileFormatError, match="too close together to be told apart"):
            read_adapter(tmp_path, weight_of=lambda _: torch.eye(10, 12))


@pytest.mark.parametrize("init", ["pissa_niter_16", "corda", "loftq", "lora_ga"])
def test_a_start_that_nobody_can_compute_again_is_refused_with_the_base_too(
    tmp_path: Path, init: str
) -> None:
    trained(tmp_path)
    (tmp_path / "pissa_init").rename(tmp_path / "elsewhere")
    with pytest.raises(FileFormatError, match=f"init_lora_weights is '{init}'") as caught:
        read_adapter(
            config(tmp_path, init_lora_weights=init), weight_of=lambda _: torch.ones(10, 12)
        )
    assert "--base" not in str(caught.value)

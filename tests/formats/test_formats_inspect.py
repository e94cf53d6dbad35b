import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from konomi.cli.main import main
from konomi.errors import FileFormatError
from konomi.formats.adapter_file import inspect_file, read_adapter, write_adapter
from konomi.formats.layers import KNOWN_PARTS


def ones(*shape: int) -> Tensor:
    return torch.ones(*shape, dtype=torch.float16)


def checkpoint(family: str, *, channels: int = 4) -> dict[str, Tensor]:
    """The names and shapes by which a single-file checkpoint is told, in small."""
    width, text = {
        "sd1": (768, ["cond_stage_model.transformer.text_model.embeddings.position_ids"]),
        "sd2": (1024, ["cond_stage_model.model.ln_final.weight"]),
        "sdxl": (
            2048,
            ["conditioner.embedders.0.transformer.text_model.final_layer_norm.weight",
             "conditioner.embedders.1.model.ln_final.weight"],
        ),
    }[family]  # fmt: skip
    unet = "model.diffusion_model."
    tensors = {
        f"{unet}input_blocks.0.0.weight": ones(8, channels, 3, 3),
        f"{unet}input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": ones(8, width),
        "first_stage_model.encoder.conv_in.weight": ones(8, 3, 3, 3),
    }
    return tensors | {name: ones(4) for name in text}


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("form", ["safetensors", "zip", "legacy"])
def test_single_file_checkpoints(tmp_path: Path, family: str, form: str) -> None:
    path = tmp_path / "model.ckpt"
    if form == "safetensors":
        save_file(checkpoint(family), path)
    else:
        value = {"state_dict": checkpoint(family), "global_step": 470000}
        torch.save(value, path, _use_new_zipfile_serialization=form == "zip")
    report = inspect_file(path)
    assert (report.kind, report.format, report.family) == ("checkpoint", "single file", family)
    assert (
        report.layers["denoiser"] == 2
        and report.layers["vae"] == 1
        and report.layers["text_encoder"] == 1
    )
    assert set(report.dtypes) <= {"F16", "float16"} and len(report.hashes["sha256"]) == 64
    assert report.notes == () and report.health.checked
    if form != "safetensors":
        assert report.metadata == {"global_step": "470000"}
    with pytest.raises(FileFormatError, match=r"no LoRA.*'checkpoint'"):
        read_adapter(path)


def test_incomplete_and_inpainting_checkpoints(tmp_path: Path) -> None:
    tensors = {
        name: t for name, t in checkpoint("sd1", channels=9).items() if name.startswith("model.")
    }
    save_file(tensors, tmp_path / "x.safetensors")
    report = inspect_file(tmp_path / "x.safetensors")
    assert report.family == "sd1"
    assert report.notes == ("inpainting (9 input channels)", "has no vae and no text_encoder")


WIDE = torch.randn(3, 768)
EMBEDDINGS: dict[str, tuple[object, str, dict[str, dict[str, list[int]]]]] = {
    "webui": (
        {
            "string_to_token": {"*": 265},
            "string_to_param": {"*": WIDE},
            "name": "cat",
            "step": 5,
            "sd_checkpoint": None,
        },
        "sd1",
        {"x": {"text_encoder": [3, 768]}},
    ),
    "original of 2022": (
        {
            "string_to_token": {"*": torch.tensor(265)},
            "string_to_param": torch.nn.ParameterDict(
                {"*": torch.nn.Parameter(torch.randn(1, 1024))}
            ),
        },
        "sd2",
        {"x": {"text_encoder": [1, 1024]}},
    ),
    "diffusers": ({"<cat>": WIDE[0]}, "sd1", {"<cat>": {"text_encoder": [1, 768]}}),
    "emb_params": ({"emb_params": WIDE}, "sd1", {"x": {"text_encoder": [3, 768]}}),
    "misspelt": ({"emp_params": WIDE}, "sd1", {"x": {"text_encoder": [3, 768]}}),
    "two encoders": (
        {"clip_l": WIDE, "clip_g": torch.randn(3, 1280)},
        "sdxl",
        {"x": {"text_encoder": [3, 768], "text_encoder_2": [3, 1280]}},
    ),
}


@pytest.mark.parametrize("case", EMBEDDINGS)
def test_embeddings(tmp_path: Path, case: str) -> None:
    value, family, tokens = EMBEDDINGS[case]
    torch.save(value, tmp_path / "x.pt")
    report = inspect_file(tmp_path / "x.pt")
    assert (report.kind, report.family, report.tokens) == ("embedding", family, tokens)
    if case in ("emb_params", "misspelt", "two encoders", "diffusers"):
        assert isinstance(value, dict)
        save_file({name: t.clone() for name, t in value.items()}, tmp_path / "x.safetensors")
        assert inspect_file(tmp_path / "x.safetensors").tokens == tokens


def test_hypernetworks_custom_diffusion_and_aesthetic_embeddings(tmp_path: Path) -> None:
    def half(width: int) -> dict[str, Tensor]:
        first = {
            "linear.0.weight": ones(2 * width, width),
            "linear.0.bias": ones(2 * width) * float("nan"),
        }
        return first | {"linear.1.weight": ones(width, 2 * width), "linear.1.bias": ones(width)}

    torch.save(
        {width: (half(width), half(width)) for width in (320, 768)} | {"step": 9, "name": "h"},
        tmp_path / "h.pt",
    )
    report = inspect_file(tmp_path / "h.pt")
    assert (report.kind, report.family, report.name) == ("hypernetwork", "sd1", "h")
    assert report.layers == {"320": 8, "768": 8} and report.metadata["step"] == "9"
    assert "320.k.linear.0.bias" in report.health.nonfinite
    delta = {
        "unet": {"mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight": ones(3, 768)},
        "modifier_token": {"<new1>": WIDE[0]},
    }
    torch.save(delta, tmp_path / "delta.bin")
    report = inspect_file(tmp_path / "delta.bin")
    assert (report.kind, report.tokens) == (
        "custom diffusion",
        {"<new1>": {"text_encoder": [1, 768]}},
    )
    torch.save(WIDE[:1], tmp_path / "a.pt")
    assert inspect_file(tmp_path / "a.pt").kind == "aesthetic embedding"


def test_diffusers_folders(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "scheduler").mkdir()
    index = {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet"],
        "safety_checker": [None, None],
    }
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    (tmp_path / "unet" / "config.json").write_text(
        '{"use_linear_projection": true, "in_channels": 9}'
    )
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(
        '{"prediction_type": "v_prediction"}'
    )
    save_file({"a": ones(2), "b": ones(3) * float("inf")}, tmp_path / "unet" / "model.safetensors")
    report = inspect_file(tmp_path)
    assert (report.kind, report.format, report.family) == ("model folder", "diffusers", "sd2")
    assert report.metadata["prediction_type"] == "v_prediction" and report.notes == (
        "inpainting (9 input channels)",
    )
    assert report.health.nonfinite == ("unet/model:b",)
    (tmp_path / "empty").mkdir()
    assert inspect_file(tmp_path / "empty").kind == "folder"


def test_unknown_tables_are_said_to_be_unknown(tmp_path: Path) -> None:
    save_file({"some.thing": ones(2), "else": ones(2, 3)}, tmp_path / "x.safetensors")
    report = inspect_file(tmp_path / "x.safetensors")
    assert report.kind == "unknown tensors" and "2 names" in report.notes[0]


def test_reports_become_json(tmp_path: Path) -> None:
    halves = {"lora_down": ones(2, 4, 3, 3), "lora_up": 0 * ones(8, 2, 1, 1)}
    tensors = {f"lora_unet_conv_in.{half}.weight": tensor for half, tensor in halves.items()}
    save_file(tensors, tmp_path / "x.safetensors", {"ss_v2": "True"})
    report = inspect_file(tmp_path / "x.safetensors")
    table = json.loads(json.dumps(report.as_json()))
    assert (
        table["family"] == "sd2"
        and table["ranks"] == {"2": 1}
        and table["metadata"] == {"ss_v2": "True"}
    )
    assert table["health"]["zero"] == ["lora_unet_conv_in.lora_up.weight"]
    quick = inspect_file(tmp_path / "x.safetensors", check=False)
    assert not quick.health.checked and quick.hashes == {} and quick.ranks == {"2": 1}


NOT_MODELS = {
    "html": (b"<!DOCTYPE html><html><body>Sign in</body></html>", "web page"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 3\n", "git lfs pull"),
    "empty": (b"", "empty"),
    "zeros": (bytes(4096), "cut short"),
    "gzip": (b"\x1f\x8b\x08\0abcdef", "gzip"),
    "png": (b"\x89PNG\r\n\x1a\n", "PNG image"),
    "json": (b'{"error":"Repository not found"}', "JSON"),
    "noise": (b"qwertyuiop" * 9, "of a kind konomi does not know"),
    "cut safetensors": (b"\x40\0\0\0\0\0\0\0{\"a\":", "cut short"),
    "bare pickle": (b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00}.", "bare Python pickle"),
}  # fmt: skip


@pytest.mark.parametrize("case", NOT_MODELS)
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_what_is_no_model_is_named_in_one_line(tmp_path: Path, case: str, suffix: str) -> None:
    content, message = NOT_MODELS[case]
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    for read in (inspect_file, read_adapter):
        with pytest.raises(FileFormatError, match=message) as caught:
            read(path)
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    with pytest.raises(FileFormatError, match="no such file"):
        inspect_file(tmp_path / "missing.safetensors")


DTYPES = [
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.int64,
    torch.bool,
    torch.complex64,
]
NAMES = st.sampled_from(
    [f"lora_unet_mid_block_attentions_0_proj_in.{part}" for part in sorted(KNOWN_PARTS)]
    + [
        "bundle_emb.x.emb_params",
        "bundle_emb.x.clip_g",
        "unet:0:up",
        "unet:0:down",
        "emb_params",
        "<x>",
    ]
    + [
        f"unet.mid_block.attentions.0.proj_in.{part}"
        for part in ("lora_A.weight", "lora_B.weight", "alpha")
    ]
    + [
        "unet.mid_block.attentions.0.proj_in.lora_magnitude_vector",
        "model.diffusion_model.input_blocks.0.0.weight",
    ]
)
SHAPES = st.one_of(
    st.lists(st.integers(0, 3), max_size=4), st.sampled_from([[768], [2, 768], [768, 2], [1, 1]])
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(NAMES, st.tuples(SHAPES, st.sampled_from(DTYPES)), min_size=1, max_size=6))
def test_odd_tables_end_in_an_adapter_or_a_named_fault(
    table: dict[str, tuple[list[int], torch.dtype]],
) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.safetensors")
        save_file(
            {name: torch.ones(shape).to(dtype) for name, (shape, dtype) in table.items()}, path
        )
        try:
            assert json.dumps(inspect_file(path).as_json())
            adapter = read_adapter(path)
            write_adapter(adapter, Path(folder, "y.safetensors"))
            assert (
                read_adapter(Path(folder, "y.safetensors")).layers.keys() == adapter.layers.keys()
            )
        except FileFormatError as error:
            assert "\n" not in str(error)


def broken_lora(what: str) -> dict[str, Tensor]:
    layer = "lora_unet_mid_block_attentions_0_proj_in"
    tensors = {
        f"{layer}.lora_down.weight": torch.ones(4, 8),
        f"{layer}.lora_up.weight": torch.ones(8, 4),
    }
    if what == "half":
        del tensors[f"{layer}.lora_up.weight"]
    elif what == "rank":
        tensors[f"{layer}.lora_up.weight"] = torch.ones(8, 3)
    elif what == "unknown":
        tensors["lora_unet_no_such_place.lora_down.weight"] = torch.ones(4, 8)
        tensors["lora_unet_no_such_place.lora_up.weight"] = torch.ones(8, 4)
    elif what == "nan":
        tensors[f"{layer}.lora_up.weight"] = torch.full((8, 4), float("nan"))
    elif what == "flux":
        tensors["lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight"] = torch.ones(4, 8)
        tensors["lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight"] = torch.ones(8, 4)
    elif what == "nothing known":
        tensors = {"some.thing": torch.ones(2)}
    return tensors


@pytest.mark.parametrize("what", ["half", "rank", "unknown", "nan", "flux", "nothing known"])
def test_a_file_that_is_refused_is_reported_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    tensors, path = broken_lora(what), tmp_path / "x.safetensors"
    save_file(tensors, path, {"ss_output_name": "mine", "ss_base_model_version": "sd_v1"})
    with pytest.raises(FileFormatError) as caught:
        read_adapter(path)
    report = inspect_file(path)
    assert report.problem.startswith(f"{path}: ")
    if what not in ("flux", "nothing known"):
        assert report.problem == str(caught.value) and report.family == "sd1"
    assert report.num_tensors == len(tensors)
    assert report.num_parameters == sum(tensor.numel() for tensor in tensors.values())
    assert report.metadata["ss_output_name"] == "mine" and len(report.hashes["sha256"]) == 64
    assert report.health.checked and bool(report.health.nonfinite) == (what == "nan")
    assert main(["inspect", str(path)]) == 1
    output = capsys.readouterr()
    assert "problem" in output.out and output.err == f"{report.problem}\n"
    assert main(["inspect", str(path), "--json"]) == 1
    (entry,) = json.loads(capsys.readouterr().out)
    assert entry["problem"] == entry["error"] == report.problem and entry["num_tensors"] == len(
        tensors
    )


def test_a_sound_file_has_no_problem(tmp_path: Path) -> None:
    save_file(broken_lora(""), tmp_path / "x.safetensors")
    assert inspect_file(tmp_path / "x.safetensors").problem == ""
    assert main(["inspect", str(tmp_path / "x.safetensors")]) == 0

import hashlib
import json
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from konomi.adapters.adapter import Adapter
from konomi.adapters.delta import bias_delta, delta
from konomi.adapters.kinds import KINDS, LayerUpdate, LowRank
from konomi.errors import FileFormatError
from konomi.formats.adapter_file import inspect_file, read_adapter, write_adapter
from konomi.formats.kohya_metadata import TrainingFacts, training_metadata

TO_K = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
CONV = "lora_unet_down_blocks_0_resnets_0_conv1"
NORM = "lora_unet_conv_norm_out"
KEY_OF = {
    TO_K.replace(
        "lora_unet_", "oft_unet_"
    ): "denoiser.mid_block.attentions.0.transformer_blocks.0.attn2.to_k",
    TO_K: "denoiser.mid_block.attentions.0.transformer_blocks.0.attn2.to_k",
    CONV: "denoiser.down_blocks.0.resnets.0.conv1",
    NORM: "denoiser.conv_norm_out",
}


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def save(path: Path, tensors: dict[str, Tensor], **metadata: str) -> Path:
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path, metadata or None)
    return path


def layer(name: str, **parts: Tensor) -> dict[str, Tensor]:
    dotted = {"down": "lora_down.weight", "up": "lora_up.weight", "mid": "lora_mid.weight"}
    return {f"{name}.{dotted.get(part, part)}": tensor for part, tensor in parts.items()}


def magnitudes(weight: Tensor, axis: int) -> Tensor:
    """Norms over all axes but one, kept as dimensions."""
    return weight.pow(2).sum([a for a in range(weight.dim()) if a != axis], keepdim=True).sqrt()


O, I, K, R = 10, 768, 3, 2  # noqa: E741
LINEAR, CONVOLUTION = normal(O, I), normal(O, 6, K, K)


def linear_lora() -> tuple[str, dict[str, Tensor], Tensor, Tensor]:
    down, up = normal(R, I), normal(O, R)
    return TO_K, layer(TO_K, down=down, up=up, alpha=torch.tensor(3.0)), LINEAR, up @ down * 3 / R


def no_alpha() -> tuple[str, dict[str, Tensor], Tensor, Tensor]:
    down, up = normal(R, I), normal(O, R)
    return TO_K, layer(TO_K, down=down, up=up), LINEAR, up @ down


def conv_lora() -> tuple[str, dict[str, Tensor], Tensor, Tensor]:
    down, up = normal(R, 6, K, K), normal(O, R, 1, 1)
    expected = torch.zeros_like(CONVOLUTION)
    for rank in range(R):
        expected += up[:, rank, 0, 0][:, None, None, None] * down[rank][None]
    return CONV, layer(CONV, down=down, up=up, alpha=torch.tensor(1.0)), CONVOLUTION, expected / R


def tucker_lora() -> tuple[str, dict[str, Tensor], Tensor, Tensor]:
    down, mid, up = normal(R, 6, 1, 1), normal(R, R, K, K), normal(O, R, 1, 1)
    image = normal(1, 6, 8, 8)
    steps = torch.nn.functional.conv2d(image, down)
    steps = torch.nn.functional.conv2d(torch.nn.functional.conv2d(steps, mid), up)
    expected = torch.zeros_like(CONVOLUTION)
    for channel in range(6):
        for y in range(K):
            for x in range(K):
                point = torch.zeros(1, 6, K, K, dtype=torch.float64)
                point[0, channel, y, x] = 1
                parts = torch.nn.functional.conv2d(torch.nn.functional.conv2d(point, down), mid)
                expected[:, channel, y, x] = torch.nn.functional.conv2d(parts, up)[0, :, 0, 0]
    assert torch.allclose(torch.nn.functional.conv2d(image, expected), steps)
    return (
        CONV,
        layer(CONV, down=down, up=up, mid=mid, alpha=torch.tensor(4.0)),
        CONVOLUTION,
        expected * 4 / R,
    )


def dora_per_output() -> tuple[str, dict[str, Tensor], Tensor, Tensor]:
    down, up, scale = normal(R, I), normal(O, R), normal(O, 1).abs()
    changed = LINEAR + up @ down
    expected = changed * scale / magnitudes(changed, 0) - LINEAR
    return TO_K, layer(TO_K, down=down, up=up, dora_scale=scale), LINEAR, expected


def dora_per_input() -> tuple[str, dict[str, Tensor], Tensor, Tensor]:
    down, up, scale = normal(R, I), normal(O, R), normal(1, I).abs()
    changed = LINEAR + up @ down
    expected = changed * scale / magnitudes(changed, 1) - LINEAR
    return TO_K, layer(TO_K, down=down, up=up, dora_scale=scale), LINEAR, expected


def loha() -> tuple[str, dict[str, Tensor], Tensor, Tensor]:
    parts = {
        "w1_a": normal(O, R),
        "w1_b": normal(R, 6 * K * K),
        "w2_a": normal(O, R),
        "w2_b": normal(R, 6 * K * K),
    }
    expected = (
        ((parts["w1_a"] @ parts["w1_b"]) * (parts["w2_a"] @ parts["w2_b"])).reshape(O, 6, K, K)
        * 1.5
        / R
    )
    named = {f"hada_{name}": tensor for name, tensor in parts.items()}
    return CONV, layer(CONV, **named, alpha=torch.tensor(1.5)), CONVOLUTION, expected


def loha_tucker() -> tuple[str, dict[str, Tensor], Tensor, Tensor]:
    parts = {"w1_a": normal(R, O), "w1_b": normal(R, 6), "t1": normal(R, R, K, K)}
    parts |= {"w2_a": normal(R, O), "w2_b": normal(R, 6), "t2": normal(R, R, K, K)}
    halves = [
        torch.einsum("ijkl,jr,ip->prkl", parts[f"t{n}"], parts[f"w{n}_b"], parts[f"w{n}_a"])
        for n in (1, 2)
    ]
    named = {f"hada_{name}": tensor for name, tensor in parts.items()}
    return (
        CONV,
        layer(CONV, **named, alpha=torch.tensor(1.0)),
        CONVOLUTION,
        halves[0] * halves[1] / R,
    )


def lokr_full() -> tuple[str, dict[str, Tensor], Tensor, Tensor]:
    w1, w2 = normal(2, 3), normal(5, 256)
    return (
        TO_K,
        layer(TO_K, lokr_w1=w1, lokr_w2=w2, alpha=torch.tensor(7.0)),
        LINEAR,
        torch.kron(w1, w2),
    )


def lokr_factored() -> tuple[str, dict[str, Tensor], Tensor, Tensor]:
    w1, a, b = normal(2, 3), normal(5, R), normal(R, 256)
    expected = torch.kron(w1, a @ b) * 3 / R
    return (
        TO_K,
        layer(TO_K, lokr_w1=w1, lokr_w2_a=a, lokr_w2_b=b, alpha=torch.tensor(3.0)),
        LINEAR,
        expected,
    )


def ia3_outputs() -> tuple[str, dict[str, Tensor], Tensor, Tensor]:
    scale = normal(O)
    parts = layer(TO_K, weight=scale, on_input=torch.tensor(False))
    return TO_K, parts, LINEAR, LINEAR * scale[:, None]


def ia3_inputs() -> tuple[str, dict[str, Tensor], Tensor, Tensor]:
    scale = normal(I)
    return TO_K, layer(TO_K, weight=scale, on_input=torch.tensor(True)), LINEAR, LINEAR * scale


def full_difference() -> tuple[str, dict[str, Tensor], Tensor, Tensor]:
    change = normal(O, I)
    return TO_K, layer(TO_K, diff=change, diff_b=normal(O)), LINEAR, change


def norm_difference() -> tuple[str, dict[str, Tensor], Tensor, Tensor]:
    change = normal(O)
    return NORM, layer(NORM, w_norm=change, b_norm=normal(O)), normal(O), change


def oft() -> tuple[str, dict[str, Tensor], Tensor, Tensor]:
    blocks, rescale = normal(5, 2, 2), normal(O, 1)
    parts = layer(TO_K, oft_blocks=blocks, rescale=rescale)
    return TO_K, parts, LINEAR, _turned(blocks, rescale)


def oft_bounded() -> tuple[str, dict[str, Tensor], Tensor, Tensor]:
    blocks = normal(5, 2, 2)
    norm = (blocks - blocks.mT).norm()
    held = blocks * (0.01 * O / norm)
    return (
        TO_K,
        layer(TO_K, oft_blocks=blocks, alpha=torch.tensor(0.01, dtype=torch.float64)),
        LINEAR,
        _turned(held, torch.ones(O, 1)),
    )


def glora() -> tuple[str, dict[str, Tensor], Tensor, Tensor]:
    a1, a2, b1, b2 = normal(I, R), normal(R, I), normal(O, R), normal(R, I)
    factors = {"a1.weight": a1, "a2.weight": a2, "b1.weight": b1, "b2.weight": b2}
    return (
        TO_K,
        layer(TO_K, **factors, alpha=torch.tensor(1.5)),
        LINEAR,
        (LINEAR @ a1 @ a2 + b1 @ b2) * 1.5 / R,
    )


def boft() -> tuple[str, dict[str, Tensor], Tensor, Tensor]:
    # A butterfly's block turns the other way than OFT's, and takes halves of it in turn.
    blocks, halves = normal(1, 1, 10, 10), torch.arange(10).view(2, 5).t().flatten()
    q = blocks[0, 0] - blocks[0, 0].t()
    turn = torch.zeros(10, 10, dtype=torch.float64)
    turn[halves[:, None], halves] = (torch.eye(10) + q) @ torch.linalg.inv(torch.eye(10) - q)
    return TO_K, layer(TO_K, oft_blocks=blocks), LINEAR, turn @ LINEAR - LINEAR


def _turned(blocks: Tensor, rescale: Tensor) -> Tensor:
    q, eye = torch.block_diag(*(blocks - blocks.mT)), torch.eye(O, dtype=torch.float64)
    turn = (eye + q) @ torch.linalg.inv(eye - q)
    return rescale * (turn.t() @ LINEAR) - LINEAR


CASES = {
    case.__name__: case
    for case in (
        linear_lora, no_alpha, conv_lora, tucker_lora, dora_per_output, dora_per_input, loha,
        loha_tucker, lokr_full,
        lokr_factored, ia3_outputs, ia3_inputs, full_difference, norm_difference,
        oft, oft_bounded, boft, glora,
    )
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_every_variant_means_its_formula_and_survives_a_round_trip(
    tmp_path: Path, case: str
) -> None:
    torch.manual_seed(0)
    name, tensors, weight, expected = CASES[case]()
    adapter = read_adapter(save(tmp_path / "in.safetensors", tensors))
    assert list(adapter.layers) == [KEY_OF[name]]
    update = adapter.layers[KEY_OF[name]]
    assert torch.allclose(delta(update, weight), expected, rtol=1e-10, atol=1e-12)
    for part in ("diff_b", "b_norm"):
        if f"{name}.{part}" in tensors:
            shift = bias_delta(update, torch.zeros(O, dtype=torch.float64))
            assert shift is not None and torch.equal(shift, tensors[f"{name}.{part}"])
    if case == "dora_per_output":
        with pytest.raises(
            FileFormatError, match=r"magnitudes per output, which A1111 would take .* --base BASE"
        ):
            write_adapter(adapter, tmp_path / "out.safetensors")
        return
    write_adapter(adapter, tmp_path / "out.safetensors")
    written = load_file(tmp_path / "out.safetensors")
    assert set(written) - set(tensors) <= {f"{name}.alpha"} and set(tensors) <= set(written)
    assert all(
        torch.equal(written[part], tensor.to(written[part].dtype))
        for part, tensor in tensors.items()
    )
    write_adapter(read_adapter(tmp_path / "out.safetensors"), tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (
        tmp_path / "out.safetensors"
    ).read_bytes()


def mixed(dtype: torch.dtype, family: str) -> Adapter:
    width = {"sd1": 768, "sd2": 1024, "sdxl": 2048}[family]
    block = "denoiser.down_blocks.1.attentions.0.transformer_blocks.0"
    sizes: dict[str, tuple[int, int, float]] = {
        f"{block}.attn2.to_k": (width, 4, 4.0), f"{block}.attn1.to_out.0": (640, 2, 1.0),
        f"{block}.ff.net.2": (99, 1, 0.3),
        "text_encoder.text_model.encoder.layers.3.mlp.fc1": (768, 4, 16.0),
    }  # fmt: skip
    if family == "sdxl":
        sizes["text_encoder_2.text_model.encoder.layers.30.self_attn.out_proj"] = (1280, 8, 8.0)
    layers: dict[str, LayerUpdate] = {
        key: LowRank(
            torch.randn(rank, inputs).to(dtype),
            torch.randn(5, rank).to(dtype),
            float(torch.tensor(a, dtype=dtype)),
        )
        for key, (inputs, rank, a) in sizes.items()
    }
    layers["denoiser.down_blocks.0.resnets.1.conv2"] = LowRank(
        torch.randn(3, 6, 3, 3).to(dtype), torch.randn(5, 3, 1, 1).to(dtype), 2.0
    )
    vectors = {"text_encoder": torch.randn(2, 768).to(dtype)}
    if family == "sdxl":
        vectors["text_encoder_2"] = torch.randn(2, 1280).to(dtype)
    return Adapter(layers, {"my.word": vectors}, {}, family, "name")


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_round_trip_is_exact_and_files_repeat_byte_for_byte(
    tmp_path: Path, family: str, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    adapter = mixed(dtype, family)
    write_adapter(adapter, tmp_path / "a.safetensors")
    back = read_adapter(tmp_path / "a.safetensors")
    assert back.family == family and back.layers.keys() == adapter.layers.keys()
    for key, update in adapter.layers.items():
        other = back.layers[key]
        assert isinstance(update, LowRank) and isinstance(other, LowRank)
        assert (
            torch.equal(other.down, update.down)
            and torch.equal(other.up, update.up)
            and other.alpha == update.alpha
        )
    assert torch.equal(
        back.embeddings["my.word"]["text_encoder"], adapter.embeddings["my.word"]["text_encoder"]
    )
    assert back.embeddings["my.word"].keys() == adapter.embeddings["my.word"].keys()
    write_adapter(back, tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    names = set(load_file(tmp_path / "a.safetensors"))
    assert all(tensor.dtype == dtype for tensor in load_file(tmp_path / "a.safetensors").values())
    if family == "sdxl":
        assert (
            "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_down.weight" in names
        )
        assert "lora_unet_input_blocks_2_0_out_layers_3.alpha" in names
        assert {"bundle_emb.my.word.clip_l", "bundle_emb.my.word.clip_g"} <= names
        assert any(name.startswith("lora_te1_text_model_") for name in names)
    else:
        assert (
            "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0.lora_up.weight"
            in names
        )
        assert "lora_te_text_model_encoder_layers_3_mlp_fc1.alpha" in names


def test_the_written_type_can_be_chosen(tmp_path: Path) -> None:
    write_adapter(mixed(torch.float32, "sd1"), tmp_path / "h.safetensors", dtype=torch.float16)
    assert {tensor.dtype for tensor in load_file(tmp_path / "h.safetensors").values()} == {
        torch.float16
    }


def test_both_namings_of_sdxl_and_flat_matrices_on_1x1_convolutions(tmp_path: Path) -> None:
    down, up = torch.randn(2, 2048), torch.randn(640, 2)
    for name in ("down_blocks_1_attentions_0", "input_blocks_4_1"):
        parts = layer(f"lora_unet_{name}_transformer_blocks_0_attn2_to_v", down=down, up=up)
        adapter = read_adapter(save(tmp_path / "x.safetensors", parts))
        assert list(adapter.layers) == [
            "denoiser.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_v"
        ]
        assert adapter.family == "sdxl"
    flat = read_adapter(
        save(
            tmp_path / "y.safetensors",
            layer("lora_unet_mid_block_attentions_0_proj_in", down=down, up=up),
        )
    )
    change = delta(
        flat.layers["denoiser.mid_block.attentions.0.proj_in"], torch.zeros(640, 2048, 1, 1)
    )
    assert change.shape == (640, 2048, 1, 1) and torch.allclose(
        change[..., 0, 0], up @ down, atol=1e-4
    )


def test_a_pickled_kohya_file_is_read_too(tmp_path: Path) -> None:
    tensors = layer(TO_K, down=torch.randn(2, 768), up=torch.randn(5, 2), alpha=torch.tensor(1.0))
    torch.save({"state_dict": tensors}, tmp_path / "x.ckpt")
    assert read_adapter(tmp_path / "x.ckpt").family == "sd1"


D, U = torch.ones(2, 768), torch.ones(5, 2)
BAD: dict[str, tuple[dict[str, Tensor], str]] = {
    "no up": (layer(TO_K, down=D, alpha=torch.tensor(1.0)), r"to_k\.lora_down\.weight has no "
                                                            r"lora_up"),
    "no down": (layer(TO_K, up=U), r"to_k\.lora_up\.weight has no lora_down"),
    "alpha alone": (layer(TO_K, alpha=torch.tensor(1.0)), r"to_k\.alpha has none of the tensors"),
    "rank 0": (layer(TO_K, down=torch.ones(0, 768), up=torch.ones(5, 0)),
    r"to_k\.lora_down\.weight has rank 0"),
    "other rank": (layer(TO_K, down=D, up=torch.ones(5, 3)), r"lora_up\.weight has rank 3; its "
                                                             r"lora_down has rank 2"),
    "three axes": (layer(TO_K, down=torch.ones(2, 3, 4), up=U), r"lora_down\.weight has shape \[2, "
                                                                r"3, 4\]"),
    "alpha table": (layer(TO_K, down=D, up=U, alpha=torch.ones(2)), r"to_k\.alpha has shape"),
    "odd magnitude": (layer(TO_K, down=D, up=U, dora_scale=torch.ones(7, 1)), r"to_k\.dora_scale "
                                                                              r"has shape"),
    "two kinds": (layer(TO_K, down=D, up=U, diff=torch.ones(5, 768)), r"to_k\.diff does not "
                                                                      r"belong"),
    "half loha": (layer(TO_K, hada_w1_a=torch.ones(5, 2)), r"to_k has no matrix hada_w1_b"),
    "half lokr": (layer(TO_K, lokr_w1=torch.ones(5, 2)), r"to_k has neither lokr_w2"),
    "odd lokr core": (
        layer(TO_K, lokr_w1=D, lokr_w2_a=D, lokr_w2_b=D, lokr_t2=torch.ones(3, 2, 3, 3)),
        r"to_k\.lokr_t2 has shape",
    ),
    "whole numbers": (layer(TO_K, down=D.int(), up=U), r"to_k\.lora_down\.weight has type int32"),
    "broken alpha": (layer(TO_K, down=D, up=U, alpha=torch.tensor(float("nan"))), r"to_k\.alpha "
                                                                                  r"holds NaN"),
    "ia3 without axis": (layer(TO_K, weight=torch.ones(5)), r"to_k\.weight has no on_input"),
    "nan": (layer(TO_K, down=D, up=U * float("nan")), r"to_k\.lora_up\.weight holds NaN or "
                                                      r"infinity"),
    "infinity": (layer(TO_K, down=D * float("inf"), up=U), r"to_k\.lora_down\.weight holds NaN or "
                                                           r"infinity"),
    "unknown layer": (
        layer(TO_K, down=D, up=U) | layer("lora_unet_flux_x", down=D, up=U),
        r"lora_unet_flux_x.*and 1 more",
    ),
    "unknown part": (layer(TO_K, down=D, up=U, scalar=torch.ones(1)), r"to_k\.scalar: konomi knows "
                                                                      r"no such layer"),
    "other width": (
        layer(TO_K, down=D, up=U) | layer(TO_K.replace("to_k", "to_v"), down=torch.ones(2, 1024),
        up=U),
        r"attn2\.to_v reads text states of another width",
    ),
    "same layer twice": (
        layer("lora_unet_down_blocks_1_attentions_0_proj_in", down=D, up=U)
        | layer("lora_unet_input_blocks_4_1_proj_in", down=D, up=U),
        "same layer",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_the_tensor_at_fault_is_named(tmp_path: Path, case: str) -> None:
    tensors, message = BAD[case]
    with pytest.raises(FileFormatError, match=message):
        read_adapter(save(tmp_path / "x.safetensors", tensors))


def test_inspect_reports_what_loading_refuses(tmp_path: Path) -> None:
    tensors = BAD["unknown layer"][0] | layer(
        CONV, down=torch.ones(1, 2, 3, 3), up=torch.full((4, 1, 1, 1), float("nan"))
    )
    report = inspect_file(save(tmp_path / "x.safetensors", tensors))
    assert report.unknown == (
        "lora_unet_flux_x.lora_down.weight",
        "lora_unet_flux_x.lora_up.weight",
    )
    assert report.health.nonfinite == (f"{CONV}.lora_up.weight",)
    assert report.layers == {"denoiser": 2} and report.ranks == {"2": 1, "1": 1}


def test_hashes_are_those_of_the_written_bytes(tmp_path: Path) -> None:
    adapter = replace(
        mixed(torch.float32, "sd1"),
        metadata=training_metadata(TrainingFacts(name="sks", family="sd1")),
    )
    big = LowRank(torch.randn(400, 768), torch.randn(768, 400), 1.0)
    adapter.layers["denoiser.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"] = big
    path = tmp_path / "x.safetensors"
    write_adapter(adapter, path)
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    metadata = json.loads(raw[8 : 8 + length])["__metadata__"]
    digest = hashlib.sha256(raw[8 + length :]).hexdigest()
    assert (
        metadata["sshs_model_hash"] == digest and metadata["modelspec.hash_sha256"] == f"0x{digest}"
    )
    save_file(
        load_file(path),
        tmp_path / "old",
        {k: v for k, v in metadata.items() if k.startswith("ss_")},
    )
    old = (tmp_path / "old").read_bytes()
    assert len(old) > 0x110000
    assert metadata["sshs_legacy_hash"] == hashlib.sha256(old[0x100000:0x110000]).hexdigest()[:8]
    assert inspect_file(path).hashes["sshs_model_hash"] == digest and not inspect_file(path).notes
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    assert "changed after training" in inspect_file(path).notes[0]


def test_notes_of_others_are_kept_and_stale_figures_are_not(tmp_path: Path) -> None:
    parts = layer(TO_K, down=D * 0.5, up=U, alpha=torch.tensor(1.0))
    notes = {
        "note": "mine",
        "ss_network_alpha": "1.0",
        "ss_network_dim": "2",
        "sshs_model_hash": "old",
    }
    adapter = read_adapter(save(tmp_path / "x.safetensors", parts, **notes))
    write_adapter(adapter, tmp_path / "y.safetensors")
    kept = read_adapter(tmp_path / "y.safetensors").metadata
    assert (
        kept["note"] == "mine"
        and kept["ss_network_alpha"] == "1.0"
        and kept["sshs_model_hash"] != "old"
    )
    write_adapter(adapter, tmp_path / "d", "diffusers")
    write_adapter(read_adapter(tmp_path / "d"), tmp_path / "z.safetensors")
    kept = read_adapter(tmp_path / "z.safetensors").metadata
    assert kept["note"] == "mine" and kept["ss_network_alpha"] == "2" and "format" not in kept


def test_the_prefix_of_kohyas_own_oft_is_read(tmp_path: Path) -> None:
    name, tensors, weight, expected = oft_bounded()
    tensors = {k.replace("lora_unet_", "oft_unet_"): t for k, t in tensors.items()}
    adapter = read_adapter(save(tmp_path / "in.safetensors", tensors))
    assert torch.allclose(delta(adapter.layers[KEY_OF[name]], weight), expected, atol=1e-12)


def test_kinds_have_plain_names(tmp_path: Path) -> None:
    kinds = {}
    for case in (
        "linear_lora",
        "dora_per_input",
        "loha",
        "lokr_full",
        "ia3_inputs",
        "full_difference",
        "oft",
        "boft",
        "glora",
    ):
        report = inspect_file(save(tmp_path / "x.safetensors", CASES[case]()[1]))
        kinds |= report.layer_kinds
    assert set(kinds) == {
        "lora",
        "lora+dora",
        "loha",
        "lokr",
        "ia3",
        "diff",
        "oft",
        "boft",
        "glora",
    }
    # The last comes in Custom Diffusion's files alone.
    assert {kind.about.name for kind in KINDS} - set(kinds) == {"whole"}


def test_the_norm_of_an_update_is_that_of_its_product(tmp_path: Path) -> None:
    for case in ("linear_lora", "conv_lora", "tucker_lora"):
        name, tensors, _, expected = CASES[case]()
        report = inspect_file(save(tmp_path / "x.safetensors", tensors))
        assert report.health.largest_update == pytest.approx(float(expected.norm()))
        assert report.health.largest_layer == KEY_OF[name]

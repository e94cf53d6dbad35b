"""Where a file works: the rules against diffusers' own loader, and against what web UIs are
documented to do.
"""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from test_formats_diffusers import random_adapter, tiny_pipeline, weights
from torch import Tensor

from konomi.adapters.adapter import Adapter
from konomi.adapters.delta import delta
from konomi.adapters.kinds import LowRank
from konomi.cli.verdict import verdict
from konomi.formats.adapter_file import inspect_file, read_adapter, write_adapter
from konomi.formats.readers import Reading, sentences

BLOCK = "down_blocks_1_attentions_0_transformer_blocks_0"


def plain(
    name: str, rank: int = 2, *, width: int = 8, alpha: float | None = None
) -> dict[str, Tensor]:
    found = {
        f"{name}.lora_down.weight": torch.ones(rank, width),
        f"{name}.lora_up.weight": torch.ones(8, rank),
    }
    return found if alpha is None else found | {f"{name}.alpha": torch.tensor(alpha)}


def read(
    tmp_path: Path, tensors: dict[str, Tensor], name: str = "x.safetensors", **metadata: str
) -> dict[str, Reading]:
    save_file(
        {key: tensor.clone() for key, tensor in tensors.items()}, tmp_path / name, metadata or None
    )
    return {reading.reader: reading for reading in inspect_file(tmp_path / name).readers}


def truly_used(pipeline: Any, file: Path, adapter: Adapter) -> set[str]:
    """The layers that diffusers' loader changes as the file means it, measured on the fused
    weights.
    """
    before = weights(pipeline)
    with warnings.catch_warnings(action="ignore"):
        try:
            pipeline.load_lora_weights(file.parent, weight_name=file.name)
        except ValueError:
            return set()
    parts = [
        name
        for name in ("unet", "text_encoder", "text_encoder_2")
        if getattr(pipeline, name, None) is not None
    ]
    pipeline.fuse_lora(components=parts)
    pipeline.unload_lora_weights()
    after = weights(pipeline)
    found = set()
    for key, update in adapter.layers.items():
        wanted = delta(update, before[key])
        if torch.allclose(after[key] - before[key], wanted, rtol=1e-3, atol=1e-5) and wanted.any():
            found.add(key)
    return found


def uniform(adapter: Adapter, alpha: float = 2.0) -> Adapter:
    return replace(
        adapter, layers={key: replace(u, alpha=alpha) for key, u in adapter.layers.items()}
    )  # type: ignore[type-var]


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.parametrize("target", ["kohya", "diffusers"])
@pytest.mark.parametrize("case", ["uniform", "two alphas", "dora"])
def test_diffusers_uses_what_its_rule_says(
    tmp_path: Path, family: str, target: str, case: str
) -> None:
    pipeline = tiny_pipeline(family)
    adapter = random_adapter(pipeline, family, dora=case == "dora" and target == "diffusers")
    chosen = {
        key: update for index, (key, update) in enumerate(adapter.layers.items()) if index % 3 == 0
    }
    if family == "sdxl" and target == "kohya":
        # The original block numbers belong to SDXL's size; only the middle is where it is in a
        # small model.
        chosen = {
            key: update
            for key, update in chosen.items()
            if "_blocks." not in key or ".mid_block." in key
        }
    adapter = replace(adapter, layers=chosen)
    adapter = adapter if case == "two alphas" else uniform(adapter)
    if case == "dora" and target == "kohya":
        layers = {}
        for key, update in adapter.layers.items():
            assert isinstance(update, LowRank)
            weight = weights(pipeline)[key]
            lengths = (
                weight.transpose(0, 1).flatten(1).norm(dim=1).view(1, -1, *[1] * (weight.dim() - 2))
            )
            layers[key] = replace(update, magnitude=lengths)
        adapter = replace(adapter, layers=layers)
    path = tmp_path / "x.safetensors"
    write_adapter(adapter, path, target)  # type: ignore[arg-type]
    (reading,) = (
        reading
        for reading in inspect_file(path, check=False).readers
        if reading.reader == "diffusers"
    )
    used = truly_used(pipeline, path, read_adapter(path))
    assert reading.total == len(adapter.layers)
    assert reading.used == len(used), (reading.ignored, sorted(set(adapter.layers) - used))


def test_a_file_that_works_everywhere_says_so_in_one_line(tmp_path: Path) -> None:
    tensors = plain(f"lora_unet_{BLOCK}_attn2_to_k", width=768, alpha=2.0) | plain(
        "lora_te_text_model_encoder_layers_0_mlp_fc1", alpha=2.0
    )
    found = read(tmp_path, tensors)
    assert sentences(found.values()) == ("2 of 2 layers used by ComfyUI, A1111, diffusers",)
    assert {reading.reader: reading.place.split("(")[0] for reading in found.values()} == {
        "ComfyUI": "models/loras", "A1111": "models/Lora", "diffusers": "pipe.load_lora_weights",
    }  # fmt: skip


UNET = f"lora_unet_{BLOCK}_attn2_to_k"
TE = "text_model_encoder_layers_0"
LOKR = {f"{UNET}.lokr_w1": torch.ones(2, 2), f"{UNET}.lokr_w2": torch.ones(4, 384)}
HADA = {
    f"{UNET}.hada_w{i}_{x}": torch.ones(*((8, 2) if x == "a" else (2, 768)))
    for i in "12"
    for x in "ab"
}
IA3 = {f"{UNET}.weight": torch.ones(8, 1), f"{UNET}.on_input": torch.tensor(False)}
PER_INPUT = {f"{UNET}.dora_scale": torch.ones(1, 768)}
PER_OUTPUT = {f"{UNET}.dora_scale": torch.ones(8, 1)}
PROCESSOR = "mid_block.attentions.0.transformer_blocks.0.attn2.processor"
ONES = torch.ones(8, 2)
BASE = plain(UNET, width=768, alpha=2.0)
MIDDLE = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
PEFT_NAMES = {f"{MIDDLE}.lora_A.weight": torch.ones(2, 768), f"{MIDDLE}.lora_B.weight": ONES}
RULES: dict[str, tuple[dict[str, Tensor], tuple[int, int, int], int]] = {
    # What is in the file -> layers used by ComfyUI, A1111, diffusers, of how many.
    "LoRA": (BASE, (1, 1, 1), 1),
    "LoKr": (LOKR, (1, 1, 0), 1),
    "LoHa": (HADA, (1, 1, 0), 1),
    "(IA)^3": (IA3, (0, 1, 0), 1),
    "difference": ({f"{UNET}.diff": torch.ones(8, 768)}, (1, 1, 0), 1),
    "difference of a bias alone": ({f"{UNET}.diff_b": torch.ones(8)}, (1, 0, 0), 1),
    "DoRA per input": (BASE | PER_INPUT, (1, 1, 0), 1),
    "DoRA per output": (BASE | PER_OUTPUT, (1, 0, 0), 1),
    "PEFT's names": (PEFT_NAMES, (0, 0, 1), 1),
    "2023's names": (
        {f"unet.{PROCESSOR}.to_k_lora.down.weight": torch.ones(2, 768),
        f"unet.{PROCESSOR}.to_k_lora.up.weight": ONES},
        (1, 0, 1), 1),
    "2023's names without unet": (
        {f"{PROCESSOR}.to_k_lora.down.weight": torch.ones(2, 768),
        f"{PROCESSOR}.to_k_lora.up.weight": ONES},
        (1, 0, 0), 1),
    "text encoder": (BASE | plain(f"lora_te_{TE}_mlp_fc1", alpha=2.0), (2, 2, 2), 2),
    "te1 in SD1": (BASE | plain(f"lora_te1_{TE}_mlp_fc1", alpha=2.0), (2, 1, 2), 2),
    "text encoder without text_model": (BASE | plain("lora_te_encoder_layers_0_mlp_fc1", alpha=2.0),
    (1, 1, 1), 2),
    "text q alone": (BASE | plain(f"lora_te_{TE}_self_attn_q_proj", alpha=2.0), (2, 2, 1), 2),
    "bundled word": (BASE | {"bundle_emb.sks.string_to_param.*": torch.ones(1, 768)}, (1, 2, 0), 2),
    "SDXL": (plain("lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k", width=2048,
    alpha=2.0)
             | plain(f"lora_te1_{TE}_mlp_fc1", alpha=2.0) | plain(f"lora_te2_{TE}_mlp_fc1",
             alpha=2.0), (3, 3, 3), 3),
    "lora_te in SDXL": (plain("lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k",
    width=2048, alpha=2.0)
                        | plain(f"lora_te_{TE}_mlp_fc1", alpha=2.0), (2, 1, 2), 2),
    "original names in SD1": (plain("lora_unet_input_blocks_1_1_transformer_blocks_0_attn2_to_k",
    width=768),
                              (1, 1, 0), 1),
    "Tucker": (plain("lora_unet_down_blocks_0_resnets_0_conv1") | {
        "lora_unet_down_blocks_0_resnets_0_conv1.lora_mid.weight": torch.ones(2, 2, 3, 3)},
        (1, 1, 0), 1),
    "unknown layer": (BASE | plain("lora_unet_sideways_blocks_0_to_k", alpha=2.0), (1, 1, 1), 2),
}  # fmt: skip


@pytest.mark.parametrize("case", RULES)
def test_each_reader_uses_what_it_is_documented_to_use(tmp_path: Path, case: str) -> None:
    tensors, used, total = RULES[case]
    found = read(tmp_path, tensors)
    counts = tuple(
        (found[name].used, found[name].total) for name in ("ComfyUI", "A1111", "diffusers")
    )
    assert counts == tuple((number, total) for number in used), [
        reading.ignored for reading in found.values()
    ]
    for reading in found.values():
        assert bool(reading.ignored) == (reading.used < reading.total)


def test_what_is_ignored_is_named_with_its_reason(tmp_path: Path) -> None:
    lines = sentences(read(tmp_path, LOKR).values())
    assert lines == (
        "1 of 1 layer used by ComfyUI, A1111",
        (
            f"0 of 1 layer used by diffusers: the file is not loaded: {UNET}.lokr_w1 is not a "
            "plain LoRA's tensor"
        ),
    )
    lines = sentences(read(tmp_path, BASE | plain("lora_te_encoder_layers_0_mlp_fc1")).values())
    assert (
        "1 of 2 layers used by A1111: lora_te_encoder_layers_0_mlp_fc1: a text encoder's layer is "
        "only found"
    ) in lines[1]


@pytest.mark.parametrize(
    ("name", "tensors", "used"),
    [
        ("sks.safetensors", {"emb_params": torch.ones(2, 768)}, (1, 1, 1)),
        (
            "sks.safetensors",
            {"clip_l": torch.ones(2, 768), "clip_g": torch.ones(2, 1280)},
            (1, 1, 1),
        ),
        (
            "sks.safetensors",
            {"text_encoders_0": torch.ones(2, 768), "text_encoders_1": torch.ones(2, 1280)},
            (0, 0, 1),
        ),
        ("sks.safetensors", {"<a>": torch.ones(1, 768), "<b>": torch.ones(1, 768)}, (1, 0, 0)),
    ],
    ids=["web UI", "SDXL", "cog's SDXL", "several words"],
)
def test_words(
    tmp_path: Path, name: str, tensors: dict[str, Tensor], used: tuple[int, ...]
) -> None:
    found = read(tmp_path, tensors, name)
    assert tuple(found[who].used for who in ("ComfyUI", "A1111", "diffusers")) == used
    if used[0]:
        assert (
            found["ComfyUI"].place == "models/embeddings" and found["A1111"].place == "embeddings"
        )


def test_a_folder_of_pefts_works_with_peft_alone(tmp_path: Path) -> None:
    key = "denoiser.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    write_adapter(
        Adapter({key: LowRank(torch.ones(2, 768), torch.ones(8, 2), 2.0)}), tmp_path / "p", "peft"
    )
    readers = inspect_file(tmp_path / "p").readers
    assert [(reading.used, reading.total) for reading in readers] == [(0, 1)] * 3
    assert (
        "PeftModel.from_pretrained" in readers[2].ignored[0]
        and "--to kohya" in readers[0].ignored[0]
    )


def test_a_checkpoint_says_what_it_predicts(tmp_path: Path) -> None:
    name = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    tensors = {name: torch.ones(8, 768), "v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    save_file(tensors, tmp_path / "m.safetensors")
    report = inspect_file(tmp_path / "m.safetensors")
    assert report.metadata["prediction_type"] == "v_prediction"
    assert report.metadata["zero_terminal_snr"] == "True"
    assert dict(verdict(report))["predicts"] == ["v (velocity), not noise, zero terminal SNR"]
    save_file({name: tensors[name]}, tmp_path / "e.safetensors")
    assert "predicts" not in dict(verdict(inspect_file(tmp_path / "e.safetensors")))


def test_lycoris_itself_computes_what_our_file_means(tmp_path: Path) -> None:
    """LyCORIS' loader finds the layers by kohya's names, and merges what `delta` says."""
    pytest.importorskip("lycoris")
    from lycoris.kohya import create_network_from_weights

    torch.manual_seed(0)
    key = "denoiser.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    update = LowRank(torch.randn(2, 768), torch.randn(8, 2), 1.0)
    write_adapter(Adapter({key: update}, family="sd1"), tmp_path / "x.safetensors", "kohya")

    class CrossAttention(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.to_k = torch.nn.Linear(768, 8, bias=False)

    unet = torch.nn.Module()
    path: torch.nn.Module = unet
    *parents, _ = key.removeprefix("denoiser.").split(".")
    for name in parents[:-1]:
        path.add_module(name, torch.nn.Module())
        path = path.get_submodule(name)
    path.add_module("attn2", CrossAttention())
    layer = unet.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn2.to_k")
    before = layer.weight.detach().clone()  # type: ignore[union-attr]
    text = torch.nn.Module()
    network, tensors = create_network_from_weights(
        1.0, str(tmp_path / "x.safetensors"), None, text, unet
    )
    network.merge_to(text, unet, tensors, torch.float32, "cpu")
    torch.testing.assert_close(
        layer.weight.detach() - before, delta(update, before), rtol=1e-4, atol=1e-5
    )

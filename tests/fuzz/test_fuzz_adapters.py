"""Every reader of adapter files, on made-up files: an answer or one line, never a traceback, and
soon.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from bounds import CHARACTERS, bounded, fuzzed
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from konomi.formats.adapter_file import inspect_file, read_adapter
from konomi.formats.layers import KNOWN_PARTS

PREFIXES = (
    "lora_unet_",
    "lora_te_",
    "lora_te1_",
    "lora_te2_",
    "lora_te3_",
    "lycoris_",
    "oft_unet_",
    "diffusion_model.",
    "unet.",
    "text_encoder.",
    "text_encoders.clip_l.transformer.",
    "base_model.model.",
    "unet.base_model.model.",
    "bundle_emb.",
    "",
)
LAYERS = (
    "mid_block_attentions_0_proj_in",
    "mid_block.attentions.0.proj_in",
    "input_blocks.1.1.proj_in",
    "input_blocks_1_1_proj_in",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
    "text_model.encoder.layers.0.mlp.fc1",
    "x",
    "",
    "text_model_encoder_layers_0_mlp_fc1",
    "double_blocks.0.img_attn.qkv",
    "\x1b[31m",
    "a.b.c",
    "attn1.processor",
)
PARTS = (
    *sorted(KNOWN_PARTS),
    "lora_A.weight",
    "lora_B.weight",
    "lora_B.bias",
    "lora_A.default.weight",
    "lora.down.weight",
    "lora_magnitude_vector",
    "to_q_lora.down.weight",
    "to_q_lora.up.weight",
    "oft_blocks",
    "a1.weight",
    "emb_params",
    "clip_g",
)
WHOLE = (
    "emb_params",
    "clip_l",
    "clip_g",
    "clip_l_out",
    "text_encoders_0",
    "text_encoders_1",
    "<cat>",
    "sks",
    "unet:0:up",
    "unet:0:down",
    "text_encoder:0:up",
    "768.k.linear.0.weight",
    "768.v.linear.0.bias",
    "weight",
    "t5",
    "__x",
    "*",
    "mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_k_custom_diffusion.weight",
    "text_model.encoder.layers.0.w",
)
names = st.one_of(
    st.sampled_from(WHOLE),
    st.builds(
        "{}{}.{}".format, st.sampled_from(PREFIXES), st.sampled_from(LAYERS), st.sampled_from(PARTS)
    ),
    st.text(CHARACTERS, max_size=12).filter(
        lambda name: name != "__metadata__" and not any("\ud800" <= c <= "\udfff" for c in name)
    ),
)
shapes = st.one_of(
    st.just(()),
    st.lists(st.sampled_from((0, 1, 2, 3, 768)), max_size=2),
    st.lists(st.integers(0, 3), max_size=5),
)
dtypes = st.sampled_from(
    (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.uint8)
)
tensors = st.builds(lambda shape, dtype: torch.ones(tuple(shape)).to(dtype), shapes, dtypes)
tables = st.dictionaries(names, tensors, max_size=6)
plain = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**400), 10**400),
    st.floats(),
    st.text(CHARACTERS, max_size=8),
    st.just(10**400),
    st.sampled_from(("pissa", "olora", "none", "all", "LORA", "LOHA", "auto")),
)
values = st.recursive(
    plain,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.text(CHARACTERS, max_size=5), inner, max_size=3),
    ),
    max_leaves=6,
)
patterns = st.dictionaries(st.text("ab.*+?()[]{}|^$\\d1,", max_size=20), plain, max_size=3)
FIELDS = (
    "r",
    "lora_alpha",
    "use_rslora",
    "lora_bias",
    "bias",
    "modules_to_save",
    "init_lora_weights",
    "peft_type",
    "layer_replication",
    "rank_pattern",
    "use_dora",
    "fan_in_fan_out",
    "target_modules",
    "odd",
)
configs = st.builds(
    lambda table, found: table | found,
    st.dictionaries(st.sampled_from(FIELDS), values, max_size=5),
    st.one_of(st.just({}), patterns.map(lambda found: {"alpha_pattern": found})),
)
ENTRIES = (
    "format",
    "lora_adapter_metadata",
    "ss_base_model_version",
    "modelspec.architecture",
    "hypernetwork",
    "konomi.word",
    "konomi.companions",
    "konomi_words",
    "<cat>",
    "unet",
    "ss_v2",
    "sshs_model_hash",
    "lora_alpha",
)
DEEP = "[" * 100_000
headers = st.dictionaries(
    st.sampled_from(ENTRIES),
    st.one_of(
        st.sampled_from(("", DEEP, "[]", "{}", "<embed>", "flux1", "1e999", "NaN", "9" * 5000)),
        st.text(CHARACTERS, max_size=10),
        configs.map(
            lambda table: json.dumps({f"unet.{name}": value for name, value in table.items()})
        ),
    ),
    max_size=3,
)


def look(path: Path) -> None:
    """What every verb does with a file first."""
    with bounded():
        report = inspect_file(path)
        json.dumps(report.as_json())
    with bounded():
        read_adapter(path)


@fuzzed
@given(tables, headers)
def test_safetensors(table: dict[str, Tensor], header: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.safetensors")
        save_file({name: tensor.contiguous() for name, tensor in table.items()}, path, header)
        look(path)


@fuzzed
@given(tables, configs, st.sampled_from((None, DEEP, "\ud800", "{", "[]")))
def test_peft_folders(table: dict[str, Tensor], config: dict[str, Any], text: str | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        save_file(
            {f"base_model.model.{name}": tensor for name, tensor in table.items()},
            Path(folder, "adapter_model.safetensors"),
        )
        raw = json.dumps(config) if text is None else text
        Path(folder, "adapter_config.json").write_bytes(raw.encode("utf-8", "surrogatepass"))
        look(Path(folder))
        look(Path(folder, "adapter_model.safetensors"))


leaves = st.one_of(
    plain.filter(lambda item: not isinstance(item, int) or abs(item) < 2**62), tensors
)
KEYS = (
    "string_to_param",
    "string_to_token",
    "*",
    "name",
    "step",
    "unet",
    "modifier_token",
    "text_encoder",
    "u",
    "v",
    "state_dict",
    "layer_structure",
    "activation_func",
    "linear.0.weight",
    "linear1.bias",
    "metadata",
)
keys = st.one_of(names, st.sampled_from((320, 768, -1)), st.sampled_from(KEYS))
pickled = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.tuples(inner, inner),
        st.dictionaries(keys, inner, max_size=4),
    ),
    max_leaves=8,
)


@fuzzed
@given(pickled)
def test_pickles(value: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.pt")
        torch.save(value, path)
        look(path)

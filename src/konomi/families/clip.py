"""CLIP's text encoders (transformers' `CLIPTextModel`, OpenCLIP): what their families share."""

from __future__ import annotations

import re

from konomi.families.family import Selectors, TextEncoderSpec

MODEL_TYPE = "clip_text_model"
TOKENIZER_CLASS = "CLIPTokenizer"
TOKEN_EMBEDDING = "text_model.embeddings.token_embedding"
MAX_LENGTH = 77
END = "<|endoftext|>"

SELECTORS: Selectors = {
    "text": re.compile(r".*\.(self_attn\.(q_proj|k_proj|v_proj|out_proj)|mlp\.(fc1|fc2))"),
}
PATH_WORDS = frozenset((
    "text_model", "encoder", "layers", "self_attn", "q_proj", "k_proj", "v_proj", "out_proj", "mlp",
    "fc1", "fc2",
    "layer_norm1", "layer_norm2", "final_layer_norm", "embeddings", "token_embedding",
    "position_embedding",
    "text_projection",
))  # fmt: skip
INNER_LAYERS = re.compile(r".*(_proj|\.fc1)")
NUMBERED_LAYERS = re.compile(r"text_model\.encoder\.layers\.(\d+)\.")
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "projection_dim": 32,
}
"""Settings of a small text encoder of random weights."""


def clip_vit_l(
    *,
    file_prefix: str,
    kohya_prefix: str,
    embedding_name: str,
    layer: int = 1,
    final_norm: bool = True,
) -> TextEncoderSpec:
    """OpenAI's CLIP ViT-L/14, in transformers' layout in single files too."""
    return TextEncoderSpec(
        part="text_encoder",
        class_name="CLIPTextModel",
        model_type=MODEL_TYPE,
        tokenizer="tokenizer",
        tokenizer_class=TOKENIZER_CLASS,
        max_length=MAX_LENGTH,
        pad_token=END,
        width=768,
        selectors=SELECTORS,
        path_words=PATH_WORDS,
        inner_layers=INNER_LAYERS,
        numbered_layers=NUMBERED_LAYERS,
        token_embedding=TOKEN_EMBEDDING,
        file_prefix=file_prefix,
        layer=layer,
        final_norm=final_norm,
        kohya_prefix=kohya_prefix,
        comfyui_name="clip_l",
        clip="openai/clip-vit-large-patch14",
        embedding_name=embedding_name,
    )

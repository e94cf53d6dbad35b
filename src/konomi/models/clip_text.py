"""CLIP's text encoder in plain PyTorch (Radford et al. 2021, section 2.4), as Stable Diffusion
reads it.

Names of parameters are the classic ones of transformers, with `text_model.`, and every operation
on numbers is transformers' own, so that weights, adapters and results are the same. It exists
because importing transformers' models takes two seconds, and because their names change between
its versions. What runs the layers, and reads the one a recipe asks for, is
`konomi.models.text_encoding`.

Shapes: N texts, L positions, D width, P width of the projection.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class TextEncoder(nn.Module):
    """A transformer over token embeddings; one that gives the pooled vector has a projection of it.

    Weights come from a file, or from `initialise`. Raises ValueError for a config of another kind
    of encoder.
    """

    def __init__(self, config: Mapping[str, Any], *, projection: bool) -> None:
        super().__init__()
        width, layers = (
            int(config.get("hidden_size", 512)),
            int(config.get("num_hidden_layers", 12)),
        )
        self.gradient_checkpointing = False
        self.text_model = TextTransformer(config, width, layers)
        if projection:
            self.text_projection = nn.Linear(
                width, int(config.get("projection_dim", 512)), bias=False
            )

    def initialise(self) -> None:
        """Random weights of CLIP's sizes, biases of zero."""
        width, layers = (
            self.text_model.final_layer_norm.normalized_shape[0],
            len(self.text_model.encoder.layers),
        )
        inner = width**-0.5 * (2 * layers) ** -0.5
        stds = {
            "embedding": 0.02, "q_proj": inner, "k_proj": inner, "v_proj": inner,
            "out_proj": width**-0.5,
            "fc1": (2 * width) ** -0.5, "fc2": inner, "text_projection": width**-0.5,
        }  # fmt: skip
        for name, weight in self.named_parameters():
            std = next((std for end, std in stds.items() if name.endswith(f"{end}.weight")), None)
            if std is not None:
                nn.init.normal_(weight, std=std)
            elif name.endswith("bias"):
                nn.init.zeros_(weight)

    def enable_gradient_checkpointing(self) -> None:
        """In training mode keep only the borders of layers; the rest is computed again."""
        self.gradient_checkpointing = True

    def disable_gradient_checkpointing(self) -> None:
        self.gradient_checkpointing = False

    def run_layer(self, number: int, states_NLD: Tensor) -> Tensor:
        """One layer, the first being 0."""
        layer = self.text_model.encoder.layers[number]
        if self.gradient_checkpointing and self.training:
            output: Tensor = checkpoint(layer, states_NLD, use_reentrant=False)
        else:
            output = layer(states_NLD)
        return output


class TextTransformer(nn.Module):
    """What is inside `text_model`."""

    def __init__(self, config: Mapping[str, Any], width: int, layers: int) -> None:
        super().__init__()
        self.embeddings = Embeddings(
            int(config.get("vocab_size", 49408)),
            int(config.get("max_position_embeddings", 77)),
            width,
        )
        self.encoder = Layers(config, width, layers)
        self.final_layer_norm = nn.LayerNorm(width, eps=float(config.get("layer_norm_eps", 1e-5)))


class Embeddings(nn.Module):
    """Tables of tokens and positions."""

    def __init__(self, tokens: int, positions: int, width: int) -> None:
        super().__init__()
        # Without its own initialisation, which on the meta device imports PyTorch's compiler: a
        # second.
        self.token_embedding = nn.Embedding(tokens, width, _weight=torch.zeros(tokens, width))
        self.position_embedding = nn.Embedding(
            positions, width, _weight=torch.zeros(positions, width)
        )


class Layers(nn.Module):
    """The list, named as everywhere."""

    def __init__(self, config: Mapping[str, Any], width: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(config, width) for _ in range(layers)])


class Layer(nn.Module):
    """Causal self-attention, then two linear layers, each beside the way around it."""

    def __init__(self, config: Mapping[str, Any], width: int) -> None:
        super().__init__()
        eps = float(config.get("layer_norm_eps", 1e-5))
        self.self_attn = CausalAttention(width, int(config.get("num_attention_heads", 8)))
        self.layer_norm1 = nn.LayerNorm(width, eps=eps)
        self.mlp = Perceptron(config, width)
        self.layer_norm2 = nn.LayerNorm(width, eps=eps)

    def forward(self, states_NLD: Tensor) -> Tensor:
        states_NLD = states_NLD + self.self_attn(self.layer_norm1(states_NLD))
        output: Tensor = states_NLD + self.mlp(self.layer_norm2(states_NLD))
        return output


class CausalAttention(nn.Module):
    """Every position sees itself and those before."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"{heads} heads do not divide a width of {width}")
        self.heads = heads
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, states_NLD: Tensor) -> Tensor:
        def split(states: Tensor) -> Tensor:
            return states.view(*states.shape[:-1], self.heads, -1).transpose(1, 2)

        query, key, value = (
            split(projection(states_NLD)) for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        output: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return output


class Perceptron(nn.Module):
    """Widen, bend, narrow."""

    def __init__(self, config: Mapping[str, Any], width: int) -> None:
        super().__init__()
        self.bend = str(config.get("hidden_act", "quick_gelu"))
        if self.bend not in ("quick_gelu", "gelu"):
            raise ValueError(f"hidden_act = {self.bend}, which no CLIP has")
        inner = int(config.get("intermediate_size", 2048))
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, states_NLD: Tensor) -> Tensor:
        wide = self.fc1(states_NLD)
        bent = wide * torch.sigmoid(1.702 * wide) if self.bend == "quick_gelu" else F.gelu(wide)
        output: Tensor = self.fc2(bent)
        return output

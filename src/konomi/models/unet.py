"""The UNet of Stable Diffusion in plain PyTorch (Ronneberger et al. 2015; Rombach et al. 2022).

Names of parameters, and every operation on numbers, are those of diffusers' `UNet2DConditionModel`
for the configs that `is_plain` accepts, so that weights, adapters and results are the same. It
exists because it starts in a fraction of the time (diffusers imports quantisers, hooks and other
packages on the way to its UNet) and has fewer Python calls a step.

Shapes: B batch, C channels, H W grid, T text positions, D text width.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from konomi.models.unet_layers import (
    Convolution,
    Embedding,
    Level,
    Resnet,
    Runner,
    Transformer,
    timestep_embedding,
)

_PLAIN: Mapping[str, tuple[Any, ...]] = {
    "act_fn": ("silu", "swish"), "addition_embed_type": (None, "text_time"),
    "attention_type": ("default",),
    "center_input_sample": (False,), "class_embed_type": (None,),
    "class_embeddings_concat": (False,),
    "conv_in_kernel": (3,), "conv_out_kernel": (3,), "cross_attention_norm": (None,),
    "downsample_padding": (1,),
    "dropout": (0, 0.0), "dual_cross_attention": (False,), "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "flip_sin_to_cos": (True,), "freq_shift": (0,), "mid_block_only_cross_attention": (None, False),
    "mid_block_scale_factor": (1,), "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "num_attention_heads": (None,),
    "num_class_embeds": (None,), "only_cross_attention": (False,),
    "resnet_out_scale_factor": (1.0,),
    "resnet_skip_time_act": (False,), "resnet_time_scale_shift": ("default",),
    "reverse_transformer_layers_per_block": (None,), "time_cond_proj_dim": (None,),
    "time_embedding_act_fn": (None,),
    "time_embedding_dim": (None,), "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
}  # fmt: skip


def is_plain(config: Mapping[str, Any]) -> bool:
    """Whether this file covers a config; otherwise diffusers' own class is needed."""
    if any(config.get(name, allowed[0]) not in allowed for name, allowed in _PLAIN.items()):
        return False
    down = ["CrossAttnDownBlock2D", "DownBlock2D"]
    mirrored = [kind.replace("Down", "Up") for kind in reversed(config["down_block_types"])]
    depths = config.get("transformer_layers_per_block", 1)
    flat = isinstance(depths, int) or all(isinstance(depth, int) for depth in depths)
    return (
        flat
        and all(kind in down for kind in config["down_block_types"])
        and list(config["up_block_types"]) == mirrored
        and isinstance(config.get("cross_attention_dim"), int)
        and isinstance(config.get("norm_num_groups", 32), int)
    )


class UNetOutput(NamedTuple):
    """What diffusers calls `UNet2DConditionOutput`."""

    sample: Tensor


class UNet(nn.Module):
    """Noisy latents, time and text in; the prediction out."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        plan = _Plan(config)
        widths, last = plan.widths, len(plan.widths) - 1
        self.gradient_checkpointing = False
        self.size_width = int(config.get("addition_time_embed_dim") or 0)
        self.conv_in = Convolution(config["in_channels"], widths[0], 3, padding=1)
        self.time_embedding = Embedding(widths[0], plan.time)
        if config.get("addition_embed_type") == "text_time":
            self.add_embedding = Embedding(
                config["projection_class_embeddings_input_dim"], plan.time
            )
        down, skips = [], [widths[0]]
        for level, width in enumerate(widths):
            channels = [widths[max(level - 1, 0)], *[width] * plan.counts[level]]
            resnets = [plan.resnet(channels[i], width) for i in range(plan.counts[level])]
            sampler = "downsamplers" if level < last else ""
            down.append(
                Level(resnets, plan.transformers(level, plan.counts[level]), sampler, width)
            )
            skips += [width] * (plan.counts[level] + (level < last))
        self.down_blocks = nn.ModuleList(down)
        up, channels_in = [], widths[-1]
        for level in range(last, -1, -1):
            resnets = []
            for _ in range(plan.counts[level] + 1):
                resnets.append(plan.resnet(channels_in + skips.pop(), widths[level]))
                channels_in = widths[level]
            transformers = plan.transformers(level, plan.counts[level] + 1)
            up.append(
                Level(resnets, transformers, "upsamplers" if level > 0 else "", widths[level])
            )
        self.up_blocks = nn.ModuleList(up)
        middle = [plan.resnet(widths[-1], widths[-1]) for _ in range(2)]
        self.mid_block = Level(middle, [plan.transformer(last)], "", widths[-1])
        self.conv_norm_out = nn.GroupNorm(plan.groups, widths[0], eps=plan.eps)
        self.conv_out = Convolution(widths[0], config["out_channels"], 3, padding=1)

    def enable_gradient_checkpointing(self) -> None:
        """In training mode keep only the borders of resnets and transformer blocks; the rest is
        computed again.
        """
        self.gradient_checkpointing = True

    def disable_gradient_checkpointing(self) -> None:
        self.gradient_checkpointing = False

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        added_cond_kwargs: Mapping[str, Tensor] | None = None,
        return_dict: bool = True,
    ) -> UNetOutput:
        """[B, C, H, W], [B], [B, T, D], perhaps `text_embeds` and `time_ids` -> [B, C, H, W].

        `return_dict` is there for callers used to diffusers: the answer is a tuple with a name
        either way.
        """
        run: Runner = _checkpointed if self.gradient_checkpointing and self.training else _call
        time = self._time(sample, timestep, added_cond_kwargs)
        hidden = self.conv_in(sample)
        skips = [hidden]
        for block in self.down_blocks:
            hidden = _down(block, hidden, time, encoder_hidden_states, run, skips)
        middle: Any = self.mid_block
        hidden = run(middle.resnets[0], hidden, time)
        hidden = middle.attentions[0](hidden, encoder_hidden_states, run)
        hidden = run(middle.resnets[1], hidden, time)
        for block in self.up_blocks:
            hidden = _up(block, hidden, time, encoder_hidden_states, run, skips)
        return UNetOutput(self.conv_out(F.silu(self.conv_norm_out(hidden))))

    def _time(self, sample: Tensor, timestep: Tensor, added: Mapping[str, Tensor] | None) -> Tensor:
        times = timestep.reshape(-1).expand(sample.shape[0])
        embedded: Tensor = self.time_embedding(
            timestep_embedding(times, self.conv_in.out_channels).to(sample.dtype)
        )
        if hasattr(self, "add_embedding"):
            assert added is not None, "this UNet reads pooled text and sizes"
            text, sizes = added["text_embeds"], added["time_ids"]
            numbers = timestep_embedding(sizes.flatten(), self.size_width).reshape(
                text.shape[0], -1
            )
            embedded = embedded + self.add_embedding(
                torch.cat([text, numbers], dim=-1).to(embedded.dtype)
            )
        return embedded


def _down(
    block: Any, hidden: Tensor, time: Tensor, text: Tensor, run: Runner, skips: list[Tensor]
) -> Tensor:
    """One level on the way down; every intermediate result is kept for the way up."""
    transformers = getattr(block, "attentions", None)
    for index, resnet in enumerate(block.resnets):
        hidden = run(resnet, hidden, time)
        if transformers is not None:
            hidden = transformers[index](hidden, text, run)
        skips.append(hidden)
    if hasattr(block, "downsamplers"):
        hidden = block.downsamplers[0](hidden)
        skips.append(hidden)
    return hidden


def _up(
    block: Any, hidden: Tensor, time: Tensor, text: Tensor, run: Runner, skips: list[Tensor]
) -> Tensor:
    """One level on the way up; takes back what was kept, the last first."""
    transformers = getattr(block, "attentions", None)
    for index, resnet in enumerate(block.resnets):
        hidden = run(resnet, torch.cat([hidden, skips.pop()], dim=1), time)
        if transformers is not None:
            hidden = transformers[index](hidden, text, run)
    if hasattr(block, "upsamplers"):
        height, width = skips[-1].shape[2:]
        doubled = (height, width) == (2 * hidden.shape[2], 2 * hidden.shape[3])
        hidden = block.upsamplers[0](hidden, None if doubled else (height, width))
    return hidden


def _call(module: nn.Module, *inputs: Tensor) -> Tensor:
    output: Tensor = module(*inputs)
    return output


def _checkpointed(module: nn.Module, *inputs: Tensor) -> Tensor:
    output: Tensor = checkpoint(module, *inputs, use_reentrant=False)
    return output


class _Plan:
    """The numbers of a config, one per level, and the parts they lead to."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.widths: list[int] = list(config["block_out_channels"])
        levels = len(self.widths)

        def per_level(value: Any) -> list[int]:
            return [value] * levels if isinstance(value, int) else list(value)

        self.counts = per_level(config.get("layers_per_block", 2))
        # diffusers' name for the number of heads, a mistake that every published config carries.
        self.heads = per_level(config.get("attention_head_dim", 8))
        self.depths = per_level(config.get("transformer_layers_per_block", 1))
        self.attention = ["CrossAttn" in kind for kind in config["down_block_types"]]
        self.groups = int(config.get("norm_num_groups", 32))
        self.eps = float(config.get("norm_eps", 1e-5))
        self.linear = bool(config.get("use_linear_projection", False))
        self.context = int(config["cross_attention_dim"])
        self.time = 4 * self.widths[0]
        if any(
            len(values) != levels
            for values in (self.counts, self.heads, self.depths, self.attention)
        ):
            raise ValueError(f"lists of other lengths than the {levels} levels")

    def resnet(self, in_channels: int, channels: int) -> Resnet:
        return Resnet(in_channels, channels, time=self.time, groups=self.groups, eps=self.eps)

    def transformer(self, level: int) -> Transformer:
        return Transformer(
            self.widths[level],
            self.context,
            heads=self.heads[level],
            depth=self.depths[level],
            groups=self.groups,
            linear=self.linear,
        )

    def transformers(self, level: int, count: int) -> list[Transformer]:
        return [self.transformer(level) for _ in range(count)] if self.attention[level] else []

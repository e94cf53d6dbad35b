"""The denoiser of `tiny`: Stable Diffusion 1's UNet, three levels, text read at 16x16, 8x8 and 4x4
latents.
"""

import torch
from diffusers import UNet2DConditionModel
from tools.tiny.clip import WIDTH_TEXT
from torch import nn

CHANNELS = (64, 128, 160)
HEADS = (2, 4, 5)
"""32 channels each. With the eight of SD1 the softmax over 16x16 positions would take a third of a
step."""


def new_unet(seed: int = 17) -> UNet2DConditionModel:
    """Random weights; the last convolution of every branch starts at zero, so that each branch
    begins as identity.
    """
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, layers_per_block=1,
        block_out_channels=CHANNELS,
        cross_attention_dim=WIDTH_TEXT, attention_head_dim=HEADS, norm_num_groups=16,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    for name, module in unet.named_modules():
        if name.endswith((".conv2", ".proj_out")) or name == "conv_out":
            assert isinstance(module, nn.Conv2d)
            nn.init.zeros_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return unet

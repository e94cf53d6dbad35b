"""Stage 2: the autoencoder (AutoencoderKL, 8x reduction, 4 channels), trained on crops and whole
scenes.

Loss: L1 + squared error + difference of image gradients + a small KL (Rombach et al. 2022, without
perceptual and adversarial terms, which need networks we do not have). B batch, H W pixels.
"""

import numpy as np
import torch
from diffusers import AutoencoderKL
from tools.tiny.norm import use_fast_group_norm
from tools.tiny.scenes import Sprites, describe, render
from tools.tiny.stage import Progress, Running, Work, seeds_of, train
from torch import Tensor
from torch.nn import functional as F

SCALING = 0.18215
FIRST_SEED = 100_000_000
CROP = 64
BATCH_CROP, BATCH_WHOLE = 16, 4
PEAK = 1.5e-3
KL_WEIGHT = 1e-4


def new_vae(seed: int = 11) -> AutoencoderKL:
    """Random weights. Four normalisation groups: with SD1's 32, a group here would be one channel,
    whose mean over the picture, and with it the colour of plain backgrounds, normalisation would
    remove.
    """
    torch.manual_seed(seed)
    return AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, sample_size=128, layers_per_block=1,
        norm_num_groups=4,
        block_out_channels=(32, 32, 64, 96), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, scaling_factor=SCALING,
    )  # fmt: skip


def to_tensor(images: list[np.ndarray], device: str) -> Tensor:
    """uint8 pictures -> [B, 3, H, W] from -1 to 1."""
    stacked = torch.from_numpy(np.stack(images)).to(device)
    return stacked.permute(0, 3, 1, 2).float() / 127.5 - 1


def crops(sprites: Sprites, seeds: range) -> list[np.ndarray]:
    """One CROP x CROP window a scene, around a drawing: plain background teaches nothing."""
    out = []
    for seed in seeds:
        scene = describe(sprites, seed)
        picture = render(sprites, scene)
        rng = np.random.default_rng((seed, 0xC0))
        item = scene.items[int(rng.integers(len(scene.items)))]
        side = picture.shape[0]
        corner = [
            int(
                np.clip((at + rng.uniform(-0.5, 0.5) * item.size) * side - CROP / 2, 0, side - CROP)
            )
            for at in item.centre
        ]
        out.append(picture[corner[1] : corner[1] + CROP, corner[0] : corner[0] + CROP])
    return out


def pictures(sprites: Sprites, step: int, seeds: range) -> list[np.ndarray]:
    """Three steps on crops, one on whole scenes, and so on."""
    if step % 4 == 3:
        return [render(sprites, describe(sprites, seed)) for seed in seeds[:BATCH_WHOLE]]
    return crops(sprites, seeds)


def vae_loss(vae: AutoencoderKL, pixels: Tensor, noise: torch.Generator) -> tuple[Tensor, Tensor]:
    """(loss, mean squared error)."""
    moments = vae.quant_conv(vae.encoder(pixels)).float()
    mean, log_variance = moments.chunk(2, dim=1)
    log_variance = log_variance.clamp(-30, 20)
    draw = torch.randn(mean.shape, generator=noise, device=mean.device)
    latents = mean + torch.exp(0.5 * log_variance) * draw
    restored = vae.decoder(vae.post_quant_conv(latents)).float()
    error = restored - pixels
    squared = error.square().mean()
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    return restoration_loss(error) + KL_WEIGHT * kl, squared


def restoration_loss(error: Tensor) -> Tensor:
    """From pixel differences: squares, absolute values, edges, and the mean colour of 8x8
    blocks.
    """
    edges = (error[..., 1:] - error[..., :-1]).abs().mean() + (
        error[..., 1:, :] - error[..., :-1, :]
    ).abs().mean()
    blocks = F.avg_pool2d(error, 8).abs().mean()
    return 2 * error.square().mean() + 0.5 * error.abs().mean() + 0.25 * edges + 0.5 * blocks


def train_vae(work: Work, sprites: Sprites, *, steps: int) -> AutoencoderKL:
    vae = new_vae().to(work.device, memory_format=torch.channels_last)
    if work.device == "cpu":
        use_fast_group_norm(vae)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=PEAK, betas=(0.9, 0.98), weight_decay=1e-3)
    running = Running()

    def loss_at(step: int) -> tuple[Tensor, str]:
        noise = torch.Generator(work.device).manual_seed(step)
        with work.autocast():
            loss, squared = vae_loss(vae, pixels_of(work, sprites, step, FIRST_SEED), noise)
        return loss, f"loss {loss.item():.4f} psnr {decibels(running.follow(squared.item())):.2f}"

    train(
        Progress(work.folder / "vae", vae, optimizer, decay=0.998),
        loss_at,
        steps=steps,
        peak=PEAK,
        warmup=100,
    )
    return vae


def pixels_of(work: Work, sprites: Sprites, step: int, first_seed: int) -> Tensor:
    """A step's pictures [B, 3, H, W]."""
    drawn = pictures(sprites, step, seeds_of(step, BATCH_CROP, first_seed))
    return to_tensor(drawn, work.device).contiguous(memory_format=torch.channels_last)


def decibels(squared_error: float) -> float:
    """Peak signal-to-noise ratio of pixels from -1 to 1."""
    return float(10 * np.log10(4 / squared_error))


def train_decoder(work: Work, vae: AutoencoderKL, sprites: Sprites, *, steps: int) -> AutoencoderKL:
    """Go on with the decoder alone, the latents left as they are: the denoiser can train on them
    at the same time.
    """
    decoder = torch.nn.ModuleDict({"decoder": vae.decoder, "post": vae.post_quant_conv}).to(
        work.device
    )
    if work.device == "cpu":
        use_fast_group_norm(decoder)
    optimizer = torch.optim.AdamW(
        decoder.parameters(), lr=PEAK, betas=(0.9, 0.98), weight_decay=1e-3
    )
    running = Running()

    def loss_at(step: int) -> tuple[Tensor, str]:
        pixels = pixels_of(work, sprites, step, FIRST_SEED + 50_000_000)
        with work.autocast():
            with torch.no_grad():
                latents = vae.quant_conv(vae.encoder(pixels)).float().chunk(2, dim=1)[0]
            # Latents that a denoiser draws are never exact; the decoder should not mind (unit
            # variance after SCALING).
            latents = latents + 0.03 / SCALING * torch.randn(
                latents.shape,
                generator=torch.Generator(work.device).manual_seed(step),
                device=work.device,
            )
            error = vae.decoder(vae.post_quant_conv(latents)).float() - pixels
        return restoration_loss(
            error
        ), f"psnr {decibels(running.follow(error.square().mean().item())):.2f}"

    progress = Progress(work.folder / "decoder", decoder, optimizer, decay=0.998)
    train(progress, loss_at, steps=steps, peak=0.5 * PEAK, warmup=50)
    return vae


@torch.no_grad()
def psnr(vae: AutoencoderKL, images: list[np.ndarray], device: str = "cpu") -> float:
    """Mean over pictures of the peak signal-to-noise ratio in dB, latents at their mean, pixels
    clamped and 8-bit.
    """
    values = []
    for image in images:
        pixels = to_tensor([image], device)
        restored = vae.decode(vae.encode(pixels).latent_dist.mean).sample.clamp(-1, 1)
        restored = ((restored + 1) * 127.5).round() / 127.5 - 1
        values.append(10 * torch.log10(4 / F.mse_loss(restored, pixels)).item())
    return float(np.mean(values))


@torch.no_grad()
def fold_scale(vae: AutoencoderKL, images: list[np.ndarray], device: str = "cpu") -> None:
    """Give each latent channel zero mean and, times the factor 0.18215 that every SD1 tool knows,
    unit variance.

    The affine map goes into the 1x1 convolutions around the latents, so pictures are restored
    exactly as before.
    """
    latents = torch.cat(
        [vae.encode(to_tensor([image], device)).latent_dist.mean for image in images]
    )
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    gain = 1 / (deviation * SCALING)
    channels = len(gain)
    quant, post = vae.quant_conv, vae.post_quant_conv
    # z' = gain * (z - mean); its log-variance grows by 2 log gain; the decoder sees z' / gain +
    # mean.
    quant.weight[:channels] *= gain[:, None, None, None]
    quant.bias[:channels] = (quant.bias[:channels] - mean) * gain
    quant.bias[channels:] += 2 * gain.log()
    post.bias += (post.weight[:, :, 0, 0] @ mean[:, None])[:, 0]
    post.weight /= gain[None, :, None, None]

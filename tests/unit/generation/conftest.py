"""Small random models of real architecture, behind the interface that generation sees."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from konomi.config.sections import TextConfig
from konomi.data.batch import Latents
from konomi.diffusion.noise import scaled_linear_schedule
from konomi.diffusion.variance_preserving import VariancePreserving
from konomi.families import family_named
from konomi.models.architecture import TextTraits
from konomi.models.clip_text import TextEncoder
from konomi.models.text_encoding import LoadedTextEncoder, count_chunks, encode_text


class LetterTokenizer:
    """One token a letter; enough to tell prompts apart."""

    bos_token_id, eos_token_id = 98, 99

    def __init__(self, pad_token_id: int = 99) -> None:
        self.pad_token_id = pad_token_id

    def ids(self, text: str) -> list[int]:
        return [ord(c) % 96 for c in text.replace(" ", "")]


def ours(theirs: Any) -> TextEncoder:
    """Our text encoder with the weights of transformers'."""
    encoder = TextEncoder(
        theirs.config.to_dict(), projection=hasattr(theirs, "text_projection")
    ).eval()
    named = {
        n if n.startswith("text_") else f"text_model.{n}": w for n, w in theirs.state_dict().items()
    }
    encoder.load_state_dict(named)
    return encoder


class SmallBase:
    """A BaseModel of about 100,000 weights (SD1, or SDXL with two text encoders; 4 or 9 input
    channels).
    """

    name = "small"
    resolution = 32
    latent_factor = size_step = 2
    latent_channels = 4
    text_traits = TextTraits(num_positions=77)

    def __init__(self, *, sdxl: bool = False, inpainting: bool = False) -> None:
        import diffusers
        import transformers

        torch.manual_seed(0)
        self.family = "sdxl" if sdxl else "sd1"
        self.spec = family_named(self.family)
        self.inpainting = inpainting
        self.added_tokens: dict[str, dict[str, Tensor]] = {}
        self.negative_weights: dict[torch.nn.Parameter, Tensor] = {}
        self.process = VariancePreserving(scaled_linear_schedule(), "epsilon")
        self.zero_terminal_snr, self.guidance_rescale = False, 0.0
        self.device, self.dtype = torch.device("cpu"), torch.float32
        text = transformers.CLIPTextConfig(
            vocab_size=100, hidden_size=16, intermediate_size=32, num_hidden_layers=3,
            num_attention_heads=2,
            projection_dim=16, eos_token_id=99, bos_token_id=98, pad_token_id=99,
        )  # fmt: skip
        self.theirs = [transformers.CLIPTextModel(text).eval()]
        self.loaded_encoders = [
            LoadedTextEncoder("text_encoder", LetterTokenizer(), ours(self.theirs[0]))
        ]
        extra = {}
        if sdxl:
            self.theirs.append(transformers.CLIPTextModelWithProjection(text).eval())
            first = LoadedTextEncoder(
                "text_encoder",
                LetterTokenizer(),
                self.loaded_encoders[0].module,
                layer=2,
                final_norm=False,
            )
            pooling = LoadedTextEncoder(
                "text_encoder_2",
                LetterTokenizer(0),
                ours(self.theirs[1]),
                layer=2,
                final_norm=False,
                pooled=True,
            )
            self.loaded_encoders = [first, pooling]
            extra = {
                "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
                "projection_class_embeddings_input_dim": 16 + 6 * 8, "use_linear_projection": True,
            }  # fmt: skip
        self.denoiser = diffusers.UNet2DConditionModel(
            sample_size=16, in_channels=9 if inpainting else 4, out_channels=4,
            block_out_channels=(16, 32),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1, cross_attention_dim=16 * len(self.loaded_encoders),
            attention_head_dim=2,
            norm_num_groups=8,
            **extra,
        ).eval()  # fmt: skip
        self.vae = diffusers.AutoencoderKL(
            block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=4,
            sample_size=32,
            scaling_factor=0.18215,
        ).eval()  # fmt: skip
        self.text_encoders = {
            loaded_encoder.part: loaded_encoder.module for loaded_encoder in self.loaded_encoders
        }

    def encode_images(self, pixels: Tensor) -> Latents:
        distribution = self.vae.encode(pixels).latent_dist
        return Latents(distribution.mean * 0.18215, distribution.std * 0.18215)

    def decode_latents(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents / 0.18215).sample.float()

    def encode_captions(self, captions: Any, text: TextConfig) -> Any:
        return encode_text(self.loaded_encoders, captions, text)

    def uncut(self, captions: Any, text: TextConfig) -> TextConfig:
        return replace(text, max_tokens=75 * count_chunks(self.loaded_encoders, captions, text))

    def with_sizes(self, conditioning: Any, sizes: Tensor) -> Any:
        return replace(conditioning, sizes=sizes) if self.family == "sdxl" else conditioning

    def predict(self, noisy_latents: Tensor, timesteps: Tensor, conditioning: Any) -> Tensor:
        inputs, added = noisy_latents, None
        if self.inpainting:
            inputs = torch.cat([inputs, conditioning.inpaint], dim=1)
        if self.family == "sdxl":
            added = {"text_embeds": conditioning.pooled, "time_ids": conditioning.sizes}
        return self.denoiser(inputs, timesteps, conditioning.states, added_cond_kwargs=added).sample


@pytest.fixture(scope="session")
def small() -> SmallBase:
    return SmallBase()


@pytest.fixture(scope="session")
def small_inpainting() -> SmallBase:
    return SmallBase(inpainting=True)


@pytest.fixture(scope="session")
def small_sdxl() -> SmallBase:
    return SmallBase(sdxl=True)


@pytest.fixture(scope="session")
def oracle() -> Any:
    """diffusers' own pipelines over a base's modules."""
    import diffusers

    def silent(pipeline: Any) -> Any:
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def parts(base: SmallBase, scheduler: Any) -> dict[str, Any]:
        return {
            "vae": base.vae, "text_encoder": base.theirs[0], "tokenizer": None,
            "unet": base.denoiser,
            "scheduler": scheduler, "safety_checker": None, "feature_extractor": None,
            "requires_safety_checker": False,
        }  # fmt: skip

    def sdxl(base: SmallBase, scheduler: Any) -> Any:
        return diffusers.StableDiffusionXLPipeline(
            vae=base.vae, text_encoder=None, text_encoder_2=base.theirs[1], tokenizer=None,
            tokenizer_2=None,
            unet=base.denoiser, scheduler=scheduler, add_watermarker=False,
        )  # fmt: skip

    return SimpleNamespace(
        text=lambda base, scheduler: silent(
            diffusers.StableDiffusionPipeline(**parts(base, scheduler))
        ),
        image=lambda base, scheduler: silent(
            diffusers.StableDiffusionImg2ImgPipeline(**parts(base, scheduler))
        ),
        inpaint=lambda base, scheduler: silent(
            diffusers.StableDiffusionInpaintPipeline(**parts(base, scheduler))
        ),
        sdxl=lambda base, scheduler: silent(sdxl(base, scheduler)),
    )

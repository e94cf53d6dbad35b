"""A family made up for test_architecture_new_family.py, which puts this file into a copy of konomi:
a transformer of flow matching over patches of 16-channel latents, a text encoder that reads letters
under a mask, an autoencoder whose latents are shifted and scaled. Nothing of CLIP or a U-Net.
"""

import json
import re

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from konomi.diffusion.conditioning import Conditioning
from konomi.errors import ModelError
from konomi.families.family import (
    DenoiserSpec,
    Family,
    Pipeline,
    TextEncoderSpec,
    VaeSpec,
    Variant,
)
from konomi.models.architecture import ConfigRules, Facts, TextTraits

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789 .,"
PATCH = 2


class LetterTokenizer:
    """Every letter is a token; 0 fills up, 1 is any other letter."""

    def __init__(self, letters):
        self.letters = letters

    def ids(self, text):
        return [
            self.letters.find(letter) + 2 if letter in self.letters else 1
            for letter in text.lower()
        ]

    def pieces(self, text):
        return list(text)

    def vocabulary(self):
        return {letter: index + 2 for index, letter in enumerate(self.letters)}

    def open(self, spec, config):
        if len(self.letters) + 2 > config["vocab_size"]:
            raise ModelError(f"its {spec.tokenizer} has more letters than its {spec.part}.")
        return self

    def write(self, folder, *, length):
        folder.mkdir(parents=True)
        (folder / "letters.json").write_text(
            json.dumps({"letters": self.letters}), encoding="utf-8"
        )

    def fingerprint(self):
        return (self.letters,)


class TextEncoder(nn.Module):
    """Letters and their places, mixed over what the mask lets count."""

    def __init__(self, config):
        super().__init__()
        width = config["d_model"]
        self.shared = nn.Embedding(config["vocab_size"], width)
        self.places = nn.Embedding(config["max_letters"], width)
        self.mix = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def enable_gradient_checkpointing(self): ...

    def disable_gradient_checkpointing(self): ...

    def forward(self, ids, mask):
        states = self.shared(ids) + self.places.weight[: ids.shape[1]]
        weights = mask[..., None].to(states.dtype)
        mean = (states * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True).clamp(min=1)
        return self.norm(states + self.mix(functional.silu(mean))) * weights


class Attention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.Linear(width, width)

    def forward(self, states, mask):
        q, k, v = (layer(states)[:, None] for layer in (self.to_q, self.to_k, self.to_v))
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])
        return self.to_out(mixed[:, 0])


class Block(nn.Module):
    """Text and picture attend to each other and themselves."""

    def __init__(self, width):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, states, mask):
        states = states + self.attn(self.norm1(states), mask)
        return states + self.down(functional.gelu(self.up(self.norm2(states))))


class Transformer(nn.Module):
    def __init__(self, config):
        super().__init__()
        width, channels = config["width"], config["in_channels"]
        self.gradient_checkpointing = False
        self.patch_in = nn.Linear(channels * PATCH**2, width)
        self.time_in = nn.Linear(8, width)
        self.text_in = nn.Linear(config["text_width"], width)
        self.blocks = nn.ModuleList([Block(width) for _ in range(config["num_layers"])])
        self.norm_out = nn.LayerNorm(width)
        self.patch_out = nn.Linear(width, channels * PATCH**2)

    def enable_gradient_checkpointing(self):
        self.gradient_checkpointing = True

    def disable_gradient_checkpointing(self):
        self.gradient_checkpointing = False

    def forward(self, latents, times, text, text_mask):
        height, width = latents.shape[2:]
        patches = functional.pixel_unshuffle(latents, PATCH).flatten(2).transpose(1, 2)
        angles = times[:, None].float() * 2.0 ** torch.arange(4, device=times.device)
        time = self.time_in(torch.cat([angles.sin(), angles.cos()], 1).to(latents.dtype))
        places = torch.linspace(0, 1, patches.shape[1], device=times.device, dtype=latents.dtype)
        picture = self.patch_in(patches) + time[:, None] + places[:, None]
        states = torch.cat([self.text_in(text), picture], 1)
        mask = torch.cat([text_mask, text_mask.new_ones(picture.shape[:2])], 1)
        for block in self.blocks:
            if self.gradient_checkpointing and self.training:
                states = checkpoint(block, states, mask, use_reentrant=False)
            else:
                states = block(states, mask)
        answer = self.patch_out(self.norm_out(states[:, text.shape[1] :])).transpose(1, 2)
        return functional.pixel_shuffle(
            answer.unflatten(2, (height // PATCH, width // PATCH)), PATCH
        )


class Autoencoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        side, channels = config["downsampling"], config["latent_channels"]
        self.encoder = nn.Conv2d(3, channels, side, stride=side)
        self.decoder = nn.ConvTranspose2d(channels, 3, side, stride=side)

    def encode(self, pixels):
        mean = self.encoder(pixels)
        return mean, torch.full_like(mean, 0.1)

    def decode(self, latents):
        return self.decoder(latents).tanh()


def whole(value):
    return type(value) is int and 0 < value < 4096


class ToyArchitecture:
    name = "toy_transformer"
    single_file = None
    obsolete = ()

    def rules(self, spec):
        return ConfigRules(checks=dict.fromkeys(PUBLISHED[spec.folder], lambda value: True))

    def fill(self, family, configs): ...

    def check(self, family, configs):
        sizes = {"transformer": "width", "vae": "downsampling", "text_encoder": "d_model"}
        for folder, setting in sizes.items():
            if folder in configs and not whole(configs[folder].get(setting)):
                raise ModelError(f"the config of {folder} has no {setting}.")

    def facts(self, family, configs):
        denoiser, vae = configs["transformer"], configs["vae"]
        return Facts(
            resolution=denoiser["sample_size"] * vae["downsampling"],
            latent_channels=vae["latent_channels"],
            latent_factor=vae["downsampling"],
            latent_scale=vae["scaling_factor"],
            latent_shift=vae["shift_factor"],
            width=denoiser["width"],
            text=TextTraits(
                num_positions=configs["text_encoder"]["max_letters"],
                longest=configs["text_encoder"]["max_letters"],
                chooses_layer=False,
                has_emphasis=False,
            ),
        )

    def build(self, spec, config):
        classes = {"denoiser": Transformer, "vae": Autoencoder, "text_encoder": TextEncoder}
        return classes[spec.part](config)

    def canonical(self, spec, tensors):
        return dict(tensors)

    def predict(self, denoiser, noisy_latents, timesteps, conditioning):
        dtype = denoiser.patch_in.bias.dtype
        return denoiser(
            noisy_latents.to(dtype), timesteps, conditioning.states.to(dtype), conditioning.mask
        )

    def read_tokenizer(self, folder):
        text = (folder / "letters.json").read_text(encoding="utf-8")
        return LetterTokenizer(json.loads(text)["letters"])

    def encode(self, encoders, captions, text, tokens):
        (encoder,) = encoders
        places = encoder.module.places.weight
        ids = [encoder.tokenizer.ids(caption)[: len(places)] for caption in captions]
        length = max(1, *map(len, ids))
        padded = torch.tensor([row + [0] * (length - len(row)) for row in ids])
        mask = torch.tensor([[place < len(row) for place in range(length)] for row in ids])
        padded, mask = padded.to(places.device), mask.to(places.device)
        return Conditioning(encoder.module(padded, mask), mask=mask)

    def uncut(self, encoders, captions, text, tokens):
        return text

    def scratch(self, family, configs, *, resolution, inpainting, vocabulary):
        if inpainting:
            raise ModelError(f"{family.title} has no inpainting form.")
        return {"tokenizer": LetterTokenizer(LETTERS)}


TOY_ARCHITECTURE = ToyArchitecture()

PUBLISHED = {
    "transformer": {
        "width": 16,
        "num_layers": 2,
        "text_width": 12,
        "in_channels": 16,
        "sample_size": 16,
    },
    "vae": {"latent_channels": 16, "downsampling": 4, "scaling_factor": 0.6, "shift_factor": 0.2},
    "text_encoder": {"d_model": 12, "vocab_size": len(LETTERS) + 2, "max_letters": 40},
    "scheduler": {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
}
ATTENTION, FEED_FORWARD = r".*\.attn\.(to_q|to_k|to_v|to_out)", r".*\.(up|down)"
TOY = Family(
    name="toyflow",
    title="Toy Flow",
    architecture="toy_transformer",
    denoiser=DenoiserSpec(
        folder="transformer",
        class_name="ToyTransformer2DModel",
        file_layout="diffusers",
        selectors={
            "attention": re.compile(ATTENTION),
            "feed_forward": re.compile(FEED_FORWARD),
            "transformer": re.compile(f"{ATTENTION}|{FEED_FORWARD}"),
        },
        path_words=frozenset(("blocks", "attn", "to_q", "to_k", "to_v", "to_out", "up", "down")),
        convolutions=re.compile("(?!)"),
        width=16,
        block_order=("blocks",),
        patch=PATCH,
    ),
    text_encoders=(
        TextEncoderSpec(
            part="text_encoder",
            class_name="ToyLetterEncoder",
            model_type="toy_letters",
            tokenizer="tokenizer",
            tokenizer_class="ToyLetterTokenizer",
            max_length=40,
            width=12,
            selectors={"text": re.compile("mix")},
            path_words=frozenset(("mix",)),
            inner_layers=re.compile("mix"),
            kohya_prefix="lora_te",
        ),
    ),
    vae=VaeSpec(class_name="ToyAutoencoder", latent_channels=16, latent_factor=4, latent_scale=0.6),
    variants=(
        Variant(
            prediction="flow",
            resolution=64,
            architecture="toy-flow-v1",
            base_model_version="toy_flow",
        ),
    ),
    recognise_single_file=lambda shapes: False,
    recognise_folder=lambda config, folders: config.get("_class_name") == "ToyTransformer2DModel",
    recognise_metadata=lambda metadata: metadata.get("ss_base_model_version") == "toy_flow",
    own_keys=re.compile(r"denoiser\.blocks\..+"),
    implementation="this test",
    pipeline=Pipeline(class_name="ToyFlowPipeline"),
    published=PUBLISHED,
)

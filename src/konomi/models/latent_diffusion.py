"""A latent diffusion model: text encoders, a denoiser and a VAE. What they are is up to the
family's architecture.

Shapes: B batch, C latent channels, h w latent grid, H W pixels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from konomi.config.sections import TextConfig
from konomi.data.batch import Latents
from konomi.diffusion.conditioning import Conditioning
from konomi.diffusion.process import Process
from konomi.errors import ModelError, RecipeError
from konomi.families.blocks import block_name
from konomi.families.family import Family, Part, TextEncoderSpec
from konomi.families.selectors import check_selectors
from konomi.hardware.allocator import keep_large_blocks
from konomi.models.architecture import NO_TOKENS, AddedTokens, AnyTokenizer, LoadedTextEncoder
from konomi.models.architectures import architecture_of
from konomi.models.attached import AttachedAdapters
from konomi.models.fingerprint import parts_fingerprint
from konomi.models.noise_config import noise_process, with_zero_terminal_snr
from konomi.models.parts import LazyParts, build_part, empty_part
from konomi.models.source import PartSource
from konomi.models.vae_precision import finite_or_float32

GUIDANCE_RESCALE = 0.7
"""phi of a model whose noise process ends in pure noise: guidance overexposes it (Lin et al. 2023,
section 3.4)."""


class LatentDiffusion:
    """Implements `konomi.models.base.BaseModel`; all that differs between families is in its
    `spec` and its `architecture`.
    """

    def __init__(self, source: PartSource, *, name: str) -> None:
        self.source = source
        self.spec: Family = source.family
        self.architecture = architecture_of(self.spec)
        facts = self.architecture.facts(self.spec, source.configs)
        self.name = name
        self.family = self.spec.name
        self.notes = source.notes
        self.scheduler = dict(source.configs["scheduler"])
        """The noise process in diffusers' terms, as it is saved."""
        self.process: Process = noise_process(self.scheduler, source.prediction)
        self.zero_terminal_snr = (
            self.process.prediction != "flow" and self.process.ends_in_pure_noise
        )
        self.latent_channels = facts.latent_channels
        self.latent_factor = facts.latent_factor
        self.size_step = facts.latent_factor * self.spec.denoiser.patch
        self.latent_scale, self.latent_shift = facts.latent_scale, facts.latent_shift
        self.resolution = facts.resolution
        self.inpainting = facts.inpainting
        self.casts_weights = facts.casts_weights
        self.text_traits = facts.text
        self.vae_dtype: torch.dtype | None = torch.float32 if self.spec.vae.float32 else None
        """Set it to compute the VAE in another precision than the rest; None follows `place`."""
        self.width = facts.width
        self.published_width = self.spec.denoiser.width
        self.added_tokens: dict[str, Mapping[str, Tensor]] = {}
        self.negative_weights: dict[nn.Parameter, Tensor] = {}
        self.attached = AttachedAdapters()
        self._device = torch.device("cpu")
        self._dtype = torch.float32
        self._float32_parts: tuple[Part, ...] = ()
        self._storage: torch.dtype | None = None
        self._modules: dict[Part, nn.Module] = {}
        self._tokenizers: dict[str, AnyTokenizer] = {}
        self._fingerprints: dict[str, str] = {}

    @property
    def guidance_rescale(self) -> float:
        return GUIDANCE_RESCALE if self.zero_terminal_snr else 0.0

    @property
    def clip_layer(self) -> int:
        layers = {encoder.layer for encoder in self.spec.text_encoders}
        return layers.pop() if len(layers) == 1 else 0

    def use_zero_terminal_snr(self) -> None:
        prediction = self.process.prediction
        if prediction == "flow":
            raise ModelError(
                f"{self.name} is a base of flow matching, which ends in pure noise anyway."
            )
        if prediction == "epsilon":
            raise ModelError(
                f"{self.name} predicts noise (epsilon), which is undefined where nothing but noise "
                "is left: zero terminal SNR needs a v-prediction base."
            )
        self.scheduler = with_zero_terminal_snr(self.scheduler)
        self.process = noise_process(self.scheduler, prediction)
        self.zero_terminal_snr = True
        self._fingerprints.clear()

    @property
    def parts(self) -> tuple[Part, ...]:
        """All parts, in the order denoiser, text encoders, VAE."""
        return tuple(spec.part for spec in self.spec.parts)

    @property
    def denoiser(self) -> nn.Module:
        return self._part("denoiser")

    @property
    def vae(self) -> nn.Module:
        return self._part("vae")

    @property
    def text_encoders(self) -> Mapping[str, nn.Module]:
        return LazyParts(self._part, tuple(encoder.part for encoder in self.spec.text_encoders))

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    def loaded_parts(self) -> tuple[Part, ...]:
        """Parts whose weights are in memory."""
        return tuple(self._modules)

    def place(
        self,
        device: torch.device | str,
        dtype: torch.dtype,
        *,
        float32_parts: Sequence[Part] = (),
        storage: torch.dtype | None = None,
    ) -> None:
        """See `BaseModel.place`. Parts that are loaded already are moved."""
        self._device, self._dtype, self._float32_parts = (
            torch.device(device),
            dtype,
            tuple(float32_parts),
        )
        self._storage = storage if self.casts_weights and "denoiser" not in float32_parts else None
        if self._device.type == "cpu":
            keep_large_blocks()
        for part, module in self._modules.items():
            module.to(self._device, self._dtype_of(part))
            for parameter in module.parameters():
                parameter.data = parameter.data.to(self._format_of(part, parameter))

    def unload(self, *parts: Part) -> None:
        for part in parts:
            gone = self._modules.pop(part, None)
            for parameter in gone.parameters() if self.negative_weights and gone else ():
                self.negative_weights.pop(parameter, None)

    def fingerprint(self, part: Literal["denoiser", "vae", "text"]) -> str:
        names: tuple[Part, ...] = (
            tuple(t.part for t in self.spec.text_encoders) if part == "text" else (part,)
        )
        key = f"{part} {self._dtype_of(names[0])}"
        if key not in self._fingerprints:
            extra = [str(self._dtype_of(names[0])), self.family, str(self.latent_scale)]
            extra += [f"shift={self.latent_shift}"] if self.latent_shift else []
            extra += self._reading() if part == "text" else []
            if part == "denoiser" and (
                self.zero_terminal_snr or self.process.prediction != self.spec.predictions[0]
            ):
                # The same weights asked for something else are another model.
                extra += [self.process.prediction, str(self.zero_terminal_snr)]
            extra += self.attached.marks(names)
            self._fingerprints[key] = parts_fingerprint(
                self.source, names, extra, sampled=part == "denoiser"
            )
        return self._fingerprints[key]

    def keep_attached(self, attached: AttachedAdapters) -> None:
        assert not self._modules
        self.attached = attached
        for adapter, strengths in attached.adapters:
            for token, vectors in adapter.embeddings.items() if strengths.text else ():
                self.added_tokens[token] = {
                    part: vectors_nD * strengths.text for part, vectors_nD in vectors.items()
                }
        self._fingerprints.clear()

    def encode_images(self, pixels: Tensor) -> Latents:
        fault = "the VAE turns these images into NaN or infinite latents"
        return Latents(*self._checked(self._encode, pixels, fault))

    def decode_latents(self, latents: Tensor) -> Tensor:
        (pixels,) = self._checked(
            self._decode, latents, "the VAE turns these latents into NaN or infinite pixels"
        )
        return pixels

    def encode_captions(
        self, captions: Sequence[str], text: TextConfig, *, tokens: AddedTokens = NO_TOKENS
    ) -> Conditioning:
        known = self.added_tokens | dict(tokens)
        return self.architecture.encode(self.loaded_encoders(), captions, text, known)

    def uncut(
        self, captions: Sequence[str], text: TextConfig, *, tokens: AddedTokens = NO_TOKENS
    ) -> TextConfig:
        known = self.added_tokens | dict(tokens)
        return self.architecture.uncut(self.loaded_encoders(), captions, text, known)

    @property
    def has_single_file(self) -> bool:
        return self.architecture.single_file is not None

    @property
    def takes_added_tokens(self) -> bool:
        return all(spec.token_embedding for spec in self.spec.text_encoders)

    def token_embedding(self, part: Part) -> nn.Parameter:
        spec = self.spec.part(part)
        path = spec.token_embedding if isinstance(spec, TextEncoderSpec) else ""
        if not path:
            raise ModelError(
                f"{self.name} ({self.spec.title}): its {part} takes no learned tokens."
            )
        table = self.module(f"{part}.{path}").weight
        assert isinstance(table, nn.Parameter)
        return table

    def token_vectors(self, text: str) -> Mapping[str, Tensor]:
        found: dict[str, Tensor] = {}
        for spec in self.spec.text_encoders:
            ids = self.tokenizer(spec).ids(text)
            if not ids:
                raise RecipeError(f"{text!r} holds no word that the text encoder could start from.")
            table = self.token_embedding(spec.part).detach()
            found[spec.part] = table[torch.tensor(ids, device=table.device)].float()
        return found

    def tokens(self, text: str) -> dict[str, tuple[str, ...]]:
        return {s.part: tuple(self.tokenizer(s).pieces(text)) for s in self.spec.text_encoders}

    def vocabularies(self) -> dict[str, dict[str, int]]:
        return {spec.part: self.tokenizer(spec).vocabulary() for spec in self.spec.text_encoders}

    def loaded_encoders(self) -> tuple[LoadedTextEncoder, ...]:
        """The text encoders as the architecture reads them; loads them."""
        return tuple(
            LoadedTextEncoder(
                part=spec.part,
                tokenizer=self.tokenizer(spec),
                module=self._part(spec.part),
                layer=spec.layer,
                final_norm=spec.final_norm,
                pooled=spec.pooled,
                missing_layers=self.source.missing_layers(spec.part),
            )
            for spec in self.spec.text_encoders
        )

    def tokenizer(self, spec: TextEncoderSpec) -> AnyTokenizer:
        """The tokenizer of a text encoder."""
        if spec.tokenizer not in self._tokenizers:
            stored = self.source.tokenizer(spec.tokenizer)
            try:
                opened = stored.open(spec, self.source.configs[spec.folder])
            except ModelError as error:
                raise ModelError(f"{self.source.where}: {error}") from error
            self._tokenizers[spec.tokenizer] = opened
        return self._tokenizers[spec.tokenizer]

    def with_sizes(self, conditioning: Conditioning, sizes: Tensor) -> Conditioning:
        if not self.spec.denoiser.reads_sizes:
            return conditioning
        return replace(conditioning, sizes=sizes)

    def predict(
        self, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning
    ) -> Tensor:
        if self.inpainting and conditioning.inpaint is None:
            raise ModelError(
                f"{self.name} is an inpainting base: it needs a mask and the masked image's "
                "latents."
            )
        if self.spec.denoiser.reads_sizes and (
            conditioning.pooled is None or conditioning.sizes is None
        ):
            raise ModelError(f"{self.name} needs pooled text and image sizes in its conditioning.")
        return self.architecture.predict(self.denoiser, noisy_latents, timesteps, conditioning)

    def select_layers(self, selector: str) -> dict[str, nn.Module]:
        check_selectors(self.spec, [selector])
        specs = [spec for spec in self.spec.adapted_parts if selector in spec.selectors]
        return {
            f"{spec.part}.{path}": module
            for spec in specs
            for path, module in self._part(spec.part).named_modules()
            if isinstance(module, (nn.Linear, nn.Conv2d))
            and spec.selectors[selector].fullmatch(path)
        }

    def block_of(self, key: str) -> str:
        part, _, path = key.partition(".")
        spec = self.spec.denoiser
        if part != spec.part or spec.block_of is None:
            return ""
        return spec.block_of(path, self.source.configs[spec.folder])

    def layer_block(self, key: str) -> str:
        return block_name(self.spec, key, self.source.configs)

    def module(self, key: str) -> nn.Module:
        name, _, path = key.partition(".")
        for part in self.parts:
            if part == name:
                owner = self._part(part)
                try:
                    return owner.get_submodule(path)
                except AttributeError as error:
                    raise ModelError(
                        f"{self.name} ({self.spec.title}) has no layer {key}."
                    ) from error
        raise ModelError(
            f"{self.name} ({self.spec.title}) has no part {name!r}; its parts: "
            f"{', '.join(self.parts)}."
        )

    def meta_copy(self) -> "LatentDiffusion":
        meta_copy = LatentDiffusion(self.source, name=self.name)
        for part in self.parts:
            spec = self.spec.part(part)
            config = self.source.configs[spec.folder]
            meta_copy._modules[part] = empty_part(
                self.architecture, spec, config, where=self.source.where
            )
        return meta_copy

    def state(self, part: Part) -> dict[str, Tensor]:
        return dict(self._part(part).state_dict())

    def _reading(self) -> list[str]:
        """What text states depend on besides weights: which numbers a text becomes."""
        stored = [self.source.tokenizer(spec.tokenizer) for spec in self.spec.text_encoders]
        read = [said for tokenizer in stored for said in tokenizer.fingerprint()]
        return read if any(read) else []

    def _part(self, part: Part) -> nn.Module:
        module = self._modules.get(part)
        if module is None:
            spec = self.spec.part(part)
            tensors = {
                name: tensor.to(
                    self._device,
                    self._format_of(part, tensor) if tensor.is_floating_point() else None,
                )
                for name, tensor in self.source.tensors(part).items()
            }
            config = self.source.configs[spec.folder]
            where = self.source.where
            module = build_part(self.architecture, spec, config, tensors, where=where)
            module = self._modules[part] = module.to(self._device)
            self.attached.fold_into(self, part)
        return module

    def _dtype_of(self, part: Part) -> torch.dtype:
        if part in self._float32_parts:
            return torch.float32
        return self.vae_dtype or self._dtype if part == "vae" else self._dtype

    def _format_of(self, part: Part, tensor: Tensor) -> torch.dtype:
        """What is more than a row of numbers is a weight of a linear layer or a convolution."""
        kept = self._storage if part == "denoiser" and tensor.dim() > 1 else None
        return kept or self._dtype_of(part)

    def _checked(
        self, compute: Callable[[Any, Tensor], tuple[Tensor, ...]], inputs: Tensor, fault: str
    ) -> tuple[Tensor, ...]:
        vae = self._part("vae")
        result = finite_or_float32(vae, compute, inputs, name=self.name, fault=fault)
        if next(vae.parameters()).dtype == torch.float32 != self._dtype_of("vae"):
            self.vae_dtype = torch.float32
        return result

    def _encode(self, vae: Any, pixels: Tensor) -> tuple[Tensor, ...]:
        mean, std = vae.encode(pixels)
        shifted = mean.float() - self.latent_shift
        return shifted * self.latent_scale, std.float() * self.latent_scale

    def _decode(self, vae: Any, latents: Tensor) -> tuple[Tensor, ...]:
        scaled = latents / self.latent_scale
        # Adding zero would take the sign from zeros.
        return (vae.decode(scaled + self.latent_shift if self.latent_shift else scaled).float(),)

"""A base in one file (.safetensors, .ckpt) in the LDM layout."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from konomi.config.parse import parse_json
from konomi.diffusion.noise import Prediction
from konomi.errors import FileFormatError, ModelError
from konomi.families import published_config
from konomi.families.autoencoder import VAE_PREFIX
from konomi.families.family import Family, Part, Shapes, TextEncoderSpec
from konomi.families.unet import UNET_PREFIX
from konomi.formats.ldm_keys import (
    UNetLayout,
    ema_name_to_dotted,
    openclip_to_transformers,
    unet_to_diffusers,
    vae_to_diffusers,
)
from konomi.models.clip_unet_rules import check_together, rules_of
from konomi.models.config_check import SCHEDULER, check_configs, without_nulls
from konomi.models.infer import DECLARED, infer_text, infer_unet, infer_vae, time_embedding_width
from konomi.models.noise_config import noise_schedule, prediction_word, with_zero_terminal_snr
from konomi.models.prediction import ZERO_SNR_MARKER, declared_prediction, default_prediction
from konomi.models.tensor_files import TensorFile
from konomi.models.tokenizer import END, StoredClipTokenizer, Vocabulary, clip_vocabulary
from konomi.models.unused import other_schedule, unused_tensors

CONFIGS_KEY = "konomi.configs"
VOCABULARY_KEY = "konomi.vocabulary"
_EMA_PREFIX = "model_ema.diffusion_model"
_VAE_PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
NO_VAE = (
    "holds no VAE. Give one with --vae FILE (`vae = ` in a recipe), or take a model that has it."
)


@dataclass(frozen=True, slots=True)
class SingleFileSource:
    """Parts of a single file."""

    file: TensorFile
    family: Family
    prediction: Prediction
    configs: Mapping[str, Mapping[str, Any]]
    has_vae: bool
    aliases: Mapping[str, str] = field(default_factory=dict)
    """LDM name -> name in the file, for tensors stored under another name."""
    notes: tuple[str, ...] = ()
    """What the file holds and nothing uses, a line each."""

    @property
    def where(self) -> str:
        return str(self.file.path)

    def tensors(self, part: Part) -> dict[str, Tensor]:
        if part == "denoiser":
            return self._unet()
        if part == "vae":
            if not self.has_vae:
                raise ModelError(f"{self.where}: {NO_VAE}")
            return vae_tensors(self.file, VAE_PREFIX, self.configs["vae"])
        return self._text(self.family.text_encoder(part))

    def tokenizer(self, name: str) -> StoredClipTokenizer:
        encoder = self.family.text_encoder(name)
        declared = self.file.metadata.get(VOCABULARY_KEY)
        vocabulary = (
            clip_vocabulary() if declared is None else _declared_vocabulary(declared, self.where)
        )
        size = self.configs[encoder.part]["vocab_size"]
        if max(vocabulary.tokens.values()) >= size:
            raise ModelError(
                f"{self.where}: its text encoder knows {size} tokens, CLIP's vocabulary has "
                f"{len(vocabulary.tokens)}, and the file brings no vocabulary of its own. Use it "
                "as a diffusers folder."
            )
        pad = encoder.pad_token if encoder.pad_token in vocabulary.tokens else END
        return StoredClipTokenizer(vocabulary, pad)

    def leftovers(self) -> dict[str, Tensor]:
        """Text tensors that no module uses but other tools expect (OpenCLIP-H's last layer,
        `logit_scale`).
        """
        names = [
            name
            for encoder in self.family.text_encoders
            if encoder.open_clip
            for name in self.file.shapes
            if name.startswith(encoder.file_prefix)
            and self.is_leftover(name[len(encoder.file_prefix) :], encoder)
        ]
        return self.file.read(names)

    def is_leftover(self, name: str, encoder: TextEncoderSpec) -> bool:
        """Whether a text encoder's tensor, named without its prefix, is read by no module."""
        number = _layer_number(name)
        if number is not None:
            return number >= int(self.configs[encoder.part]["num_hidden_layers"])
        return encoder.open_clip and (
            name == "logit_scale" or (name == "text_projection" and not encoder.pooled)
        )

    def missing_layers(self, part: Part) -> int:
        """Layers at the end of a text encoder that the file lacks, and that nothing reads by
        default.
        """
        encoder = next(
            (encoder for encoder in self.family.text_encoders if encoder.part == part), None
        )
        if encoder is None:
            return 0
        names = (
            name[len(encoder.file_prefix) :]
            for name in self.file.shapes
            if name.startswith(encoder.file_prefix)
        )
        held = {number for name in names if (number := _layer_number(name)) is not None}
        missing = int(self.configs[part]["num_hidden_layers"]) - len(held)
        return missing if 0 < missing <= encoder.unread_layers else 0

    def _unet(self) -> dict[str, Tensor]:
        layout = UNetLayout.from_config(self.configs["unet"])
        wanted = {name: self.aliases.get(name, name) for name in _names(self.file, self.aliases)}
        result: dict[str, Tensor] = {}
        stored = self.file.read(wanted.values())
        for name, alias in wanted.items():
            path = unet_to_diffusers(name[len(UNET_PREFIX) :], layout)
            # An unknown name goes on as it is: building the part reports it.
            result[path or name] = stored[alias]
        return result

    def _text(self, encoder: TextEncoderSpec) -> dict[str, Tensor]:
        names = [name for name in self.file.shapes if name.startswith(encoder.file_prefix)]
        names = [
            name
            for name in names
            if not self.is_leftover(name[len(encoder.file_prefix) :], encoder)
        ]
        result: dict[str, Tensor] = {}
        for name, tensor in self.file.read(names).items():
            inner = name[len(encoder.file_prefix) :]
            if encoder.open_clip:
                result.update(openclip_to_transformers(inner, tensor))
            elif "position_ids" not in inner:
                result[inner if inner.startswith("text_model.") else f"text_model.{inner}"] = tensor
        count = int(self.configs[encoder.part]["num_hidden_layers"])
        for number in range(count - self.missing_layers(encoder.part), count):
            # Nothing reads it, and diffusers counts layers from the end: a copy keeps the others
            # in their places.
            before, after = (
                f"text_model.encoder.layers.{index}." for index in (number - 1, number)
            )
            copies = {
                name.replace(before, after): t
                for name, t in result.items()
                if name.startswith(before)
            }
            result.update({name: tensor.clone() for name, tensor in copies.items()})
        return result


def _layer_number(name: str) -> int | None:
    """Of a tensor inside a text encoder's layer, in OpenCLIP's or transformers' layout."""
    match = re.match(r"(?:transformer\.resblocks|(?:text_model\.)?encoder\.layers)\.(\d+)\.", name)
    return None if match is None else int(match[1])


def open_ldm_file(
    file: TensorFile, family: Family, *, prediction: Prediction | None = None
) -> SingleFileSource:
    """The parts of a file of this family. Raises ModelError or FileFormatError saying what is
    wrong.
    """
    path, aliases = file.path, ema_aliases(file.shapes)
    shapes = with_ema_as_unet(file.shapes)
    declared = declared_configs(file)
    try:
        configs: dict[str, dict[str, Any]] = {
            encoder.part: infer_text(family, encoder, shapes, declared.get(encoder.part, {}))
            for encoder in family.text_encoders
        }
        unet: dict[str, Any] = infer_unet(family, shapes, declared.get("unet", {}))
        has_vae = any(name.startswith(f"{VAE_PREFIX}encoder.") for name in shapes)
        vae = (
            infer_vae(family, shapes, declared.get("vae", {}))
            if has_vae
            else _absent_vae(family, declared)
        )
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    if family.denoiser.reads_sizes:
        unet["addition_time_embed_dim"] = time_embedding_width(
            unet, configs["text_encoder_2"]["projection_dim"]
        )
    given = prediction
    prediction = (
        prediction
        or declared_prediction(file, family, declared)
        or default_prediction(family, unet["in_channels"])
    )
    if "sample_size" not in declared.get("unet", {}):
        unet["sample_size"] = family.variant(prediction).resolution // family.vae.latent_factor
    scheduler = {**published_config(family, "scheduler"), **declared.get("scheduler", {})}
    scheduler["prediction_type"] = prediction_word(prediction)
    if given == "epsilon":
        scheduler.pop("rescale_betas_zero_snr", None)
    if ZERO_SNR_MARKER in file.shapes and prediction != "epsilon":
        scheduler = with_zero_terminal_snr(scheduler)
    all_configs = {"unet": unet, "vae": vae, "scheduler": scheduler, **configs}
    rules = {"scheduler": SCHEDULER, **{spec.folder: rules_of(spec) for spec in family.parts}}
    all_configs = {name: without_nulls(rules[name], config) for name, config in all_configs.items()}
    try:
        check_configs(rules, all_configs)
        check_together(family, all_configs)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    source = SingleFileSource(file, family, prediction, all_configs, has_vae, aliases)
    return replace(source, notes=tuple(f"{path}: {line}" for line in _unused(source)))


def _absent_vae(family: Family, declared: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What a file that holds no VAE expects of one."""
    return {**published_config(family, "vae"), **declared.get("vae", {})}


def _unused(source: SingleFileSource) -> list[str]:
    file, family = source.file, source.family
    prefixes = tuple(VAE_PREFIX + part for part in _VAE_PARTS) + (
        () if source.aliases else (UNET_PREFIX,)
    )
    used = {name for name in file.shapes if name.startswith(prefixes)} | set(
        source.aliases.values()
    )
    if source.aliases:
        used |= {"model_ema.decay", "model_ema.num_updates"}
    for encoder in family.text_encoders:
        for name in file.shapes:
            if name.startswith(encoder.file_prefix) and not source.is_leftover(
                name[len(encoder.file_prefix) :], encoder
            ):
                used.add(name)
    lines = unused_tensors(file, family, source.configs, used)
    lines += other_schedule(file, noise_schedule(source.configs["scheduler"]))
    if ZERO_SNR_MARKER in file.shapes and source.prediction == "epsilon":
        lines.append(
            f"{ZERO_SNR_MARKER} marks zero terminal SNR, which a model that predicts epsilon "
            "cannot have."
        )
    for encoder in family.text_encoders:
        if missing := source.missing_layers(encoder.part):
            lines.append(
                f"lacks the last {missing} of the layers of its {encoder.part}; nothing reads them "
                "by default."
            )
    return lines


def vae_tensors(file: TensorFile, prefix: str, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """A VAE in the LDM layout, under diffusers' names."""
    levels, layers = len(config["block_out_channels"]), int(config["layers_per_block"])
    starts = tuple(prefix + part for part in _VAE_PARTS)
    names = [name for name in file.shapes if name.startswith(starts)]
    result: dict[str, Tensor] = {}
    for name, tensor in file.read(names).items():
        inner = name[len(prefix) :]
        path = vae_to_diffusers(inner, levels=levels, layers=layers) or inner
        result[path] = tensor.flatten(1) if ".attentions." in path and tensor.ndim == 4 else tensor
    return result


def _names(file: TensorFile, aliases: Mapping[str, str]) -> list[str]:
    return list(aliases) or [name for name in file.shapes if name.startswith(UNET_PREFIX)]


def with_ema_as_unet(shapes: Shapes) -> Shapes:
    """The tensors of a file, with running averages under the UNet's names where they stand in for
    it.
    """
    return {**shapes, **{name: shapes[stored] for name, stored in ema_aliases(shapes).items()}}


def ema_aliases(shapes: Shapes) -> dict[str, str]:
    """Running averages that stand in for a UNet that is not there itself: its names -> theirs."""
    if any(name.startswith(UNET_PREFIX) for name in shapes):
        return {}
    aliases: dict[str, str] = {}
    for name in shapes:
        if name.startswith(_EMA_PREFIX):
            dotted = ema_name_to_dotted(name[len(_EMA_PREFIX) :])
            if dotted is not None:
                aliases[UNET_PREFIX + dotted] = name
    return aliases


def declared_configs(file: TensorFile) -> dict[str, dict[str, Any]]:
    """Settings the file states about itself, those of `DECLARED` alone."""
    raw = file.metadata.get(CONFIGS_KEY)
    if raw is None:
        return {}
    try:
        stated = parse_json(raw)
        return {
            component: {
                name: stated[component][name] for name in names if name in stated[component]
            }
            for component, names in DECLARED.items()
            if component in stated
        }
    except (ValueError, TypeError, KeyError) as error:
        raise FileFormatError(
            f"{file.path}: the metadata {CONFIGS_KEY} is damaged ({error})."
        ) from error


def _declared_vocabulary(raw: str, where: str) -> Vocabulary:
    try:
        content = parse_json(raw)
        tokens = {str(token): int(number) for token, number in content["tokens"].items()}
        pairs = [merge.split() for merge in content["merges"]]
        return Vocabulary(tokens, tuple((left, right) for left, right in pairs))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise FileFormatError(
            f"{where}: the metadata {VOCABULARY_KEY} is damaged ({error})."
        ) from error

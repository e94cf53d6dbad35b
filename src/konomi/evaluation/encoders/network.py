"""Pretrained networks as scorers see them: pixels in, a vector out.

Shapes: N pictures or texts, D feature width, H W pixels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from konomi.errors import ModelError, shortened
from konomi.evaluation.encoders.preprocessing import (
    CLIP_STATISTICS,
    HALVES,
    IMAGENET_STATISTICS,
    Preprocessing,
    read_preprocessing,
)
from konomi.models.clip import Clip, load_clip
from konomi.models.folder import component_tensors
from konomi.models.residual_image_encoder import ResidualImageEncoder
from konomi.models.tensor_files import read_json


@dataclass(frozen=True, slots=True)
class Network:
    """A loaded network. Vectors are as it makes them; whoever compares them makes unit vectors."""

    prepare: Preprocessing
    see: Callable[[Tensor], Tensor]
    """[N, 3, H, W] -> [N, D]."""
    early_layers: Callable[[Tensor], list[Tensor]]
    """[N, 3, H, W] -> the features [N, C, P] of a layer at a quarter and of one at half the
    depth."""
    read: Callable[[Sequence[str]], Tensor] | None = None
    """Texts -> [N, D], where the network knows texts."""
    scale: float | None = None
    """The temperature of a CLIP: what cosines of pictures and texts were multiplied by when it was
    trained."""


def open_network(source: str, folder: Path | None, device: torch.device) -> Network:
    """`folder` is where the files of `source` are; None for the CLIP inside konomi.

    Raises ModelError in one line: what is missing, damaged or of another kind.
    """
    if folder is None:
        return _clip(load_clip(source), None, device)
    config = read_json(folder / "config.json")
    kind = config.get("model_type")
    if kind == "clip":
        return _clip(load_clip(folder), folder, device)
    if kind == "siglip":
        return _siglip(source, config, folder, device)
    if kind in _SELF_SUPERVISED:
        return _self_supervised(source, config, folder, device)
    raise ModelError(
        f"{source}: is of type {shortened(kind, quoted=True)}. Pictures are compared by CLIP, "
        "SigLIP, SigLIP 2 (of a fixed size), DINO, DINOv2 or DINOv3."
    )


def _clip(clip: Clip, folder: Path | None, device: torch.device) -> Network:
    """CLIP (Radford et al. 2021): both encoders."""
    model = clip.model.to(device)
    mean, std = (tuple(values.flatten().tolist()) for values in (clip.mean, clip.std))
    side = clip.side
    prepare = Preprocessing(None, side, (side, side), mean, std)
    if folder is not None:
        usual = replace(prepare, mean=CLIP_STATISTICS[0], std=CLIP_STATISTICS[1])
        prepare = read_preprocessing(folder, usual)

    def see(pixels: Tensor) -> Tensor:
        pooled = model.vision_model(pixel_values=pixels.to(device)).pooler_output
        features: Tensor = model.visual_projection(pooled)
        return features

    def early(pixels: Tensor) -> list[Tensor]:
        tower = model.vision_model
        if isinstance(tower, ResidualImageEncoder):
            return tower.early_layers(pixels.to(device))
        return _early(tower(pixel_values=pixels.to(device), output_hidden_states=True))

    scale = float(model.logit_scale.detach().exp())
    return Network(prepare, see, early, clip.text_features, scale)


def _siglip(source: str, config: Mapping[str, Any], folder: Path, device: torch.device) -> Network:
    """SigLIP (Zhai et al. 2023) and SigLIP 2 (Tschannen et al. 2025), both encoders."""
    from transformers import SiglipConfig, SiglipModel

    model = _built(source, SiglipModel, SiglipConfig, config, folder).to(device)
    side = int(model.config.vision_config.image_size)
    length = int(model.config.text_config.max_position_embeddings)
    words = _words(source, folder)

    def see(pixels: Tensor) -> Tensor:
        features: Tensor = model.vision_model(pixel_values=pixels.to(device)).pooler_output
        return features

    def read(texts: Sequence[str]) -> Tensor:
        # Trained on texts in small letters, always padded to the whole length.
        small = [text.lower() for text in texts]
        ids = words(
            small, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )["input_ids"]
        features: Tensor = model.text_model(input_ids=ids.to(device)).pooler_output
        return features

    def early(pixels: Tensor) -> list[Tensor]:
        return _early(model.vision_model(pixel_values=pixels.to(device), output_hidden_states=True))

    usual = Preprocessing((side, side), None, None, *HALVES)
    return Network(read_preprocessing(folder, usual), see, early, read)


_SELF_SUPERVISED = {
    "vit": ("ViTConfig", "ViTModel", 224),
    "dinov2": ("Dinov2Config", "Dinov2Model", 256),
    "dinov2_with_registers": ("Dinov2WithRegistersConfig", "Dinov2WithRegistersModel", 256),
    "dinov3_vit": ("DINOv3ViTConfig", "DINOv3ViTModel", 224),
    "dinov3_convnext": ("DINOv3ConvNextConfig", "DINOv3ConvNextModel", 224),
}
"""`model_type` -> config, model, and the shorter side in pixels before the middle is cut out, where
no `preprocessor_config.json` says it."""
_CUT = 224


def _self_supervised(
    source: str, config: Mapping[str, Any], folder: Path, device: torch.device
) -> Network:
    """DINO (Caron et al. 2021), DINOv2 (Oquab et al. 2023), DINOv3 (Siméoni et al. 2025): the class
    token after the last norm."""
    import transformers

    kind = str(config["model_type"])
    config_name, model_name, side = _SELF_SUPERVISED[kind]
    # The head that transformers puts on a ViT has no part in DINO's weights.
    options = {"add_pooling_layer": False} if kind == "vit" else {}
    model = _built(
        source,
        getattr(transformers, model_name),
        getattr(transformers, config_name),
        config,
        folder,
        **options,
    ).to(device)

    def see(pixels: Tensor) -> Tensor:
        tokens: Tensor = model(pixel_values=pixels.to(device)).last_hidden_state
        return tokens[:, 0]

    def early(pixels: Tensor) -> list[Tensor]:
        return _early(model(pixel_values=pixels.to(device), output_hidden_states=True))

    usual = Preprocessing((side, side), None, None, *IMAGENET_STATISTICS)
    if kind.startswith("dinov2"):
        usual = Preprocessing(None, side, (_CUT, _CUT), *IMAGENET_STATISTICS)
    if kind.startswith("dinov3"):
        usual = replace(usual, resample=Image.Resampling.BILINEAR, rounded=False)
    return Network(read_preprocessing(folder, usual), see, early)


def _early(output: Any) -> list[Tensor]:
    """Of a network that has one hidden state more than blocks. Grids become rows of positions."""
    states: Sequence[Tensor] = output.hidden_states
    last = len(states) - 1
    chosen = [states[max(1, last // 4)], states[max(1, last // 2)]]
    return [x.flatten(2) if x.dim() == 4 else x.transpose(1, 2) for x in chosen]


def _built(
    source: str,
    model_class: Any,
    config_class: Any,
    config: Mapping[str, Any],
    folder: Path,
    **options: Any,
) -> Any:
    """The model with the folder's weights in float32, for looking only. Nothing that the config
    names is imported."""
    from transformers.utils import logging

    known = {k: v for k, v in config.items() if k not in ("architectures", "auto_map", "dtype")}
    tensors = {name: tensor.float() for name, tensor in component_tensors(folder).items()}
    if model_class.__name__ == "ViTModel":
        tensors = {n: t for n, t in tensors.items() if "pooler." not in n}
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model, found = model_class.from_pretrained(
            None,
            config=config_class.from_dict(known),
            state_dict=tensors,
            output_loading_info=True,
            dtype=torch.float32,
            **options,
        )
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(
            f"{source}: the config describes no network that can be built ({shortened(reason)})."
        ) from error
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
    wrong = sorted([*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])])
    if wrong:
        raise ModelError(
            f"{source}: {len(wrong)} tensors of the network are missing or misshapen, first "
            f"{wrong[0]}."
        )
    built: nn.Module = model.requires_grad_(False).eval()
    return built


def _words(source: str, folder: Path) -> Any:
    """The tokenizer beside the weights."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, ImportError, KeyError, TypeError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(
            f"{source}: its tokenizer cannot be read ({shortened(reason)}). It needs a "
            "tokenizer.json beside the weights."
        ) from error

"""CLIP: pictures and words in one space (Radford et al. 2021). Proposes class nouns, and measures
likeness.

Shapes: N pictures, M texts, D shared width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from konomi.errors import ModelError
from konomi.models.folder import component_tensors
from konomi.models.hub import cached_snapshot, download, is_hub_id, wanted_clip_files
from konomi.models.load import BUILTIN
from konomi.models.residual_image_encoder import ResidualImageEncoder
from konomi.models.tensor_files import read_json
from konomi.models.tokenizer import build_tokenizer, read_vocabulary
from konomi.storage.home import expanded

_OPENAI_MEAN, _OPENAI_STD = (
    (0.48145466, 0.4578275, 0.40821073),
    (0.26862954, 0.26130258, 0.27577711),
)


@dataclass(frozen=True, slots=True)
class Clip:
    """Both encoders, and how they want their input."""

    name: str
    model: Any
    """A transformers CLIPModel."""
    tokenizer: Any
    side: int
    """Of the square the image encoder sees, in pixels."""
    mean: Tensor
    """[3, 1, 1], of pixels from 0 to 1."""
    std: Tensor

    @torch.no_grad()
    def image_features(self, images: Sequence[Image.Image], *, batch: int = 16) -> Tensor:
        """Unit vectors [N, D] of pictures, float32 on the CPU: the middle square of each, scaled
        to `side`.
        """
        rows = []
        for start in range(0, len(images), batch):
            pixels = torch.stack([self._pixels(image) for image in images[start : start + batch]])
            pooled = self.model.vision_model(
                pixel_values=pixels.to(self.model.device)
            ).pooler_output
            rows.append(self.model.visual_projection(pooled).float().cpu())
        return functional.normalize(torch.cat(rows), dim=1)

    @torch.no_grad()
    def text_features(self, texts: Sequence[str], *, batch: int = 64) -> Tensor:
        """Unit vectors [M, D] of texts, float32 on the CPU; what exceeds the text encoder's
        positions is cut off.
        """
        rows = []
        for start in range(0, len(texts), batch):
            some = list(texts[start : start + batch])
            ids = self.tokenizer(some, padding=True, truncation=True, return_tensors="pt")[
                "input_ids"
            ]
            pooled = self.model.text_model(input_ids=ids.to(self.model.device)).pooler_output
            rows.append(self.model.text_projection(pooled).float().cpu())
        return functional.normalize(torch.cat(rows), dim=1)

    def zero_shot(
        self,
        images: Sequence[Image.Image],
        nouns: Sequence[str],
        *,
        template: str = "a photo of a {}",
    ) -> Tensor:
        """How likely all pictures together show each noun: [M], adds up to 1.

        The pictures' mean direction is compared with `template` of each noun, at the temperature
        CLIP was trained with.
        """
        image_D = functional.normalize(self.image_features(images).mean(0), dim=0)
        texts_MD = self.text_features([template.format(noun) for noun in nouns])
        scale = self.model.logit_scale.detach().float().exp().cpu()
        shares: Tensor = (scale * texts_MD @ image_D).softmax(0)
        return shares

    def _pixels(self, image: Image.Image) -> Tensor:
        """[3, side, side], as the image encoder was trained."""
        rgb = image.convert("RGB")
        short = min(rgb.size)
        left, top = (rgb.width - short) / 2, (rgb.height - short) / 2
        box = (left, top, left + short, top + short)
        square = rgb.resize((self.side, self.side), Image.Resampling.BICUBIC, box=box)
        pixels = torch.from_numpy(np.array(square)).permute(2, 0, 1).float() / 255
        return (pixels - self.mean) / self.std


def load_clip(source: str | Path = "tiny") -> Clip:
    """`tiny` (the one inside konomi, which knows what the base `tiny` draws), a folder, or a hub
    id of a CLIPModel.

    Raises ModelError in one line: what is missing or wrong.
    """
    if str(source) == "tiny":
        return _builtin()
    folder = clip_folder(source)
    config = read_json(folder / "config.json")
    preparing = folder / "preprocessor_config.json"
    norm = read_json(preparing) if preparing.is_file() else {}
    mean, std = norm.get("image_mean", _OPENAI_MEAN), norm.get("image_std", _OPENAI_STD)
    return _assemble(str(source), config, component_tensors(folder), folder, mean, std)


def clip_folder(source: str | Path) -> Path:
    """Where the files of a CLIPModel are; what is not here is downloaded.

    Raises ModelError: no such folder, no network, or a model of another type.
    """
    folder = expanded(source)
    if not folder.is_dir():
        if folder.exists() or not is_hub_id(str(source)):
            raise ModelError(
                f"{source}: no folder of a CLIP model. Give one with config.json, or a hub id "
                "owner/name."
            )
        cached = cached_snapshot(str(source), None)
        folder = cached or download(
            str(source), None, choose=wanted_clip_files, what="CLIP model with both encoders"
        )
    config = read_json(folder / "config.json")
    if config.get("model_type") != "clip":
        raise ModelError(
            f"{folder}: is of type {config.get('model_type')!r}, not a CLIP model with both "
            "encoders."
        )
    return folder


def _builtin() -> Clip:
    """`tiny` keeps CLIP's text encoder in the base's folder, and the rest beside it."""
    folder = BUILTIN / "tiny"
    text, image = (
        read_json(folder / "text_encoder" / "config.json"),
        read_json(folder / "clip" / "config.json"),
    )
    tensors = {
        name.removeprefix("image."): tensor
        for name, tensor in component_tensors(folder / "clip").items()
    }
    tensors |= component_tensors(folder / "text_encoder")
    # Of the transformer that this describes nothing stays but the sizes around it.
    vision = {
        "image_size": image["image_size"],
        "hidden_size": image["widths"][-1],
        "num_attention_heads": 1,
        "num_hidden_layers": 0,
    }
    config = {
        "text_config": text,
        "vision_config": vision,
        "projection_dim": image["projection_dim"],
    }
    encoder = ResidualImageEncoder(image["widths"])
    return _assemble(
        "tiny", config, tensors, folder / "tokenizer", (0.5,) * 3, (0.5,) * 3, image_tower=encoder
    )


def _assemble(
    name: str,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    tokenizer_folder: Path,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    image_tower: nn.Module | None = None,
) -> Clip:
    """`image_tower` takes the place of the transformer that the config describes."""
    from transformers import CLIPConfig
    from transformers.models.clip.modeling_clip import CLIPModel

    kept = {
        key: value
        for key, value in config.items()
        if key not in ("architectures", "auto_map", "torch_dtype")
    }
    try:
        settings = CLIPConfig(**kept)
        model: nn.Module = CLIPModel(settings)
        if image_tower is not None:
            model.vision_model = image_tower
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(
            f"{name}: the config describes no CLIP that can be built ({error})."
        ) from error
    wanted = model.state_dict()
    floats = {key: tensor.float() for key, tensor in tensors.items() if key in wanted}
    wrong = [key for key in wanted if key not in floats or floats[key].shape != wanted[key].shape]
    if wrong:
        raise ModelError(
            f"{name}: {len(wrong)} tensors of CLIP are missing or misshapen, first {wrong[0]}."
        )
    model.load_state_dict(floats)
    vocabulary, pad = read_vocabulary(tokenizer_folder)
    positions = settings.text_config.max_position_embeddings
    return Clip(
        name=name,
        model=model.requires_grad_(False).eval(),
        tokenizer=build_tokenizer(vocabulary, pad_token=pad, length=positions),
        side=int(settings.vision_config.image_size),
        mean=torch.tensor(mean, dtype=torch.float32)[:, None, None],
        std=torch.tensor(std, dtype=torch.float32)[:, None, None],
    )

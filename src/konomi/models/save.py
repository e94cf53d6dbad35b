"""Save a base, with trained parts in place of its own: a diffusers folder or a single file in the
LDM layout.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from konomi.errors import ModelError
from konomi.families import published_config
from konomi.families.family import DENOISER, VAE, Part, TextEncoderSpec
from konomi.formats.ldm_keys import UNetLayout, transformers_to_openclip, unet_to_ldm, vae_to_ldm
from konomi.formats.writer import check_ending
from konomi.models.base import BaseModel
from konomi.models.infer import DECLARED, infer_text, infer_unet, infer_vae
from konomi.models.latent_diffusion import LatentDiffusion
from konomi.models.noise_config import with_zero_terminal_snr
from konomi.models.parts import complete_config
from konomi.models.prediction import marker_tensors
from konomi.models.single_file import CONFIGS_KEY, VOCABULARY_KEY, SingleFileSource
from konomi.models.tokenizer import clip_vocabulary, write_tokenizer
from konomi.storage.atomic import check_free_space, write_folder
from konomi.storage.tensor_file import check_finite, write_tensors

_SLACK = 16 << 20
_LOGIT_SCALE = 4.6052
"""ln 100, what every CLIP ends up with; unused here, but other tools look for it."""


def save_folder(
    base: BaseModel,
    path: str | Path,
    *,
    dtype: torch.dtype,
    tensors: Mapping[str, Tensor] | None = None,
    replace: bool = False,
) -> None:
    """A diffusers folder. `tensors` (canonical `PART.PATH`) stand in for the base's own.

    A part that is loaded is saved as it is in memory, unless it was converted to half precision on
    loading: then it is taken from where it came from. Atomic: `path` appears complete or not at
    all; it must not exist, or is replaced with `replace`. Raises RunError for a lack of space and
    FileFormatError naming a tensor with NaN or infinity.
    """
    path, base = Path(path), _latent_diffusion(base)
    check_ending(path, ("",), "a whole model")
    replaced = _by_part(base, tensors or {})
    check_free_space(path.parent, _size(base, dtype))
    with write_folder(path, replace=replace) as folder:
        for part in base.parts:
            state = _final(base, part, replaced.get(part, {}), dtype)
            spec = base.spec.part(part)
            target = folder / spec.folder
            target.mkdir()
            text = isinstance(spec, TextEncoderSpec)
            file = "model.safetensors" if text else "diffusion_pytorch_model.safetensors"
            write_tensors(target / file, state, {"format": "pt"})
            config = complete_config(spec, base.source.configs[spec.folder])
            if text:
                config["torch_dtype"] = config["dtype"] = str(dtype).removeprefix("torch.")
            _write_json(target / "config.json", config)
        for encoder in base.spec.text_encoders:
            vocabulary, pad = base.source.vocabulary(encoder.tokenizer)
            write_tokenizer(
                folder / encoder.tokenizer, vocabulary, pad_token=pad, length=base.num_positions
            )
        scheduler = {**_published_scheduler(base), **base.scheduler}
        (folder / "scheduler").mkdir()
        _write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
        _write_json(folder / "model_index.json", _model_index(base, scheduler["_class_name"]))


def save_single_file(
    base: BaseModel,
    path: str | Path,
    *,
    dtype: torch.dtype,
    tensors: Mapping[str, Tensor] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """A .safetensors file in the LDM layout with the classic names, which every tool reads.

    Where the base's architecture is not the published one, the file says what its shapes cannot
    (`konomi.configs`, `konomi.vocabulary`). Arguments and errors as for `save_folder`; an existing
    file is replaced in one step.
    """
    path, base = Path(path), _latent_diffusion(base)
    check_ending(path, (".safetensors",), "a whole model")
    replaced = _by_part(base, tensors or {})
    content: dict[str, Tensor] = {}
    for part in base.parts:
        content.update(_to_ldm(base, part, _final(base, part, replaced.get(part, {}), dtype)))
    content.update(
        marker_tensors(base.process.prediction, zero_terminal_snr=base.zero_terminal_snr)
    )
    check_free_space(
        path.parent,
        _SLACK + sum(tensor.numel() * tensor.element_size() for tensor in content.values()),
    )
    write_tensors(path, content, {**single_file_metadata(base, content), **(metadata or {})})


def _latent_diffusion(base: BaseModel) -> LatentDiffusion:
    if not isinstance(base, LatentDiffusion):
        raise ModelError(f"{base.name}: a {type(base).__name__} cannot be saved as a model.")
    return base


def _by_part(base: LatentDiffusion, tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    result: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        part, _, name = key.partition(".")
        if part not in base.parts:
            raise ModelError(
                f"{key}: {base.name} has no part {part!r}; its parts: {', '.join(base.parts)}."
            )
        result.setdefault(part, {})[name] = tensor
    return result


def _final(
    base: LatentDiffusion, part: Part, replaced: Mapping[str, Tensor], dtype: torch.dtype
) -> dict[str, Tensor]:
    """A part's tensors as they go into the file."""
    state = _own_tensors(base, part)
    for name, tensor in replaced.items():
        if name not in state:
            raise ModelError(f"{part}.{name}: {base.name} has no such tensor.")
        if tensor.shape != state[name].shape:
            raise ModelError(
                f"{part}.{name} has shape {list(tensor.shape)}, the base's "
                f"{list(state[name].shape)}."
            )
        state[name] = tensor.detach()
    check_finite(state, base.name)
    return {name: tensor.to("cpu", dtype).contiguous() for name, tensor in state.items()}


def _own_tensors(base: LatentDiffusion, part: Part) -> dict[str, Tensor]:
    """The base's own, in the best precision there is of them."""
    live = base.state(part) if part in base.loaded_parts() else {}
    if live and all(tensor.dtype == torch.float32 for tensor in live.values()):
        return live
    stored = base.source.tensors(part)
    return {
        name: live[name] if name in live and live[name].dtype == tensor.dtype else tensor
        for name, tensor in stored.items()
        if not name.endswith("position_ids")
    }


def _size(base: LatentDiffusion, dtype: torch.dtype) -> int:
    count = sum(
        tensor.numel() for part in base.parts for tensor in _own_tensors(base, part).values()
    )
    return _SLACK + count * (torch.finfo(dtype).bits // 8)


def _to_ldm(base: LatentDiffusion, part: Part, state: dict[str, Tensor]) -> dict[str, Tensor]:
    spec = base.spec.part(part)
    config = base.source.configs[spec.folder]
    if part == DENOISER:
        layout = UNetLayout.from_config(config)
        return {
            f"{spec.file_prefix}{_known(unet_to_ldm(name, layout), name)}": t
            for name, t in state.items()
        }
    if part == VAE:
        levels, layers = len(config["block_out_channels"]), int(config["layers_per_block"])
        named = {
            _known(vae_to_ldm(name, levels=levels, layers=layers), name): t
            for name, t in state.items()
        }
        return {
            f"{spec.file_prefix}{name}": _as_convolution(name, tensor)
            for name, tensor in named.items()
        }
    encoder = base.spec.text_encoder(part)
    if not encoder.open_clip:
        return {f"{encoder.file_prefix}{name}": tensor for name, tensor in state.items()}
    result = {
        f"{encoder.file_prefix}{name}": tensor
        for name, tensor in transformers_to_openclip(state).items()
    }
    return {**_openclip_rest(base, encoder, result), **result}


def _openclip_rest(
    base: LatentDiffusion, encoder: TextEncoderSpec, result: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """What OpenCLIP's layout has and transformers' lacks: from the base's own file, or the nearest
    thing to it.
    """
    dtype = result[f"{encoder.file_prefix}token_embedding.weight"].dtype
    source: Any = base.source
    source = getattr(source, "main", source)  # The VAE may be from elsewhere.
    kept: dict[str, Tensor] = {}
    if isinstance(source, SingleFileSource):
        kept = {
            n: t.to(dtype)
            for n, t in source.leftovers().items()
            if n.startswith(encoder.file_prefix)
        }
    rest = {f"{encoder.file_prefix}logit_scale": torch.tensor(_LOGIT_SCALE, dtype=dtype)}
    if not encoder.pooled:
        width = base.source.configs[encoder.part]["hidden_size"]
        rest[f"{encoder.file_prefix}text_projection"] = torch.eye(int(width), dtype=dtype)
    last = int(base.source.configs[encoder.part]["num_hidden_layers"]) - 1
    block = f"{encoder.file_prefix}transformer.resblocks."
    for extra in range(encoder.file_extra_layers):
        for name, tensor in result.items():
            if name.startswith(f"{block}{last}."):
                rest[name.replace(f"{block}{last}.", f"{block}{last + 1 + extra}.")] = (
                    tensor.clone()
                )
    return {**rest, **kept}


def _as_convolution(name: str, tensor: Tensor) -> Tensor:
    attention = ".mid.attn_1." in f".{name}" and tensor.ndim == 2
    return tensor[:, :, None, None] if attention else tensor


def _known(ldm_name: str | None, name: str) -> str:
    if ldm_name is None:
        raise ModelError(
            f"{name} has no name in the LDM layout: this architecture can only be saved as a "
            "folder."
        )
    return ldm_name


def single_file_metadata(base: LatentDiffusion, content: Mapping[str, Tensor]) -> dict[str, str]:
    """What a single file says of itself: modelspec's facts, and what the shapes do not tell of an
    unusual architecture.

    content: its tensors by name; only their shapes count.
    """
    side = base.resolution
    result = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": base.spec.variant(base.process.prediction).architecture,
        "modelspec.prediction_type": base.process.prediction,
        "modelspec.resolution": f"{side}x{side}",
    }
    shapes = {name: tuple(tensor.shape) for name, tensor in content.items()}
    inferred: dict[str, dict[str, Any]] = {
        "unet": infer_unet(base.spec, shapes, {}, check=False),
        "vae": infer_vae(base.spec, shapes, {}, check=False),
        "scheduler": _published_scheduler(base),
        **{
            encoder.part: infer_text(base.spec, encoder, shapes, {})
            for encoder in base.spec.text_encoders
        },
    }
    inferred["unet"]["sample_size"] = (
        base.spec.variant(base.process.prediction).resolution // base.spec.vae.latent_factor
    )
    inferred["scheduler"]["prediction_type"] = base.scheduler.get("prediction_type", "epsilon")
    unusual = {}
    for name, settings in DECLARED.items():
        actual = base.scheduler if name == "scheduler" else base.source.configs.get(name, {})
        differing = {
            s: actual[s] for s in settings if s in actual and actual[s] != inferred[name].get(s)
        }
        if name in inferred and actual.get("hidden_size") != published_config(base.spec, name).get(
            "hidden_size"
        ):
            # A tool that drops the layers nobody reads must not change which one is read.
            differing["num_hidden_layers"] = actual["num_hidden_layers"]
        if differing:
            unusual[name] = differing
    if unusual:
        result[CONFIGS_KEY] = json.dumps(unusual, sort_keys=True)
    vocabulary, _ = base.source.vocabulary(base.spec.text_encoders[0].tokenizer)
    if vocabulary != clip_vocabulary():
        result[VOCABULARY_KEY] = json.dumps(vocabulary.to_json(), ensure_ascii=False)
    return result


def _published_scheduler(base: LatentDiffusion) -> dict[str, Any]:
    """The family's, with a process that ends in pure noise where the base has that."""
    config = published_config(base.spec, "scheduler")
    return with_zero_terminal_snr(config) if base.zero_terminal_snr else config


def _model_index(base: LatentDiffusion, scheduler_class: str) -> dict[str, Any]:
    pipeline = base.spec.pipeline
    index: dict[str, Any] = {
        "_class_name": pipeline.inpaint_class_name if base.inpainting else pipeline.class_name,
        "_diffusers_version": "0.36.0",
        "feature_extractor": [None, None],
        "scheduler": ["diffusers", scheduler_class],
        **pipeline.entries,
        **(pipeline.inpaint_entries if base.inpainting else {}),
    }
    for part in (base.spec.denoiser, base.spec.vae):
        index[part.folder] = ["diffusers", part.class_name]
    for encoder in base.spec.text_encoders:
        index[encoder.folder] = ["transformers", encoder.class_name]
        index[encoder.tokenizer] = ["transformers", encoder.tokenizer_class]
    return dict(sorted(index.items()))


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8", newline="\n")

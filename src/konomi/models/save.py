"""Save a base, with trained parts in place of its own: a diffusers folder or a single file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from konomi.errors import ModelError
from konomi.families.family import Part, TextEncoderSpec
from konomi.formats.writer import check_ending
from konomi.models.architectures import architecture_of
from konomi.models.base import BaseModel
from konomi.models.latent_diffusion import LatentDiffusion
from konomi.models.noise_config import published_scheduler
from konomi.models.parts import complete_config
from konomi.models.prediction import marker_tensors
from konomi.storage.atomic import check_free_space, write_folder
from konomi.storage.tensor_file import check_finite, write_tensors

_SLACK = 16 << 20


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
            tokenizer = base.source.tokenizer(encoder.tokenizer)
            tokenizer.write(folder / encoder.tokenizer, length=base.text_traits.num_positions)
        usual = published_scheduler(base.spec, zero_terminal_snr=base.zero_terminal_snr)
        scheduler = {**usual, **base.scheduler}
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
    """A .safetensors file in the layout and with the names that the family was published in, which
    every tool reads.

    Where the base's sizes are not the published ones, the file says what its shapes cannot
    (`konomi.configs`, `konomi.vocabulary`). Arguments and errors as for `save_folder`, and
    ModelError for a family that has no such form; an existing file is replaced in one step.
    """
    path, base = Path(path), _latent_diffusion(base)
    layout = architecture_of(base.spec).single_file
    if layout is None:
        raise ModelError(
            f"{path}: {base.spec.title} has no form in one file. Save it as a diffusers folder."
        )
    check_ending(path, (".safetensors",), "a whole model")
    replaced = _by_part(base, tensors or {})
    content: dict[str, Tensor] = {}
    for part in base.parts:
        state = _final(base, part, replaced.get(part, {}), dtype)
        content.update(layout.tensors(base, part, state))
    content.update(
        marker_tensors(base.process.prediction, zero_terminal_snr=base.zero_terminal_snr)
    )
    check_free_space(
        path.parent,
        _SLACK + sum(tensor.numel() * tensor.element_size() for tensor in content.values()),
    )
    write_tensors(path, content, {**layout.metadata(base, content), **(metadata or {})})


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
    if part in base.attached.parts:
        # With the adapters that belong to it, rounded once.
        exact = LatentDiffusion(base.source, name=base.name)
        exact.keep_attached(base.attached)
        return exact.state(part)
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

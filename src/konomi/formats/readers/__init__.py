"""Where a file works: the loading rules of ComfyUI, A1111 and diffusers, applied to what a file
holds.

One module for each program. A rule says of each layer, word or network whether it is used as it is
meant; most of what these programs cannot use they skip with a line in a log at best.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from konomi.adapters.adapter import Adapter
from konomi.families import known_family
from konomi.families.family import VAE
from konomi.families.foreign_names import embedding_names, part_of_folder
from konomi.formats import edit_states
from konomi.formats.readers import a1111, comfyui, diffusers
from konomi.formats.readers.named_layers import layers_of
from konomi.formats.readers.reading import Reading, counted, refused, sentences
from konomi.formats.source import Source
from konomi.storage.sniff import FileKind

__all__ = ["Reading", "checkpoint_readings", "readings", "sentences"]

_WEB_UIS = (comfyui.NAME, a1111.NAME)


def readings(source: Source, format_name: str, adapter: Adapter) -> tuple[Reading, ...]:
    """What each program makes of an adapter file; () where nothing can be told."""
    if _is_unknown(adapter.family):
        return ()
    if adapter.hypernetwork is not None:
        suffix = (
            ".pt"
            if source.kind in (FileKind.TORCH_ZIP, FileKind.TORCH_LEGACY)
            else source.path.suffix
        )
        widths, activation = list(adapter.hypernetwork.pairs), adapter.hypernetwork.activation
        return tuple(
            rule.hypernetwork(widths, activation, suffix) for rule in (comfyui, a1111, diffusers)
        )
    if not adapter.layers and adapter.embeddings:
        return _embedding(source, format_name, adapter)
    if format_name == "custom diffusion":
        return _custom_diffusion(source, adapter)
    if source.kind is FileKind.FOLDER or not source.shapes or format_name == "cloneofsimo":
        what = "PEFT's folders" if source.kind is FileKind.FOLDER else f"{format_name} files"
        found = [
            refused(who, adapter.layers, f"{what} are not read; convert with --to kohya")
            for who in _WEB_UIS
        ]
        own = (
            "PeftModel.from_pretrained(pipe.unet, FOLDER) does"
            if source.kind is FileKind.FOLDER
            else "their own do"
        )
        reason = f"load_lora_weights does not read {what}; {own}"
        return (*found, refused(diffusers.NAME, adapter.layers, reason))
    # Text states are no layers: no program looks for them.
    weights = {n: s for n, s in source.shapes.items() if not n.startswith(edit_states.PREFIX)}
    layers = layers_of(weights)
    alphas = _alphas({layer.name for layer in layers}, source)
    return (
        comfyui.lora(layers, adapter.family),
        a1111.lora(layers, adapter.family),
        diffusers.lora(layers, adapter.family, alphas),
    )


def checkpoint_readings(
    source: Source, parts: Mapping[str, int], family: str
) -> tuple[Reading, ...]:
    """What each program makes of a whole model; () where nothing can be told."""
    if _is_unknown(family):
        return ()
    names = [part for part in (*part_of_folder().values(), VAE) if part in parts]
    if source.kind is FileKind.FOLDER:
        reason = "diffusers' folders are not read; convert with --to webui"
        found = [refused(who, names or ["model"], reason, unit="parts") for who in _WEB_UIS]
        whole = counted(
            diffusers.NAME,
            parts,
            {},
            unit="parts",
            place="DiffusionPipeline.from_pretrained(FOLDER)",
        )
        return (*found, whole)
    missing = [part for part in ("text_encoder", "vae") if part not in parts]
    lacks = (
        (f"has no {' and no '.join(missing)}, which must be chosen beside it",) if missing else ()
    )
    places = (
        "models/checkpoints",
        "models/Stable-diffusion",
        "StableDiffusionPipeline.from_single_file(FILE)",
    )
    if not family or not names:
        return ()
    return tuple(
        Reading(who, len(names), len(names), "parts", lacks, place)
        for who, place in zip((*_WEB_UIS, diffusers.NAME), places, strict=True)
    )


def _is_unknown(family: str) -> bool:
    """Whether it is of a family for which no rules of other programs are written down."""
    known = known_family(family)
    return known is not None and not known.has_readers


def _embedding(source: Source, format_name: str, adapter: Adapter) -> tuple[Reading, ...]:
    words = {
        word: {part: (int(tensor.shape[0]), int(tensor.shape[1])) for part, tensor in parts.items()}
        for word, parts in adapter.embeddings.items()
    }
    form = "table" if format_name == "diffusers" else "file"
    several = next((parts for parts in words.values() if len(parts) > 1), None)
    wanted = list(embedding_names(several).values()) if several else []
    suffix = source.path.suffix.lower()
    if source.shapes and not set(wanted) <= set(source.shapes):
        known = " and ".join(wanted)
        reason = (
            f"the vectors of two text encoders are only known as {known}; convert with --to webui"
        )
        found = [refused(who, words, reason, unit="words") for who in _WEB_UIS]
        return (*found, diffusers.embedding(words, suffix, form))
    return tuple(rule.embedding(words, suffix, form) for rule in (comfyui, a1111, diffusers))


def _custom_diffusion(source: Source, adapter: Adapter) -> tuple[Reading, ...]:
    reason = "Custom Diffusion's own files are not read; convert with --to webui --base BASE"
    found = [refused(who, adapter.layers, reason) for who in _WEB_UIS]
    if any("_custom_diffusion." in name for name in source.shapes) and adapter.layers:
        place = (
            "pipe.unet.load_attn_procs(FOLDER, weight_name=...), pipe.load_textual_inversion "
            "for each word"
        )
        return (*found, counted(diffusers.NAME, adapter.layers, {}, place=place))
    reason = "only its authors' scripts read delta.bin; convert with --to diffusers --base BASE"
    return (*found, refused(diffusers.NAME, adapter.layers, reason))


def _alphas(names: set[str], source: Source) -> dict[str, float]:
    wanted = {
        f"{name}.alpha": name for name in names if source.shapes.get(f"{name}.alpha") in ((), (1,))
    }
    tensors: Mapping[str, Tensor] = source.tensors() if wanted else {}
    return {
        wanted[name]: float(tensor.item()) for name, tensor in tensors.items() if name in wanted
    }

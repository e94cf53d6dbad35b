"""Custom Diffusion (Kumari et al. 2022): whole weights of cross-attention's keys and values, and
learned words.

| file | weights | words |
|---|---|---|
| authors' `delta.bin` | `unet`: {"...attn2.to_k.weight": W'}, perhaps `text_encoder` |
`modifier_token`: {word: [D]} |
| the same, compressed | {"u": [O, R], "v": [R, I]} in place of W': W' = W + u v | the same |
| diffusers' folder | `pytorch_custom_diffusion_weights.safetensors` (or .bin) | a file each beside
it |

diffusers wants an entry for self-attention too, which is left as it is: an empty tensor stands for
it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from konomi.adapters.adapter import Adapter
from konomi.adapters.kinds import Difference, LayerUpdate, LowRank, Replacement
from konomi.config.parse import parse_json
from konomi.errors import FileFormatError
from konomi.families.foreign_names import part_of_embedding_name
from konomi.families.recognition import reads_text
from konomi.formats import kohya
from konomi.formats.family import family_of
from konomi.formats.source import CUSTOM_DIFFUSION_NAMES, Parsed, Source, fault, open_source
from konomi.formats.writer import WriteOptions, Writer
from konomi.storage.atomic import write_folder
from konomi.storage.pickles import write_pickle
from konomi.storage.tensor_file import check_finite, is_finite, write_tensors

NAME = "custom diffusion"
_WORDS = "konomi_words"
"""Metadata of the folder's weights: JSON list of the files that hold the words."""
_LAYER = re.compile(
    r"(?P<path>(?:down_blocks|up_blocks|mid_block)\..+\.attn[12])\.(?:processor\.)?"
    r"(?P<layer>to_q|to_k|to_v|to_out)(?:_custom_diffusion)?(?P<index>\.0)?\.(?P<half>weight|bias)"
)
_TEXT_LAYER = re.compile(
    r"(?:text_model\.)?(?P<path>encoder\.layers\.\d+\.\S+|final_layer_norm)\.(?P<half>weight|bias)"
)
_TEXT_FROZEN = re.compile(
    r"(?:text_model\.)?embeddings\.(?:token_embedding|position_embedding)\.weight|.*position_ids"
)
"""The authors train no more of these than the rows of the words, which stand under
`modifier_token`."""
_TOKEN_FILE = re.compile(r"<[^<>]+>\.(?:safetensors|bin)")
_EMBEDDING_PARTS = part_of_embedding_name()
_NEEDS_BASE = (
    "what was learned cannot be told from the weights without the base. Name it: --base BASE."
)


def recognise(source: Source) -> bool:
    """Whether it is one of the three."""
    if any("_custom_diffusion." in name for name in source.shapes):
        return True
    value = source.value
    if not isinstance(value, dict) or not isinstance(value.get("unet"), dict):
        return False
    return (
        "modifier_token" in value
        or "text_encoder" in value
        or any(".attn2." in str(key) for key in value["unet"])
    )


def parse(source: Source) -> Parsed:
    """Read any of them. Raises FileFormatError naming a tensor of a wrong shape, or a file of the
    folder's that is missing.
    """
    halves: dict[str, dict[str, Any]] = {}
    unknown: list[str] = []
    if isinstance(source.value, dict) and isinstance(source.value.get("unet"), dict):
        _collect(source.value["unet"], "denoiser", halves, unknown)
        text = source.value.get("text_encoder")
        if isinstance(text, dict):
            _collect(text, "text_encoder", halves, unknown)
        words = _words_of_table(source, source.value.get("modifier_token", {}))
    else:
        _collect(source.tensors(), "denoiser", halves, unknown)
        words = _words_beside(source)
    layers = {key: _layer(source, key, parts) for key, parts in halves.items()}
    _check_width(source, layers, words)
    metadata = {
        name: value for name, value in source.metadata.items() if name not in ("format", _WORDS)
    }
    adapter = Adapter(layers, words, metadata, "", source.name)
    return Parsed(
        replace(adapter, family=family_of(adapter)), tuple(sorted(unknown)), used=_used(source)
    )


def _used(source: Source) -> frozenset[str]:
    """Every weight and word; of a compressed weight its two factors."""
    if not isinstance(source.value, dict) or not isinstance(source.value.get("unet"), dict):
        return frozenset(source.shapes)
    names = [
        name
        for name in source.names
        if name.partition(".")[0] in ("unet", "text_encoder", "modifier_token")
    ]
    compressed = {
        f"unet.{name}." for name, value in source.value["unet"].items() if isinstance(value, dict)
    }
    factors = {f"{start}{factor}" for start in compressed for factor in ("u", "v")}
    return frozenset(
        name for name in names if name in factors or not name.startswith(tuple(compressed))
    )


def _collect(
    table: Mapping[Any, Any], part: str, halves: dict[str, dict[str, Any]], unknown: list[str]
) -> None:
    """Sort a table's entries by layer: canonical key -> {"weight" or "bias": value}."""
    for name, value in table.items():
        if isinstance(value, Tensor) and not value.numel() and str(name).endswith(".processor"):
            continue
        if part == "denoiser":
            match = _LAYER.fullmatch(str(name))
            key = (
                f"denoiser.{match['path']}.{match['layer']}{match['index'] or ''}" if match else ""
            )
        else:
            match = _TEXT_LAYER.fullmatch(str(name))
            key = f"text_encoder.text_model.{match['path']}" if match else ""
            if _TEXT_FROZEN.fullmatch(str(name)):
                continue
        if match:
            halves.setdefault(key, {})[match["half"]] = value
        else:
            unknown.append(str(name))


def _layer(source: Source, key: str, parts: dict[str, Any]) -> LayerUpdate:
    weight, bias = parts.get("weight"), parts.get("bias")
    if isinstance(weight, dict):
        return _compressed_layer(source, key, weight)
    if not isinstance(weight, Tensor):
        raise fault(
            source.path, f"{key}.weight", "is missing" if weight is None else "is not a tensor"
        )
    wanted = (1, 2) if key.startswith("text_encoder.") else (2,)
    if weight.dim() not in wanted or not weight.numel() or not weight.is_floating_point():
        raise fault(
            source.path, f"{key}.weight", f"has shape {list(weight.shape)} and type {weight.dtype}"
        )
    if bias is not None and not (
        isinstance(bias, Tensor) and tuple(bias.shape) == tuple(weight.shape[:1])
    ):
        raise fault(
            source.path, f"{key}.bias", f"does not belong to a weight of shape {list(weight.shape)}"
        )
    return Replacement(weight.detach(), None, None if bias is None else bias.detach())


def _compressed_layer(source: Source, key: str, factors: Mapping[Any, Any]) -> LowRank:
    u, v = factors.get("u"), factors.get("v")
    for name, factor in (("u", u), ("v", v)):
        if not isinstance(factor, Tensor) or factor.dim() != 2 or not factor.is_floating_point():
            raise fault(source.path, f"{key}.weight", f"has no matrix {name!r}")
    assert isinstance(u, Tensor) and isinstance(v, Tensor)
    if u.shape[1] != v.shape[0] or not u.numel() or not v.numel():
        raise fault(
            source.path,
            f"{key}.weight",
            f"has factors {list(u.shape)} and {list(v.shape)}, of no common rank",
        )
    return LowRank(v.detach(), u.detach(), float(v.shape[0]))


def _words_of_table(source: Source, table: Any) -> dict[str, dict[str, Tensor]]:
    if not isinstance(table, dict):
        raise fault(source.path, "modifier_token", "is not a table of words")
    return {
        str(word): {"text_encoder": _vectors(source.path, str(word), value)}
        for word, value in table.items()
    }


def _words_beside(source: Source) -> dict[str, dict[str, Tensor]]:
    """The words' files, those the weights name, or `<new1>.bin` and the like, as diffusers' own
    script writes them.
    """
    folder = source.path.parent
    if _WORDS in source.metadata:
        names = _named_files(source)
    else:
        names = sorted(path.name for path in folder.iterdir() if _TOKEN_FILE.fullmatch(path.name))
    found: dict[str, dict[str, Tensor]] = {}
    for name in names:
        path = folder / name
        if not path.is_file():
            raise FileFormatError(
                f"{path}: is missing; it holds a word that belongs to {source.path.name} beside it."
            )
        inside = open_source(path)
        word = inside.metadata.get("word", "")
        for entry, value in inside.tensors().items():
            part = _EMBEDDING_PARTS.get(entry, "text_encoder")
            found.setdefault(word or entry, {})[part] = _vectors(path, entry, value)
    return found


def _named_files(source: Source) -> list[str]:
    try:
        names = parse_json(source.metadata[_WORDS])
    except ValueError as error:
        raise fault(source.path, f"metadata {_WORDS}", f"is not JSON ({error})") from error
    # A name never leads out of the folder.
    if not isinstance(names, list) or not all(
        isinstance(n, str) and n == Path(n).name for n in names
    ):
        raise fault(source.path, f"metadata {_WORDS}", "is not a list of file names")
    return names


def _vectors(path: Path, word: str, value: Any) -> Tensor:
    if (
        not isinstance(value, Tensor)
        or value.dim() not in (1, 2)
        or not value.numel()
        or not value.is_floating_point()
    ):
        raise fault(path, word, "is not a vector")
    if not is_finite(value):
        raise fault(path, word, "holds NaN or infinity; the file is broken. Use another save of it")
    return value.detach().reshape(-1, value.shape[-1])


def _check_width(
    source: Source, layers: Mapping[str, LayerUpdate], words: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """The text encoders' widths add up to what cross-attention reads, and all of it reads
    the same.
    """
    width = 0
    for key, update in layers.items():
        if not reads_text(key):
            continue
        read = update.input_width
        assert read is not None
        if width and read != width:
            raise fault(source.path, key, f"reads text states {read} wide, others {width}")
        width = read
    for word, vectors in words.items():
        total = sum(tensor.shape[1] for tensor in vectors.values())
        if width and total != width:
            raise fault(
                source.path,
                word,
                f"is {total} wide, but cross-attention reads text states {width} wide",
            )


def write_diffusers(adapter: Adapter, path: Path, options: WriteOptions) -> None:
    """A folder for `unet.load_attn_procs(folder, weight_name=..., _pipeline=pipe)` and
    `load_textual_inversion`.

    Raises FileFormatError for layers other than cross-attention's, and for differences without
    their base.
    """
    tensors: dict[str, Tensor] = {}
    for name, tensor in _whole_weights(adapter, path).items():
        attention, layer = re.fullmatch(r"(.+\.attn2)\.(to_\w+(?:\.0)?\.\w+)", name).groups()  # type: ignore[union-attr]
        projection, rest = layer.split(".", 1)
        tensors[f"{attention}.processor.{projection}_custom_diffusion.{rest}"] = tensor
        tensors[f"{attention[:-1]}1.processor"] = torch.zeros(0)
    files = _word_files(adapter)
    kept = {
        name: value
        for name, value in adapter.metadata.items()
        if not name.startswith(("sshs_", "modelspec.hash"))
    }
    kept |= {"format": "pt", _WORDS: json.dumps(list(files), ensure_ascii=False)}
    with write_folder(path, replace=options.replace_folder) as temporary:
        write_tensors(
            temporary / CUSTOM_DIFFUSION_NAMES[0], kohya.cast_floats(tensors, options.dtype), kept
        )
        for name, word in files.items():
            vectors = adapter.embeddings[word]
            # With two text encoders diffusers is handed clip_l and clip_g one after the other, so
            # the name is ours.
            parts = (
                {word: vectors["text_encoder"]}
                if len(vectors) == 1
                else kohya.embedding_parts(vectors)
            )
            write_tensors(
                temporary / name,
                kohya.cast_floats(parts, options.dtype),
                {"format": "pt", "word": word},
            )


def _word_files(adapter: Adapter) -> dict[str, str]:
    """File name -> word; names that every system allows."""
    files: dict[str, str] = {}
    for word in adapter.embeddings:
        stem = re.sub(r"[^\w.-]+", "", word).strip(".") or "word"
        number = 1
        while (name := f"{stem}{'' if number == 1 else f'-{number}'}.safetensors") in files:
            number += 1
        files[name] = word
    return files


def write_delta(adapter: Adapter, path: Path, options: WriteOptions) -> None:
    """The authors' `delta.bin`; low-rank layers become `u` and `v`. Raises FileFormatError for
    what it cannot hold.
    """
    factored = ((key, layer.as_low_rank()) for key, layer in adapter.layers.items())
    low_rank = {key: layer for key, layer in factored if layer is not None}
    whole = replace(
        adapter, layers={key: layer for key, layer in adapter.layers.items() if key not in low_rank}
    )
    unet: dict[str, Any] = (
        dict(kohya.cast_floats(_whole_weights(whole, path), options.dtype)) if whole.layers else {}
    )
    for key, layer in low_rank.items():
        if (
            not key.startswith("denoiser.")
            or layer.mid is not None
            or layer.magnitude is not None
            or layer.bias is not None
        ):
            raise FileFormatError(f"{path}: delta.bin has no place for {key}.")
        up = layer.up.to(torch.float32) * (layer.alpha / layer.down.shape[0])
        factors = {"u": up.to(layer.up.dtype), "v": layer.down}
        check_finite(factors, str(path))
        unet[f"{key.removeprefix('denoiser.')}.weight"] = kohya.cast_floats(factors, options.dtype)
    check_finite(
        {name: value for name, value in unet.items() if isinstance(value, Tensor)}, str(path)
    )
    words: dict[str, Tensor] = {}
    for word, vectors in adapter.embeddings.items():
        if list(vectors) != ["text_encoder"] or len(vectors["text_encoder"]) != 1:
            raise FileFormatError(
                f"{path}: delta.bin holds one vector of one text encoder for a word; {word!r} has "
                "more. Use --to diffusers or webui."
            )
        words[word] = vectors["text_encoder"][0].clone()
    check_finite(words, str(path))
    write_pickle(path, {"unet": unet, "modifier_token": kohya.cast_floats(words, options.dtype)})


def write_webui(adapter: Adapter, path: Path, options: WriteOptions) -> None:
    """A kohya file of differences (LyCORIS' `diff`) with bundled words. Raises FileFormatError
    without the base.
    """
    layers: dict[str, LayerUpdate] = {}
    for key, layer in adapter.layers.items():
        difference = layer.difference()
        if difference is None or layer.bias is not None:
            raise FileFormatError(f"{path}: {_NEEDS_BASE}")
        layers[key] = Difference(difference)
    lycoris = {
        "ss_network_module": "lycoris.kohya",
        "ss_network_args": json.dumps({"algo": Difference.about.algo}),
    }
    differences = replace(adapter, layers=layers, metadata=adapter.metadata | lycoris)
    kohya.write(differences, path, dtype=options.dtype, layout=options.layout)


def _whole_weights(adapter: Adapter, path: Path) -> dict[str, Tensor]:
    """The denoiser's `PATH.weight` (and `.bias`) -> tensor."""
    found: dict[str, Tensor] = {}
    for key, layer in adapter.layers.items():
        if not key.startswith("denoiser.") or ".attn2." not in key:
            raise FileFormatError(
                f"{path}: Custom Diffusion changes only cross-attention; {key} has no place in it."
            )
        if layer.whole is None:
            raise FileFormatError(f"{path}: it holds whole weights, and {_NEEDS_BASE}")
        name = key.removeprefix("denoiser.")
        found[f"{name}.weight"] = layer.whole
        if layer.bias is not None:
            found[f"{name}.bias"] = layer.bias
    return found


WRITERS = (
    Writer("custom diffusion", ("diffusers",), "", write_diffusers),
    Writer("custom diffusion", ("custom",), ".bin", write_delta),
    Writer("custom diffusion", ("webui", "kohya"), ".safetensors", write_webui),
)

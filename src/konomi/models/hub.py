"""Bases from the Hugging Face hub: only the files that konomi reads, from the cache where they are
there already.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from konomi.errors import ModelError
from konomi.families import FAMILIES, titles
from konomi.families.recognition import denoiser_folders

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_PARTS = tuple(dict.fromkeys(spec.folder for family in FAMILIES for spec in family.parts))
_TOKENIZERS = tuple(
    dict.fromkeys(spec.tokenizer for family in FAMILIES for spec in family.text_encoders)
)
_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")


def is_hub_id(source: str) -> bool:
    """`owner/name`."""
    return _ID.fullmatch(source) is not None and not source.lower().endswith(
        (".safetensors", ".ckpt", ".pt", ".bin")
    )


def wanted_files(names: Sequence[str]) -> list[str]:
    """Of all files of a repository those of a diffusers folder, each weight once: safetensors
    before pickles, full precision before half. Without such a folder, the only .safetensors file
    at the top, if there is just one.
    """
    wanted = [
        name
        for name in names
        if name == "model_index.json"
        or name in [f"{part}/config.json" for part in _PARTS]
        or (
            name.partition("/")[0] in ("scheduler", *_TOKENIZERS)
            and re.fullmatch(r"\w+/[\w.]+\.(json|txt)", name)
        )
    ]
    if not any(f"{folder}/config.json" in wanted for folder in denoiser_folders()):
        files = [name for name in names if "/" not in name and name.endswith(".safetensors")]
        return files if len(files) == 1 else []
    for part in _PARTS:
        wanted += _weights(part, names)
    return wanted


def _weights(part: str, names: Sequence[str]) -> list[str]:
    for ending in ("safetensors", "bin"):
        for variant in ("", ".fp16"):
            for stem in _STEMS:
                single = f"{part}/{stem}{variant}.{ending}"
                if single in names:
                    return [single]
                if f"{part}/{stem}.{ending}.index{variant}.json" in names:
                    shard = re.compile(rf"{part}/{stem}{re.escape(variant)}-\d+-of-\d+\.{ending}")
                    index = f"{part}/{stem}.{ending}.index{variant}.json"
                    return [index, *(name for name in names if shard.fullmatch(name))]
    return []


def cached_snapshot(source: str, revision: str | None) -> Path | None:
    """The folder of a repository in the local cache, if it is there. Asks nobody."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(str(snapshot_download(source, revision=revision, local_files_only=True)))
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        return None


def wanted_clip_files(names: Sequence[str]) -> list[str]:
    """Of all files of a repository those of a CLIPModel: config, tokenizer, preprocessing, weights
    once.
    """
    known = (
        "config.json",
        "preprocessor_config.json",
        "vocab.json",
        "merges.txt",
        "tokenizer_config.json",
    )
    weights = [name for name in ("model.safetensors", "pytorch_model.bin") if name in names]
    if "config.json" not in names or not weights:
        return []
    return [name for name in (*known, "special_tokens_map.json") if name in names] + weights[:1]


def wanted_vae_files(names: Sequence[str]) -> list[str]:
    """Of all files of a repository those of a VAE, at the top or in `vae/`: config, weights
    once.
    """
    for folder in ("", "vae/"):
        if f"{folder}config.json" in names:
            for ending in ("safetensors", "bin"):
                weights = f"{folder}diffusion_pytorch_model.{ending}"
                if weights in names:
                    return [f"{folder}config.json", weights]
    return []


def download(
    source: str,
    revision: str | None,
    *,
    choose: Callable[[Sequence[str]], list[str]] = wanted_files,
    what: str = f"diffusers model of {titles('or')}",
) -> Path:
    """Fetch what is wanted of a repository; the folder (or the one file) in the cache.

    Raises ModelError if there is no such repository, no permission, no network, or nothing in it
    that konomi reads.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    # The HTTP library's own base class; which library that is depends on the version of
    # huggingface_hub.
    transport_error: Any = HfHubHTTPError.__bases__[0]
    try:
        files = HfApi().model_info(source, revision=revision, timeout=20).siblings or []
        wanted = choose([file.rfilename for file in files])
        if not wanted:
            raise ModelError(f"{source}: the repository holds no {what}.")
        folder = Path(str(snapshot_download(source, revision=revision, allow_patterns=wanted)))
    except GatedRepoError as error:
        raise ModelError(
            f"{source}: its owner asks for consent. Give it on the hub's page and log in (hf auth "
            "login)."
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"{source}: no such file or folder here, and no such model on the hub."
        ) from error
    except (transport_error, OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise ModelError(
            f"{source}: no such file or folder here, not in the hub's local cache, and the hub "
            f"cannot be reached ({reason}). Check the path, or connect to the network once to "
            "download it."
        ) from error
    return folder if len(wanted) > 1 else folder / wanted[0]

"""The adapters that `generate` puts on a base: those of the command line and those that prompts
name.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import groupby
from pathlib import Path

from konomi.adapters import hypernetwork
from konomi.adapters.adapter import Adapter
from konomi.adapters.apply import Strengths, check_fits
from konomi.formats.adapter_file import read_adapter
from konomi.formats.writer import content_of
from konomi.generation.adapter_request import (
    AdapterRequest,
    adapters_of_prompt,
    strengths,
    tag_kind,
)
from konomi.generation.embedding_request import (
    embeddings_of_prompt,
    named_as_trained,
    named_by_file,
)
from konomi.generation.request import Request, UsedAdapter
from konomi.models.base import BaseModel


def read_adapters(
    requests: Sequence[Request],
    always: Sequence[AdapterRequest],
    folders: Sequence[Path],
    tell: Callable[[str], object],
) -> tuple[list[tuple[tuple[AdapterRequest, ...], list[Request]]], dict[Path, Adapter]]:
    """Requests by the adapters that their prompts ask for, in order, and every adapter by
    its path.
    """
    folders = [*folders, *(wanted.path.parent for wanted in always)]
    files = {
        one.path: named_by_file(named_as_trained(read_adapter(one.path)), one.path)
        for one in always
    }
    words = {word for adapter in files.values() for word in adapter.embeddings}

    @cache  # It looks through folders, and a hundred seeds of a prompt ask for the same.
    def asked_for(prompt: str, negative: str) -> tuple[AdapterRequest, ...]:
        tagged = adapters_of_prompt(prompt, folders)
        known = words | {one.path.stem for one in tagged}
        return tagged + embeddings_of_prompt((prompt, negative), folders, known=known)

    by_files = groupby(requests, key=lambda request: asked_for(request.prompt, request.negative))
    groups = [(asked, list(group)) for asked, group in by_files]
    for one in (one for asked, _ in groups for one in asked if one.path not in files):
        # Called by the file's name: the word it was trained as may well be another file's.
        files[one.path] = named_by_file(read_adapter(one.path), one.path)
    for note in dict.fromkeys(note for adapter in files.values() for note in adapter.notes):
        tell(note)
    return groups, files


def check_all(
    base: BaseModel, wanted: Sequence[AdapterRequest], files: Mapping[Path, Adapter]
) -> None:
    """Before anything is drawn, though the adapters of later prompts are attached when their turn
    comes.
    """
    for request in wanted:
        adapter = files[request.path]
        request.check(content_of(adapter))
        if adapter.hypernetwork is not None and request.denoiser_weight != 0.0:
            hypernetwork.check_fits(base, adapter.hypernetwork, adapter.name, adapter.family)
        check_fits(base, adapter, strengths_on(base, request, adapter)[0])


def strengths_on(
    base: BaseModel, request: AdapterRequest, adapter: Adapter
) -> tuple[Strengths, tuple[str, ...]]:
    """How much of each layer is asked for, and the layers that block weights leave out."""
    return strengths(request, adapter, base.block_of)


def used_adapter(request: AdapterRequest, adapter: Adapter) -> UsedAdapter:
    """The same as the picture will tell of it."""
    hashed = adapter.metadata.get("sshs_model_hash", "")[:12]
    content = content_of(adapter)
    kind = "embedding" if content == "embedding" else tag_kind(content)
    return UsedAdapter(
        request.path.stem, request.denoiser_weight, request.text_weight, hashed, kind
    )

"""What formats declare about writing: which contents they hold, under which target words, in what
kind of file.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from konomi.adapters.adapter import Adapter
from konomi.errors import FileFormatError
from konomi.families.recognition import reads_text

if TYPE_CHECKING:
    import torch

    from konomi.formats.ldm_keys import UNetLayout

Target = Literal["kohya", "diffusers", "peft", "webui", "custom"]
TARGETS: tuple[Target, ...] = ("kohya", "diffusers", "peft", "webui", "custom")

Content = Literal["lora", "embedding", "hypernetwork", "custom diffusion"]
"""What an adapter is, as formats see it; `lora` stands for all updates of weights, with or without
learned words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteOptions:
    """How to write."""

    dtype: torch.dtype | None = None
    """None keeps each tensor's type."""
    layout: UNetLayout | None = None
    """Names the blocks of a UNet that is not of its family's size."""
    replace_folder: bool = False
    """A folder of that name is replaced; otherwise it is an error."""


@dataclass(frozen=True, slots=True)
class Writer:
    """One way to write one kind of content."""

    content: Content
    targets: tuple[Target, ...]
    """The words that ask for it. The first writer of a content is what `auto` means."""
    suffix: str
    """Of the file it writes; "" where it writes a folder."""
    write: Callable[[Adapter, Path, WriteOptions], None]
    others: tuple[str, ...] = ()
    """Further endings that it writes; "" for a folder."""

    def check_ending(self, path: Path) -> None:
        """Raises FileFormatError where a name would promise another content than is written."""
        check_ending(path, (self.suffix, *self.others), _NAMES[self.content])


_NAMES: dict[Content, str] = {
    "lora": "a LoRA",
    "embedding": "an embedding",
    "hypernetwork": "a hypernetwork",
    "custom diffusion": "a Custom Diffusion result",
}
MODEL_ENDINGS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".onnx", ".gguf", ".png")
"""What other programs take for a kind of file by its name."""


def check_ending(path: Path, endings: tuple[str, ...], what: str) -> None:
    """`endings`: those that are written, "" for a folder. Raises FileFormatError naming what would
    be read wrongly.
    """
    ending = path.suffix.lower()
    files = [known for known in endings if known]
    if ending in files or ("" in endings and ending not in MODEL_ENDINGS):
        return
    if not files:
        raise FileFormatError(
            f"{path}: {what} is written as a folder in this format, and a name that ends in "
            f"{ending} is a file's to other programs. Leave the ending out."
        )
    wanted = " or ".join(files)
    raise FileFormatError(
        f"{path}: the name of {what} ends in {wanted} in this format, not in "
        f"{ending or 'nothing'}: other programs go by it. Name it {path.stem}{files[0]}, or choose "
        "another --to."
    )


_CUSTOM_DIFFUSION = re.compile(
    r"denoiser\..+\.attn[12]\.(to_q|to_k|to_v|to_out\.0)$|text_encoder\."
)
"""What Custom Diffusion changes, of the denoiser and, in the authors' files, of the text
encoder."""


def content_of(adapter: Adapter) -> Content:
    """What an adapter holds."""
    if adapter.hypernetwork is not None:
        return "hypernetwork"
    if not adapter.layers and adapter.embeddings:
        return "embedding"
    replaced = [key for key, update in adapter.layers.items() if update.whole is not None]
    # Whole weights of other layers (`set_weight` of ComfyUI's files) are a patch like any other.
    if replaced and all(_CUSTOM_DIFFUSION.match(key) for key in replaced):
        return "custom diffusion"
    # As differences it is told from a LoRA by what it changes, and by the words that come with it.
    if adapter.embeddings and all(
        update.rank is None and update.difference() is not None and reads_text(key)
        for key, update in adapter.layers.items()
    ):
        return "custom diffusion"
    return "lora"

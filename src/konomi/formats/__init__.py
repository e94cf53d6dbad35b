"""File formats of adapters, one module each.

A format is one module with NAME, `recognise(source)`, `parse(source)` and, where konomi writes it,
WRITERS. Adding one is that file and a line in ADAPTER_FORMATS. `adapter_file` reads and writes any.
"""

from konomi.formats import (
    cloneofsimo,
    comfyui,
    custom_diffusion,
    diffusers_embedding,
    diffusers_lora,
    hypernetwork,
    kohya,
    peft_lora,
    webui_embedding,
)
from konomi.formats.adapter_format import AdapterFormat
from konomi.formats.writer import Writer

ADAPTER_FORMATS: tuple[AdapterFormat, ...] = (
    kohya,
    comfyui,
    diffusers_lora,
    peft_lora,
    cloneofsimo,
    custom_diffusion,
    hypernetwork,
    webui_embedding,
    diffusers_embedding,
)
WRITERS: tuple[Writer, ...] = tuple(
    writer for form in ADAPTER_FORMATS for writer in getattr(form, "WRITERS", ())
)

"""What a file that is no base model is, by the names of its tensors."""

import re

from konomi.errors import ModelError
from konomi.families import FAMILIES, titles
from konomi.families.family import Family, Shapes
from konomi.families.recognition import family_of_single_file
from konomi.families.unet import UNET_PREFIX
from konomi.formats.layers import BEGINNINGS

_OTHERS: tuple[tuple[str, str], ...] = (
    (rf"{'|'.join(BEGINNINGS)}|\.lora\.|^unet:\d+:",
     "a LoRA, not a base model. Use it with --add, and give the model it was trained on as the "
     "base"),
    (r"^edm_(mean|std)$|^edm_vpred\.sigma",
     "a model of another noise process (EDM: Playground 2.5, CosXL), which konomi does not read"),
    (r"joint_blocks\.", "Stable Diffusion 3, which konomi does not read yet"),
    (r"double_blocks\.|single_transformer_blocks\.", "FLUX, which konomi does not read yet"),
    *(relative for family in FAMILIES for relative in family.relatives),
    (r"control_model\.|controlnet_|^zero_convs\.|input_hint_block", "a ControlNet, not a base "
                                                                    "model"),
    (r"motion_modules\.", "an AnimateDiff motion module, not a base model"),
    (r"^emb_params$|^clip_[lg]$|^string_to_param",
     "a learned word (Textual Inversion), not a base model. Use it with --add"),
    (r"^(down_blocks|mid_block)\..*attentions", "a diffusers UNet alone. Give the folder that "
                                                "holds all parts"),
    (r"^(first_stage_model\.)?(encoder|decoder)\.(down|up|mid)", "a VAE alone, not a base model"),
    (r"^(text_model\.|transformer\.resblocks\.)", "a text encoder alone, not a base model"),
    (r"^transformer_blocks\.|^blocks\.\d+\.|caption_projection", "a transformer model that konomi "
                                                                 "does not read yet"),
)  # fmt: skip


def recognise(shapes: Shapes, where: str) -> Family:
    """The family of a single file. Raises ModelError that names what it is instead."""
    family = family_of_single_file(shapes)
    if family is not None:
        return family
    for pattern, name in _OTHERS:
        expression = re.compile(pattern)
        if any(expression.search(key) for key in shapes):
            raise ModelError(f"{where}: this looks like {name}.")
    if any(name.startswith(UNET_PREFIX) for name in shapes):
        raise ModelError(
            f"{where}: holds a UNet but no text encoder that konomi knows. Take the complete "
            "checkpoint."
        )
    example = next(iter(shapes), None)
    detail = (
        "it holds no tensors"
        if example is None
        else f"its {len(shapes)} tensors are named like {example!r}"
    )
    raise ModelError(f"{where}: no {titles('or')} model that konomi recognises; {detail[:200]}.")

"""The plain text encoder against transformers' class: the same numbers forward and backward, the
same names.
"""

import json
from typing import Any

import pytest
import torch
from torch import nn

from konomi.errors import ModelError
from konomi.families import CONFIGS
from konomi.families.sdxl import SDXL
from konomi.models.architectures import architecture_of
from konomi.models.clip_text import TextEncoder
from konomi.models.parts import build_part, random_part
from twins import assert_same_gradients, transformers_text

SMALL: dict[str, Any] = {
    "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3,
    "projection_dim": 10,
    "vocab_size": 100, "eos_token_id": 99, "bos_token_id": 98, "pad_token_id": 99,
}  # fmt: skip
IDS = torch.tensor([[98, 5, 7, 9, 99, 99], [98, 99, 99, 99, 99, 99]])


def through(encoder: TextEncoder, ids: torch.Tensor) -> torch.Tensor:
    """States of the last layer, normed."""
    model = encoder.text_model
    states = (
        model.embeddings.token_embedding(ids)
        + model.embeddings.position_embedding.weight[: ids.shape[1]]
    )
    for number in range(len(model.encoder.layers)):
        states = encoder.run_layer(number, states)
    normed: torch.Tensor = model.final_layer_norm(states)
    return normed


@pytest.mark.parametrize("bend", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_same_bits_as_transformers(bend: str, checkpointing: bool) -> None:
    config = SMALL | {"hidden_act": bend}
    torch.manual_seed(0)
    ours = TextEncoder(config, projection=True).train()
    ours.initialise()
    theirs = transformers_text(ours, config)
    if checkpointing:
        ours.enable_gradient_checkpointing()
    answers = [through(ours, IDS), theirs(IDS).last_hidden_state]
    assert answers[0].std() > 0.1
    assert torch.equal(*answers)
    for answer in answers:
        answer.pow(3).sum().backward()
    assert_same_gradients(ours, theirs, but="text_projection.weight")


@pytest.mark.parametrize(
    ("family", "part"),
    [("sd1", "text_encoder"), ("sd2", "text_encoder"), ("sdxl", "text_encoder_2")],
)
def test_same_names_and_shapes_at_full_size(family: str, part: str) -> None:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    config = json.loads((CONFIGS / family / f"{part}.json").read_text())
    with torch.device("meta"):
        ours = TextEncoder(config, projection=part == "text_encoder_2")
        theirs: nn.Module = CLIPTextModelWithProjection(CLIPTextConfig(**config))
    expected = {name: parameter.shape for name, parameter in theirs.named_parameters()}
    if part == "text_encoder":
        del expected["text_projection.weight"]
    assert {name: parameter.shape for name, parameter in ours.named_parameters()} == expected


def test_random_weights_are_of_clips_sizes() -> None:
    tensors = random_part(architecture_of(SDXL), SDXL.text_encoders[1], SMALL, seed=1)
    assert tensors["text_model.embeddings.token_embedding.weight"].std().item() == pytest.approx(
        0.02, rel=0.1
    )
    assert tensors["text_model.encoder.layers.0.mlp.fc1.weight"].std().item() == pytest.approx(
        48**-0.5, rel=0.1
    )
    assert tensors["text_model.encoder.layers.0.mlp.fc1.bias"].count_nonzero() == 0
    assert tensors["text_model.final_layer_norm.weight"].eq(1).all()
    again = random_part(architecture_of(SDXL), SDXL.text_encoders[1], SMALL, seed=1)
    assert all(torch.equal(tensor, again[name]) for name, tensor in tensors.items())


@pytest.mark.parametrize("change", [{"hidden_act": "relu"}, {"num_attention_heads": 5}])
def test_other_kinds_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="config of text_encoder describes no model"):
        build_part(architecture_of(SDXL), SDXL.text_encoders[0], SMALL | change, {}, where="folder")

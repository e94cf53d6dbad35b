"""The libraries' own models with the weights of ours: oracles for tests."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from konomi.models.clip_text import TextEncoder


def transformers_text(module: TextEncoder, config: Mapping[str, Any]) -> Any:
    """transformers' text encoder. Its parameters have the names of ours; without a projection it has a random one."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    known = {k: v for k, v in config.items() if k not in ("architectures", "auto_map") and not k.startswith("_")}
    theirs: Any = CLIPTextModelWithProjection(CLIPTextConfig(**known)).eval()
    left = theirs.load_state_dict(module.state_dict(), strict=False)
    assert not left.unexpected_keys
    assert set(left.missing_keys) <= {"text_projection.weight"}
    return theirs.to(next(module.parameters()).dtype)


def listed(module: nn.Module) -> list[tuple[str, torch.Size]]:
    """Names and shapes of parameters, in order."""
    return [(name, parameter.shape) for name, parameter in module.named_parameters()]


def assert_same_gradients(ours: nn.Module, theirs: nn.Module, *, but: str = "") -> None:
    """Bit for bit, of every parameter `but` one."""
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        if name != but:
            assert parameter.grad is not None, name
            assert torch.equal(parameter.grad, expected[name].grad), name

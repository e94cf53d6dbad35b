"""The libraries' own models with the weights of ours: oracles for tests."""

from collections.abc import Mapping
from typing import Any

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

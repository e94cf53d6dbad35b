"""DyLoRA's files: LoRAs whose first ranks are good without the others, so that fewer ranks are a
cut.
"""

from collections.abc import Mapping

import torch

from konomi.adapters.adapter import Adapter
from konomi.adapters.kinds import LayerUpdate, LowRank
from konomi.config.parse import parse_json
from konomi.merging.adapters import ReducedLayer

MODULE = "networks.dylora"
"""`ss_network_module` of sd-scripts; LyCORIS has `algo` in its arguments."""


def is_nested(metadata: Mapping[str, str]) -> bool:
    """Whether a file says that it was trained as DyLoRA."""
    if metadata.get("ss_network_module") == MODULE:
        return True
    try:
        arguments = parse_json(metadata.get("ss_network_args", "{}"))
    except ValueError:
        return False
    return isinstance(arguments, dict) and arguments.get("algo") == "dylora"


def cut(
    adapter: Adapter, rank: int, dtype: torch.dtype
) -> tuple[dict[str, LayerUpdate], tuple[ReducedLayer, ...]]:
    """The layers in their first ranks, at the scale that they have, and how much each loses by it.
    Layers of another kind, or with a Tucker core, stay as they are.
    """
    layers: dict[str, LayerUpdate] = {}
    report = []
    for key, update in adapter.layers.items():
        thin = update.as_low_rank()
        if thin is None or thin.mid is not None or thin.magnitude is not None:
            layers[key] = update
            continue
        kept = min(rank, thin.rank)
        rest = LowRank(thin.down[kept:], thin.up[:, kept:], thin.scale * (thin.rank - kept))
        lost = rest.norm() if kept < thin.rank else 0.0
        whole = thin.norm()
        layers[key] = LowRank(
            thin.down[:kept].to(dtype).contiguous(),
            thin.up[:, :kept].to(dtype).contiguous(),
            thin.scale * kept,
            bias=None if thin.bias is None else thin.bias.to(dtype),
        )
        report.append(ReducedLayer(key, kept, lost / whole if whole else 0.0))
    return layers, tuple(report)

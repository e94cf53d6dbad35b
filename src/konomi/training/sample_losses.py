"""The loss of each image in each step, as far back as there is room: part of every checkpoint, so
that it is exact after resuming.

What an image's loss says depends on its timestep, so both are kept. Who reads it:
`evaluation/images_that_hurt.py`.
"""

from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from konomi.errors import RunError

MOST = 2**18
"""Sightings that are kept, the latest ones: 5 MiB."""
COLUMNS = {"step": "i", "image": "q", "timestep": "f", "loss": "f"}
"""Name -> type of each: int32, int64, float32."""
_DTYPES = {"i": torch.int32, "q": torch.int64, "f": torch.float32}


class SampleLosses:
    """Sightings of images in the order of the steps: columns of equal length."""

    def __init__(self, most: int = MOST) -> None:
        self.most = most
        self.columns: dict[str, array[Any]] = {name: array(k) for name, k in COLUMNS.items()}

    def __len__(self) -> int:
        return min(len(self.columns["step"]), self.most)

    def add(self, step: int, images: Sequence[int], values: Sequence[float]) -> None:
        """`values`: losses, then as many timesteps, in the images' order; there may be more than
        images. What has no loss is left out.
        """
        half = len(values) // 2
        columns = self.columns
        for image, loss, timestep in zip(images, values[:half], values[half:]):
            # A loss of 0 was not computed here; its logarithm would say nothing anyway.
            if loss > 0:
                for column, value in zip(columns.values(), (step, image, timestep, loss)):
                    column.append(value)
        if len(columns["step"]) >= 2 * self.most:
            for column in columns.values():
                del column[: -self.most]

    def tensors(self) -> dict[str, Tensor]:
        """Copies, by the names of `COLUMNS`, each [N]."""
        return {
            name: torch.tensor(column[-self.most :], dtype=_DTYPES[column.typecode])
            for name, column in self.columns.items()
        }

    @staticmethod
    def of(tensors: Mapping[str, Tensor], most: int = MOST) -> "SampleLosses":
        """What `tensors` gave; empty for none. Raises RunError where it is something else."""
        check_columns(tensors)
        losses = SampleLosses(most)
        for name, tensor in tensors.items():
            losses.columns[name].extend(tensor.tolist())
        return losses


def check_columns(tensors: Mapping[str, Tensor]) -> None:
    """Raises RunError unless these are the columns of one table, or none at all."""
    wanted = {name: _DTYPES[kind] for name, kind in COLUMNS.items()}
    lengths = {tensor.shape for tensor in tensors.values()}
    right = {name: tensor.dtype for name, tensor in tensors.items()} == wanted
    if tensors and not (right and len(lengths) == 1 and len(next(iter(lengths))) == 1):
        raise RunError(
            "the losses of single images in the checkpoint are damaged (they are not four columns "
            "of one length). Remove that checkpoint to go back to the one before."
        )

"""Encoded captions, for runs that do not train the text encoder.

Only captions that come again are kept: those that neither shuffling nor tag dropout makes new each
time. The others are encoded with the step that needs them, so the cache stays as small as the set
of captions, and a step's values do not depend on what happens to lie in a cache.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple
from pathlib import Path

import torch

from konomi.config.sections import TextConfig
from konomi.data.shards import Notice, Progress, ShardStore, digest
from konomi.diffusion.conditioning import Conditioning, concatenate
from konomi.errors import ModelError

EncodeCaptions = Callable[[Sequence[str]], Conditioning]
"""Captions -> states and, where the family has it, pooled; of one length whatever the captions, or
with a mask."""


class TextCache:
    """Text states by caption, on disk (`folder`) or in memory (None).

    `fingerprint` must tell everything the values depend on besides `text`: weights of the text
    encoders and the number format they compute in.
    """

    def __init__(self, fingerprint: str, text: TextConfig, *, folder: Path | None) -> None:
        name = f"text-{digest(fingerprint, astuple(text))[:16]}"
        self._store = ShardStore(None if folder is None else folder / name)
        self._captions: set[str] = set()

    def open(self, captions: Iterable[str]) -> list[str]:
        """Learn what is on disk, without building: for processes other than the one that built.
        Returns warnings.
        """
        self._captions |= set(captions)
        return [notice.message for notice in self._store.open()]

    def build(
        self, captions: Iterable[str], encode: EncodeCaptions, *, batch_size: int = 1
    ) -> Iterator[Progress | Notice]:
        """Encode the captions that are missing or damaged, in a fixed order. Closing it, or
        Ctrl-C, keeps what is done.

        Yields progress over all captions, and notices. `batch_size` 1 makes values independent of
        what else was missing. Raises ModelError naming the caption that encodes to NaN, RunError
        for the disk.
        """
        wanted = sorted(set(captions))
        self._captions |= set(wanted)
        yield from self._store.open()
        yield from self._store.verify(digest(caption) for caption in wanted)
        missing = [caption for caption in wanted if digest(caption) not in self._store]
        done = len(wanted) - len(missing)
        yield Progress(done, len(wanted))
        try:
            for start in range(0, len(missing), batch_size):
                batch = missing[start : start + batch_size]
                self._put(batch, encode)
                done += len(batch)
                yield Progress(done, len(wanted))
        except (GeneratorExit, KeyboardInterrupt, ModelError):
            self._store.flush()
            raise
        self._store.flush()

    def get(self, captions: Sequence[str]) -> Conditioning | None:
        """States [B, T, D] of captions, or None if one of them is not among those this run built
        or opened.

        Raises RunError for a damaged row.
        """
        if not self._captions.issuperset(captions):
            return None
        rows = [self._store.get(digest(caption)) for caption in captions]
        # Rows of a text encoder with an attention mask are as long as their captions.
        return concatenate(
            [
                Conditioning(
                    row["states"][None],
                    row["pooled"][None] if "pooled" in row else None,
                    mask=row["mask"].bool()[None] if "mask" in row else None,
                )
                for row in rows
            ]
        )

    def _put(self, captions: Sequence[str], encode: EncodeCaptions) -> None:
        with torch.no_grad():
            encoded = encode(captions)
        for number, caption in enumerate(captions):
            row = {"states": encoded.states[number]}
            if encoded.pooled is not None:
                row["pooled"] = encoded.pooled[number]
            if encoded.mask is not None:
                # What the longest caption of the batch made of it is left out.
                length = (
                    int(encoded.mask[number].nonzero().max()) + 1
                    if encoded.mask[number].any()
                    else 1
                )
                row["states"] = row["states"][:length]
                row["mask"] = encoded.mask[number, :length].to(torch.uint8)
            if not all(bool(torch.isfinite(tensor).all()) for tensor in row.values()):
                raise ModelError(
                    f"The text encoder turns the caption {caption[:80]!r} into NaN or infinity. "
                    "Try run.precision = 'fp32'; if it stays, the base is damaged."
                )
            key = digest(caption)
            self._store.put(key, key[:16], row)

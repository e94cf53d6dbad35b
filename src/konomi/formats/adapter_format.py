"""What a file format of adapters offers."""

from typing import Protocol

from konomi.formats.source import Parsed, Source


class AdapterFormat(Protocol):
    """What a format's module offers for reading."""

    NAME: str
    """Also WRITERS, a tuple of `Writer`, where konomi writes the format."""

    def recognise(self, source: Source) -> bool: ...
    def parse(self, source: Source) -> Parsed: ...

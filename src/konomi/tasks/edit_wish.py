"""An edited picture (Imagic) as asked of `generate` and `grid`: the file, its states, and what does
nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from konomi.adapters.adapter import Edit
from konomi.errors import FileFormatError, RecipeError
from konomi.formats.adapter_file import read_adapter
from konomi.generation.request import DEFAULT_ETA, EDIT_GUIDANCE


@dataclass(frozen=True, slots=True)
class EditWish:
    """What was asked."""

    path: Path
    edit: Edit
    eta: float

    @property
    def file(self) -> str:
        """As `--add` takes it."""
        return str(self.path)

    @property
    def settings(self) -> dict[str, Any]:
        """Of every request; the guidance where nobody says another."""
        return {"edit": self.edit, "eta": self.eta, "guidance": EDIT_GUIDANCE}

    @property
    def size(self) -> str | None:
        """As `--size` takes it; None where the file does not say it."""
        width, height = self.edit.size
        return f"{width}x{height}" if width and height else None

    def prompts(self, given: Sequence[str]) -> Sequence[str]:
        """The edit's own target where no other is given."""
        return given or [self.edit.prompt]


def read_edit(
    file: str | Path | None,
    eta: float | None,
    tell: Callable[[str], object],
    *,
    prompts: Sequence[str] = (),
) -> EditWish | None:
    """None where no edit is asked for. `prompts`: other targets that are given.

    Raises RecipeError for a file that is not there, FileFormatError for one that is no edit.
    """
    if file is None:
        if eta is not None:
            tell("--eta has no effect without --edit.")
        return None
    path = Path(file)
    if not path.exists():
        raise RecipeError(f"--edit {file}: there is no such file.")
    edit = read_adapter(path).edit
    if edit is None:
        raise FileFormatError(
            f"{path}: holds no edited picture. konomi train imagic --images photo.png --prompt "
            "TARGET makes one; other adapters are put on with --add."
        )
    if eta == 0 and prompts:
        tell("The prompt has no effect with eta 0, which draws the picture's own text state.")
    return EditWish(path, edit, DEFAULT_ETA if eta is None else eta)

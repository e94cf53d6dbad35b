"""Write `docs/settings.md` from the recipe's own texts: python tools/settings_page.py"""

from pathlib import Path

from konomi.config.schema import docs_table, recipe_settings
from konomi.methods import METHODS

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"


def page() -> str:
    """All settings: those of each method, then those that every recipe has."""
    parts = [
        "# Settings\n",
        "Made by `python tools/settings_page.py` from the texts in the code. `konomi new METHOD` writes",
    ]
    parts.append("them as a commented recipe; on the command line any of them is changed by `name=value`.\n")
    for method in METHODS:
        kind = method.config_type().kind
        own = [s for s in recipe_settings(method.config_type) if s.path.startswith("method.")]
        parts += [f'## `method.kind = "{kind}"`\n', docs_table(own)]
    common = [s for s in recipe_settings(METHODS[0].config_type) if not s.path.startswith("method.")]
    sections: dict[str, list[object]] = {}
    for setting in common:
        sections.setdefault(setting.path.split(".")[0], []).append(setting)
    for name, settings in sections.items():
        parts += [f"## `{name}`\n", docs_table(settings)]  # type: ignore[arg-type]
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

"""Write `docs/settings.md` from the recipe's own texts: python tools/settings_page.py"""

from pathlib import Path

from konomi.config.schema import docs_table, recipe_settings
from konomi.methods import METHODS

TEN = (
    ("base", "the model everything starts from; the larger, the slower"),
    (
        "data.sources.N.trigger",
        "the prompt word that stands for what is learned; take a rare one (`konomi identifiers`)",
    ),
    ("run.steps", "how long; too few learn nothing, too many burn in: look at the previews"),
    (
        "optimizer.learning_rate",
        "how large each step is; halve it where pictures burn, double it where nothing comes",
    ),
    ("run.batch_size", "images a step; more is steadier and costs memory"),
    ("method.rank", "how much a LoRA can hold; 8 to 32 for a subject, more for a style"),
    (
        "method.text_rank",
        "lets a LoRA change the text encoder too; likeness at the price of the class",
    ),
    ("data.resolution", "training size; the base's own by default, smaller is faster and coarser"),
    ("prior.source", "`generate` keeps the class as it was"),
    ("memory.gradient_checkpointing", "the first thing to turn on where memory does not suffice"),
)
"""What to touch first, and why."""
PAGE = Path(__file__).parents[1] / "docs" / "settings.md"


def page() -> str:
    """All settings: those of each method, then those that every recipe has."""
    parts = [
        "# Settings\n",
        (
            "Made by `python tools/settings_page.py` from the texts in the code. `konomi new "
            "METHOD` writes"
        ),
    ]
    parts.append(
        "them as a commented recipe; on the command line any of them is changed by `name=value`.\n"
    )
    known = {setting.path: setting for setting in recipe_settings(METHODS[0].config_type)}
    rows = [f"| `{known[path].path}` | {why} |" for path, why in TEN]
    parts += ["## Ten settings that matter\n", "| Setting | Why |", "| --- | --- |", *rows, ""]
    for method in METHODS:
        kind = method.config_type().kind
        own = [s for s in recipe_settings(method.config_type) if s.path.startswith("method.")]
        parts += [f'## `method.kind = "{kind}"`\n', docs_table(own)]
    common = [
        s for s in recipe_settings(METHODS[0].config_type) if not s.path.startswith("method.")
    ]
    sections: dict[str, list[object]] = {}
    for setting in common:
        sections.setdefault(setting.path.split(".")[0], []).append(setting)
    for name, settings in sections.items():
        parts += [f"## `{name}`\n", docs_table(settings)]  # type: ignore[arg-type]
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

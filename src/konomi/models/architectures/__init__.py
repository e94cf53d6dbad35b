"""The architectures that konomi computes. A new one is a file beside `clip_unet.py` and a line in
`ARCHITECTURES`; families name it by its `name`.
"""

from typing import Any

from konomi.families.family import Family
from konomi.models.architecture import Architecture, ConfigRules, Configs
from konomi.models.architectures.clip_unet import ClipUNet
from konomi.models.config_check import SCHEDULER, check_configs, without_nulls

ARCHITECTURES: tuple[Architecture, ...] = (ClipUNet(),)


def architecture_of(family: Family) -> Architecture:
    """What computes a family's parts."""
    return next(known for known in ARCHITECTURES if known.name == family.architecture)


def config_rules(family: Family) -> dict[str, ConfigRules]:
    """Folder of a part, or `scheduler` -> what is known of its config."""
    architecture = architecture_of(family)
    return {
        "scheduler": SCHEDULER,
        **{spec.folder: architecture.rules(spec) for spec in family.parts},
    }


def completed_configs(family: Family, configs: Configs) -> dict[str, dict[str, Any]]:
    """Configs of a diffusers folder, of all parts or some, with what old ones leave out. Raises
    ModelError for settings that no model has, or that do not go together.
    """
    rules, architecture = config_rules(family), architecture_of(family)
    completed = {name: without_nulls(rules[name], config) for name, config in configs.items()}
    architecture.fill(family, completed)
    check_configs(rules, completed)
    architecture.check(family, completed)
    return completed

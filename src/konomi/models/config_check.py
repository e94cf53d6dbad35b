"""The types and sizes of the settings of a base's configs, checked before anything is built of
them.

Bounds are those that no model comes near; beyond them a config is damaged or made to exhaust the
machine.
"""

from collections.abc import Callable, Mapping
from typing import Any

from konomi.errors import ModelError
from konomi.models.architecture import ConfigRules, Configs

Check = Callable[[object], bool]


def whole(low: int, high: int) -> Check:
    """Whole numbers from `low` to `high`."""
    return lambda value: type(value) is int and low <= value <= high


def number(low: float, high: float) -> Check:
    """Numbers from `low` to `high`."""

    def check(value: object) -> bool:
        # An integer of 400 digits is no float.
        return isinstance(value, int | float) and type(value) is not bool and low <= value <= high

    return check


def text(value: object) -> bool:
    """A short text."""
    return isinstance(value, str) and len(value) < 200


def switch(value: object) -> bool:
    """true or false."""
    return isinstance(value, bool)


def list_of(item: Check, longest: int = 16, shortest: int = 1) -> Check:
    """Lists of `shortest` to `longest` such items."""
    return lambda value: (
        isinstance(value, list) and shortest <= len(value) <= longest and all(map(item, value))
    )


def any_of(*checks: Check) -> Check:
    """What one of the checks lets pass."""
    return lambda value: any(check(value) for check in checks)


SCHEDULER = ConfigRules(
    checks={
        "beta_start": number(0.0, 1.0), "beta_end": number(0.0, 1.0),
        "num_train_timesteps": whole(1, 100_000), "beta_schedule": text,
        "trained_betas": list_of(number(0.0, 1.0), 100_000), "prediction_type": text,
        "rescale_betas_zero_snr": switch, "timestep_spacing": text, "set_alpha_to_one": switch,
        "_class_name": text,
    },
    nullable=("trained_betas",),
    neutral={"clip_sample": (None, False), "thresholding": (None, False)},
)  # fmt: skip
"""Of the noise process, whatever the architecture."""


def without_nulls(rules: ConfigRules, config: Mapping[str, Any]) -> dict[str, Any]:
    """A part's config without settings that are null where only their absence has a meaning: the
    default.
    """
    left_out = {s for s in rules.checks if s not in rules.nullable and config.get(s, 0) is None}
    return {setting: value for setting, value in config.items() if setting not in left_out}


def check_config(name: str, rules: ConfigRules, config: Mapping[str, Any]) -> None:
    """Raises ModelError naming the part, the setting and its value. What is None counts as left
    out.
    """
    for setting, check in rules.checks.items():
        value = config.get(setting)
        if value is not None and not check(value):
            raise odd_setting(name, setting, value)
    for setting in rules.required:
        if config.get(setting) is None:
            raise ModelError(f"the config of {name} lacks {setting}.")


def check_configs(rules: Mapping[str, ConfigRules], configs: Configs) -> None:
    """`check_config` of each that is there."""
    for name, config in configs.items():
        check_config(name, rules[name], config)


def odd_setting(name: str, setting: str, value: object) -> ModelError:
    """What to raise for a value that no model has."""
    return ModelError(
        f"the config of {name} has {setting} = {short(value)}, which no model of this kind has."
    )


def short(value: object) -> str:
    """A value of unknown origin, for a message."""
    if isinstance(value, int) and abs(value) >= 10**30:
        # Python refuses to print very long ones.
        return f"a whole number of {value.bit_length()} bits"
    if isinstance(value, list | dict):
        return (
            f"a list or table of {len(value)}"
            if len(value) > 8 or _is_deep(value)
            else repr(value)[:60]
        )
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_deep(value: list[Any] | dict[Any, Any]) -> bool:
    items = value.values() if isinstance(value, dict) else value
    return any(
        isinstance(item, list | dict) or (isinstance(item, int) and abs(item) >= 10**30)
        for item in items
    )

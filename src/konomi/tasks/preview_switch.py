"""Previews that nobody will look at: switched off for all runs of a place."""

import os

SWITCH = "KONOMI_PREVIEWS"
"""Environment variable; "off" leaves out what `run.preview_every = "auto"` would draw."""


def previews_switched_off() -> bool:
    """Whether the environment says so."""
    return os.environ.get(SWITCH) == "off"

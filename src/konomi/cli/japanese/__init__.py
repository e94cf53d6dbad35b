"""The Japanese catalogue, one file for each area of messages."""

from konomi.cli.japanese import checks, commands, pictures, runs, settings, stored

COUNTS = checks.COUNTS
AREAS = (commands.PAIRS, checks.PAIRS, settings.PAIRS, runs.PAIRS, pictures.PAIRS, stored.PAIRS)

PAIRS = {english: target for area in AREAS for english, target in area.items()}
"""English template -> Japanese template."""

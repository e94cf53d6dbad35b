"""The Japanese catalogue, one file for each area of messages."""

from konomi.cli.japanese import (
    adapters,
    aesthetic,
    cards,
    checks,
    collecting,
    commands,
    comparing,
    evaluation,
    folders,
    history,
    imagic,
    merging,
    methods,
    models,
    pages,
    pictures,
    processes,
    programs,
    runs,
    scores,
    screens,
    settings,
    starts,
    stored,
    stored_files,
    usage,
)

COUNTS = checks.COUNTS
VALUES = (
    (r",? and ([\d,]+) more$", r" ほか \1 件"),
    (r"^(\d+) h (\d+) min$", r"\1 時間 \2 分"),
    (r"^(\d+) min$", r"\1 分"),
    (r"^([\d.]+) s$", r"\1 秒"),
)
"""Patterns of values that are not names: how many follow, and times."""
AREAS = tuple(
    area.PAIRS
    for area in (
        commands,
        usage,
        screens,
        checks,
        collecting,
        folders,
        settings,
        methods,
        runs,
        pages,
        pictures,
        processes,
        programs,
        stored,
        stored_files,
        models,
        scores,
        adapters,
        aesthetic,
        starts,
        evaluation,
        comparing,
        history,
        imagic,
        merging,
        cards,
    )
)

PAIRS = {english: target for area in AREAS for english, target in area.items()}
"""English template -> Japanese template."""

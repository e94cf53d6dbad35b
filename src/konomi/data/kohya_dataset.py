"""The dataset TOML of sd-scripts: `[general]`, `[[datasets]]`, `[[datasets.subsets]]` (its
docs/config_README-en.md).

Each setting holds for what lies below it, unless that says otherwise. What describes images
becomes a `Place`; what describes training (resolution, batch size, ...) is returned under the
recipe's own dotted names, for it to adopt.
"""

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from konomi.config.parse import parse_toml
from konomi.config.sections import SourceConfig
from konomi.data.captions import CAPTION_SUFFIXES
from konomi.data.containers import read_bytes
from konomi.data.encodings import decode_text
from konomi.data.tree import Place
from konomi.errors import DataError, printable, shortened
from konomi.storage.home import expanded

_MAX_NUMBER = 1_000_000
_DATASET_KEYS = {
    "batch_size": int,
    "resolution": (int, list),
    "enable_bucket": bool,
    "bucket_no_upscale": bool,
    "bucket_reso_steps": int,
    "min_bucket_reso": int,
    "max_bucket_reso": int,
}
_SHARED_KEYS = {
    # Settings that sd-scripts has per subset and konomi once per recipe.
    "flip_aug": bool,
    "random_crop": bool,
    "caption_separator": str,
    "caption_dropout_rate": (int, float),
    "caption_tag_dropout_rate": (int, float),
    "alpha_mask": bool,
}
_SUBSET_KEYS = {
    "keep_tokens": int,
    "num_repeats": int,
    "shuffle_caption": bool,
    "caption_extension": str,
    "caption_prefix": str,
    "caption_suffix": str,
    "enable_wildcard": bool,
}
_PLACE_KEYS = {"image_dir": str, "metadata_file": str, "class_tokens": str, "is_reg": bool}
_UNSUPPORTED = {
    "skip_image_resolution": "the images are all trained",
    "color_aug": "colours stay as they are",
    "face_crop_aug_range": "crops do not look for faces",
    "keep_tokens_separator": "use keep_tokens",
    "secondary_separator": "its parts are shuffled as one tag",
    "resize_interpolation": "images shrink by Lanczos and grow by bicubic",
    "caption_dropout_every_n_epochs": "use caption_dropout_rate",
    "token_warmup_min": "all tags are used from the start",
    "token_warmup_step": "all tags are used from the start",
    "network_multiplier": "the adapter is trained at strength 1",
    "conditioning_data_dir": "control images are not trained",
    "controlnet": "control images are not trained",
    "custom_attributes": "it has no effect on training",
    "validation_seed": "see the recipe's [validation]",
    "validation_split": "see the recipe's [validation]",
    "cache_info": "sizes are always remembered",
}
_INHERITED = {**_SHARED_KEYS, **_SUBSET_KEYS}
_KNOWN = {**_DATASET_KEYS, **_INHERITED, **_PLACE_KEYS}
_BUCKET_NAMES = {
    "bucket_reso_steps": "data.buckets.step",
    "min_bucket_reso": "data.buckets.min_side",
    "max_bucket_reso": "data.buckets.max_side",
}
_RECIPE_NAMES = {
    "batch_size": "run.batch_size",
    "flip_aug": "data.images.flip",
    "caption_separator": "data.captions.separator",
    "caption_dropout_rate": "data.captions.dropout",
    "caption_tag_dropout_rate": "data.captions.tag_dropout",
}


@dataclass(frozen=True, slots=True)
class DatasetToml:
    """A dataset TOML, read."""

    path: Path
    places: tuple[Place, ...]
    recipe_values: tuple[tuple[str, Any], ...]
    """(dotted name in the recipe, value), for instance ("run.batch_size", 4)."""
    problems: tuple[str, ...]
    """Settings that konomi does not have, or has once for all subsets."""


def read_dataset_toml(path: str | Path, source: SourceConfig | None = None) -> DatasetToml:
    """Read a dataset TOML; `source` (the recipe's words about it) multiplies repeats and sets
    role, trigger, template.

    Raises:
        DataError: not valid TOML, an unknown setting (with the nearest known name), or a value of
        the wrong kind.
    """
    path = Path(path)
    source = source or SourceConfig(path=str(path))
    try:
        content = parse_toml(decode_text(read_bytes(str(path)), str(path)))
    except ValueError as error:
        raise DataError(f"{printable(str(path))}: not valid TOML ({error})") from error
    for key in content:
        if key not in ("general", "datasets"):
            raise DataError(
                f"{_at(path, key)}: unknown section; sd-scripts has [general] and [[datasets]]"
            )
    problems: list[str] = []
    general = _table(content.get("general", {}), path, "general")
    _check(general, path, "general", {**_DATASET_KEYS, **_INHERITED}, problems)
    places: list[Place] = []
    settings: list[dict[str, Any]] = []
    for number, dataset in enumerate(_tables(content.get("datasets", []), path, "datasets")):
        where = f"datasets[{number}]"
        own = {key: value for key, value in dataset.items() if key != "subsets"}
        _check(own, path, where, {**_DATASET_KEYS, **_INHERITED}, problems)
        for index, subset in enumerate(
            _tables(dataset.get("subsets", []), path, f"{where}.subsets")
        ):
            _check(
                subset, path, f"{where}.subsets[{index}]", {**_INHERITED, **_PLACE_KEYS}, problems
            )
            merged = {**general, **own, **subset}
            places.append(_place(merged, path, f"{where}.subsets[{index}]", source))
            settings.append(merged)
    if not places:
        raise DataError(
            f"{printable(str(path))}: no [[datasets.subsets]] with an image_dir. Add one for each "
            "folder."
        )
    return DatasetToml(
        path,
        tuple(places),
        _recipe_values(settings, path, problems),
        tuple(dict.fromkeys(problems)),
    )


def _at(path: Path, key: str) -> str:
    return f"{printable(str(path))}: {key}"


def _table(value: object, path: Path, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{_at(path, where)} must be a table")
    return value


def _tables(value: object, path: Path, where: str) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise DataError(f"{_at(path, where)} must be written [[{where}]]")
    return [_table(item, path, where) for item in value]


def _check(
    table: dict[str, Any], path: Path, where: str, known: dict[str, Any], problems: list[str]
) -> None:
    for key, value in table.items():
        if key in _UNSUPPORTED:
            if value:
                problems.append(
                    f"{_at(path, f'{where}.{key}')} has no equivalent in konomi: "
                    f"{_UNSUPPORTED[key]}"
                )
        elif key == "enable_wildcard" and key in known and value is True:
            problems.append(
                f"{_at(path, f'{where}.{key}')}: of several lines one is taken each time; braces "
                "stay in the caption"
            )
        elif key not in known:
            raise DataError(f"{_at(path, f'{where}.{key}')} {_advice(key, known)}")
        elif not isinstance(value, known[key]) or (
            isinstance(value, bool) and known[key] is not bool
        ):
            raise DataError(
                f"{_at(path, f'{where}.{key}')} is {shortened(value, quoted=True)}: wrong kind of "
                "value"
            )
        elif isinstance(value, int | float) and not abs(value) <= _MAX_NUMBER:
            raise DataError(
                f"{_at(path, f'{where}.{key}')} is {shortened(value, quoted=True)}; at most "
                f"{_MAX_NUMBER:,}"
            )


def _advice(key: str, known: dict[str, Any]) -> str:
    if key in _KNOWN:
        return "does not belong in this section"
    nearest = difflib.get_close_matches(key, [*known, *_UNSUPPORTED], n=1)
    return "is not a setting of sd-scripts" + (f"; did you mean {nearest[0]}?" if nearest else "")


def _place(values: dict[str, Any], path: Path, where: str, source: SourceConfig) -> Place:
    table = values.get("metadata_file")
    folder = values.get("image_dir")
    if folder is None and table is None:
        raise DataError(
            f"{_at(path, where)} has no image_dir. Add the folder that holds its images."
        )
    repeats = values.get("num_repeats", 1)
    if repeats < 1:
        raise DataError(
            f"{_at(path, f'{where}.num_repeats')} is {repeats}; at least 1. Remove the subset "
            "instead."
        )
    suffix = values.get("caption_extension", "")
    prior = values.get("is_reg", False) or source.role == "prior"
    table_path = None if table is None else _beside(table, path)
    return Place(
        path=_beside(folder, path) if folder is not None else (table_path or path).parent,
        role="prior" if prior else "train",
        repeats=repeats * source.repeats,
        trigger="" if prior and source.role == "train" else source.trigger,
        class_noun=source.class_noun,
        template="" if prior and source.role == "train" else source.template,
        fallback=values.get("class_tokens", ""),
        caption_suffixes=(f".{suffix.lower().removeprefix('.')}",) if suffix else CAPTION_SUFFIXES,
        caption_prefix=values.get("caption_prefix", ""),
        caption_suffix=values.get("caption_suffix", ""),
        caption_lines="alternatives" if values.get("enable_wildcard") else "joined",
        keep_tokens=values.get("keep_tokens"),
        shuffle=values.get("shuffle_caption"),
        table=table_path,
        reads_folder_names=False,
    )


def _beside(name: str, path: Path) -> Path:
    """sd-scripts starts from the working directory; a path that lies beside the TOML is found too,
    and first.
    """
    beside = path.parent / expanded(name)
    return beside if beside.exists() else expanded(name)


def _recipe_values(
    settings: list[dict[str, Any]], path: Path, problems: list[str]
) -> tuple[tuple[str, Any], ...]:
    found: dict[str, Any] = {}
    for key in (*_DATASET_KEYS, *_SHARED_KEYS):
        values = [setting[key] for setting in settings if key in setting]
        if not values:
            continue
        if any(setting.get(key) != values[0] for setting in settings):
            problems.append(
                f"{_at(path, key)} differs between subsets; {shortened(values[0], quoted=True)} is "
                "used for all"
            )
        found[key] = values[0]
    adopted = [(name, found[key]) for key, name in _RECIPE_NAMES.items() if key in found]
    if "resolution" in found:
        adopted.append(("data.resolution", _resolution(found["resolution"], path)))
    if "random_crop" in found:
        adopted.append(("data.images.crop", "random" if found["random_crop"] else "center"))
    if found.get("alpha_mask"):
        adopted.append(("data.images.alpha", "mask"))
    # Without enable_bucket, sd-scripts trains one size.
    adopted.append(("data.buckets.kind", "area" if found.get("enable_bucket") else "fixed"))
    if found.get("enable_bucket"):
        adopted += [(name, found[key]) for key, name in _BUCKET_NAMES.items() if key in found]
        adopted.append(("data.buckets.upscale", not found.get("bucket_no_upscale", False)))
    return tuple(adopted)


def _resolution(value: Any, path: Path) -> str:
    sides = value if isinstance(value, list) else [value]
    if len(sides) not in (1, 2) or not all(
        type(side) is int and 1 <= side <= 9999 for side in sides
    ):
        raise DataError(
            f"{_at(path, 'resolution')} is {shortened(value, quoted=True)}; write 512 or [768, 512]"
        )
    return "x".join(map(str, sides))

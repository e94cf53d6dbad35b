"""What a file is in a few lines, the most useful first: for people who ask whether it is the right
file.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from konomi.formats.report import FileReport

_KINDS = {
    "lora": "LoRA",
    "loha": "LoHa",
    "lokr": "LoKr",
    "ia3": "(IA)^3",
    "diff": "differences",
    "whole": "weights",
}
_FEW = 3


def verdict(report: "FileReport") -> Iterator[tuple[str, list[str]]]:
    """Label and lines: what it is, what calls it, where it works, whether it is sound, what else
    is to be known.
    """
    if report.problem:
        yield "problem", [report.problem.removeprefix(f"{report.path}: ")]
    yield "what", [_what(report)]
    if trigger := _trigger(report):
        yield "trigger", [trigger]
    if prediction := _prediction(report.metadata):
        yield "predicts", [prediction]
    if report.readers:
        from konomi.formats.readers import sentences

        yield "works", list(sentences(report.readers))
        if places := [
            f"{reading.reader}: {reading.place}" for reading in report.readers if _usable(reading)
        ]:
            yield "goes to", places
    yield "health", _health(report)
    if report.ignored:
        reasons: dict[str, list[str]] = {}
        for name, why in report.ignored.items():
            reasons.setdefault(why, []).append(name)
        yield "not used", [f"{_first_of(names)}: {why}" for why, names in reasons.items()]
    if report.notes:
        yield "notes", list(report.notes)


def _what(report: "FileReport") -> str:
    kind = report.kind
    if kind == "lora":
        kinds = [name for name, _ in sorted(report.layer_kinds.items(), key=lambda item: -item[1])]
        names = [
            _KINDS.get(name.removesuffix("+dora"), name) + (" with DoRA" * name.endswith("+dora"))
            for name in kinds
        ]
        kind = " and ".join(dict.fromkeys(names)) or "LoRA"
    from konomi.families import title_of

    family = title_of(report.family) or "a model that the file does not name"
    words = [f"{kind} for {family}"]
    if report.ranks:
        words.append(f"rank {' and '.join(list(report.ranks)[:_FEW])}")
    if report.layers and report.kind in ("lora", "custom diffusion"):
        counts = [f"{count} in {part.replace('_', ' ')}" for part, count in report.layers.items()]
        words.append(f"layers: {', '.join(counts)}")
    return f"{', '.join(words)} ({report.format})"


def _trigger(report: "FileReport") -> str:
    """The word that calls it: said by the file, or the words it brings."""
    said = report.metadata.get("modelspec.trigger_phrase", "")
    brought = ", ".join(
        f"{word} ({next(iter(sizes.values()))[0]} vectors)"
        for word, sizes in list(report.tokens.items())[:_FEW]
    )
    more = f" and {len(report.tokens) - _FEW} more" if len(report.tokens) > _FEW else ""
    return "; ".join(part for part in (said if said not in brought else "", brought + more) if part)


def _prediction(metadata: Mapping[str, str]) -> str:
    """Only where it is not the usual noise: a model that is sampled the other way draws nothing
    but noise.
    """
    from konomi.formats.trained_for import declared_prediction, declared_zero_snr

    says = metadata.get("prediction_type") or declared_prediction(metadata)
    zero = declared_zero_snr(metadata) or metadata.get("zero_terminal_snr", "").lower() == "true"
    if says in ("", "epsilon") and not zero:
        return ""
    what = {
        "v": "v (velocity), not noise",
        "v_prediction": "v (velocity), not noise",
        "": "noise",
    }.get(says, says)
    return what + (", zero terminal SNR" if zero else "")


def _first_of(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} ({names[0]}, ...)"


def _usable(reading: object) -> bool:
    return bool(getattr(reading, "used", 0)) and bool(getattr(reading, "place", ""))


def _health(report: "FileReport") -> list[str]:
    health = report.health
    if not health.checked:
        return ["not checked"]
    if health.nonfinite:
        return [
            f"broken: {len(health.nonfinite)} tensors hold NaN or infinity ({health.nonfinite[0]}, "
            "...)"
        ]
    lines = []
    if report.unknown:
        lines.append(
            f"{len(report.unknown)} tensors belong to no known layer ({report.unknown[0]}, ...)"
        )
    if health.zero:
        lines.append(
            f"{len(health.zero)} tensors are all zero ({health.zero[0]}, ...): those did not train"
        )
    return lines or ["good: all numbers are finite, and no tensor is all zero"]

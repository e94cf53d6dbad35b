"""What kind of noise process an adapter was trained for, and on top of which others, by what its
file says of itself.

An adapter's tensors fit any base of its family. Whether the base predicts noise or v, and whether
its process ends in pure noise (Lin et al. 2023), the tensors do not tell, and pictures show too
late.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite

from konomi.config.parse import parse_json
from konomi.errors import shortened
from konomi.families.recognition import prediction_of_word

_WORDS = {"epsilon": "epsilon", "v": "v", "v_prediction": "v", "velocity": "v"}
_SAID = {"True": True, "true": True, "False": False, "false": False}
_MEANING = {
    "v": "v (velocity)",
    "epsilon": "noise (epsilon)",
    "sample": "the picture itself (sample)",
    "flow": "the direction from the picture to noise (flow matching)",
}

_TRAINED_WITH = "konomi.trained_with"
_MOST_FILES = 64


@dataclass(frozen=True, slots=True)
class AttachedFile:
    """An adapter that was attached while another was trained."""

    name: str
    """Of the file, without its folder."""
    sha256: str
    denoiser: float
    text: float

    @property
    def flag(self) -> str:
        """As `--add` takes it: `style.safetensors:0.8`."""
        if self.denoiser == self.text:
            return self.name if self.denoiser == 1 else f"{self.name}:{self.denoiser:g}"
        return f"{self.name}:unet={self.denoiser:g}:text={self.text:g}"


def attached_metadata(files: Sequence[AttachedFile]) -> dict[str, str]:
    """The entry for a file's metadata that says what it was trained on top of."""
    listed = json.dumps([asdict(file) for file in files], ensure_ascii=False)
    return {_TRAINED_WITH: listed} if files else {}


def declared_attached(metadata: Mapping[str, str]) -> tuple[AttachedFile, ...]:
    """What a file says that it was trained on top of; () where it says nothing, or nothing that can
    be read.
    """
    try:
        listed = parse_json(metadata.get(_TRAINED_WITH, "[]"))
    except ValueError:
        return ()
    found = []
    for one in listed[:_MOST_FILES] if isinstance(listed, list) else ():
        values = one if isinstance(one, dict) else {}
        name, hashed = values.get("name"), values.get("sha256")
        weights = [values.get("denoiser"), values.get("text")]
        numbers = [float(w) for w in weights if isinstance(w, int | float) and isfinite(w)]
        if isinstance(name, str) and isinstance(hashed, str) and len(numbers) == 2:
            found.append(AttachedFile(shortened(name, 120), hashed[:64], *numbers))
    return tuple(found)


def declared_prediction(metadata: Mapping[str, str]) -> str:
    """`v`, `epsilon`, or "" where the file does not say. An entry that says v outweighs one that
    says epsilon, which programs also write where they do not know.
    """
    versions = (
        metadata.get("ss_base_model_version", ""),
        metadata.get("modelspec.architecture", ""),
    )
    if _SAID.get(metadata.get("ss_v_parameterization", "")) or any(
        prediction_of_word(version.partition("/")[0]) == "v" for version in versions
    ):
        return "v"
    return _WORDS.get(metadata.get("modelspec.prediction_type", "").lower(), "")


def declared_zero_snr(metadata: Mapping[str, str]) -> bool | None:
    """Whether training had a process that ends in pure noise; None where the file does not say."""
    return _SAID.get(metadata.get("ss_zero_terminal_snr", ""))


def other_process(metadata: Mapping[str, str], *, prediction: str, zero_terminal_snr: bool) -> str:
    """In which way a base is not what the file was trained for, as the end of a sentence; "" where
    nothing is said.

    `prediction`, `zero_terminal_snr`: the base's.
    """
    differences = []
    trained = declared_prediction(metadata)
    if trained and trained != prediction:
        asked, has = _MEANING[trained], _MEANING[prediction]
        differences.append(f"for a base that predicts {asked}, and this one predicts {has}")
    with_zero = declared_zero_snr(metadata)
    if with_zero is not None and with_zero != zero_terminal_snr:
        how, has = ("with", "has none") if with_zero else ("without", "has it")
        differences.append(f"{how} zero terminal SNR, and this base {has}")
    return " and ".join(differences)

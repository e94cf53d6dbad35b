"""`inspect` and `convert`: what a file is, and the same thing in another format."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from konomi.adapters.adapter import Adapter
from konomi.adapters.conversion import as_differences, weights_of, with_origins
from konomi.adapters.conversion import compress as compressed
from konomi.adapters.kinds.magnitude import per_output
from konomi.errors import FileFormatError, KonomiError, RecipeError
from konomi.formats import aesthetic
from konomi.formats.adapter_file import inspect_file, read_adapter, write_adapter
from konomi.formats.readers import sentences
from konomi.formats.report import FileReport
from konomi.formats.writer import TARGETS, Target, content_of
from konomi.hardware.precision import PRECISIONS
from konomi.models.load import file_of, load_base
from konomi.models.noise_config import prediction_word
from konomi.models.save import save_folder, save_single_file
from konomi.storage.atomic import explained

_MODEL_KINDS = ("checkpoint", "model", "base")


def inspect(path: str | Path) -> FileReport:
    """What a model or adapter file is; of a whole model also what it predicts, and what of it
    konomi does not use.

    path: the file, or the folder of a model or adapter; or `tiny`, the base inside konomi. Nothing
    in it is executed.

    Raises FileFormatError.
    """
    path = file_of(path)
    report = inspect_file(path)
    if report.kind not in ("checkpoint", "model folder"):
        return report
    try:
        base = load_base(path, needs_vae=False)
    except KonomiError as error:
        return replace(report, problem=report.problem or str(error))
    facts = {"prediction_type": prediction_word(base.process.prediction)}
    facts |= {"zero_terminal_snr": "true"} if base.zero_terminal_snr else {}
    return replace(
        report, metadata={**report.metadata, **facts}, notes=(*report.notes, *base.notes)
    )


def where_it_works(path: str | Path) -> tuple[str, ...]:
    """How much of a file ComfyUI, A1111 and diffusers use, and what each would ignore: one line
    for each answer.

    path: an adapter or a model.
    """
    return sentences(inspect_file(Path(path), check=False).readers)


def convert(
    source: str | Path,
    target: str | Path,
    *,
    to: Target | None = None,
    precision: str | None = None,
    base: str | None = None,
    vae: str | Path | None = None,
    prediction: str | None = None,
    compress: float | None = None,
    tell: Callable[[str], object] = lambda _: None,
) -> Path:
    """Write an adapter or a whole model in another format. Returns the path that was written.

    source: the file or folder to read, or `tiny`.
    target: where to write; it must not exist.
    to: adapters: kohya (= webui), diffusers, peft, custom. Models: diffusers (a folder), webui
        (one file); by default a target that ends in .safetensors is one file, any other a folder.
    precision: number format of the tensors (fp32, fp16, bf16); by default each tensor keeps its
        own.
    base: the model an adapter belongs to, needed where whole weights and differences are turned
        into one another.
    vae: of models: where the VAE is taken from instead.
    prediction: of models: what they predict (epsilon, v_prediction, sample), in place of what the
        file says.
    compress: of adapters: share (above 0, at most 1) of the singular values of each change that is
        kept.
    tell: is handed a line on everything of the source that is not used, and so is not in the
        target.

    Raises RecipeError for a format that does not exist for this kind of file.
    """
    source, target = file_of(source), Path(target)
    if to is not None and to not in TARGETS:
        raise RecipeError(f"--to is {to!r}; choose one of {', '.join(TARGETS)}.")
    if compress is not None and not 0 < compress <= 1:
        raise RecipeError(
            f"--compress is {compress}; it is a share above 0 and at most 1, such as 0.6."
        )
    _check_target(source, target)
    dtype = None if precision is None else PRECISIONS[precision]
    if _is_model(source):
        if compress is not None:
            raise RecipeError(f"--compress is for adapters; {source.name} is a whole model.")
        return _convert_model(source, target, to, dtype, tell, vae=vae, prediction=prediction)
    for flag, value in (("--vae", vae), ("--prediction", prediction)):
        if value:
            raise RecipeError(f"{flag} is for whole models; {source.name} is an adapter.")
    if (kind := inspect_file(source, check=False).kind) == aesthetic.KIND:
        refused = {"--to": to, "--base": base, "--compress": compress, "--precision": precision}
        return _convert_aesthetic(source, target, refused)
    _refuse_part(source, kind)
    belongs_to = None if base is None else load_base(base, needs_vae=False)
    adapter = read_adapter(source, weight_of=None if belongs_to is None else weights_of(belongs_to))
    for note in adapter.notes:
        tell(note)
    is_custom = content_of(adapter) == "custom diffusion"
    if belongs_to is not None and (is_custom or compress is not None):
        adapter = with_origins(belongs_to, adapter)
    whole = [
        key for key, update in adapter.layers.items() if update.whole is not None and not is_custom
    ]
    if whole and belongs_to is None:
        raise RecipeError(
            f"{source}: {len(whole)} layers are given as whole weights (first {whole[0]}), which "
            "no other format holds. Name the base they belong to, and they become differences: "
            "--base BASE."
        )
    as_plain = whole + (_not_in_kohya(adapter) if to in (None, "kohya", "webui") else [])
    if belongs_to is not None and as_plain and compress is None:
        adapter = as_differences(belongs_to, adapter, as_plain)
    if compress is not None:
        adapter = replace(adapter, layers=compressed(adapter.layers, compress))
    if to is None and (is_custom or compress is not None):
        to = target_by_name(target)
    write_adapter(adapter, target, to=to, dtype=dtype)
    return target


def _not_in_kohya(adapter: Adapter) -> list[str]:
    """Layers that kohya's files do not hold as they are: magnitudes per output, PEFT's rotations of
    inputs. Whole weights are none of them.
    """
    found = []
    for key, update in adapter.layers.items():
        if update.whole is not None:
            continue
        try:
            update.to_parts(norm=False)
        except FileFormatError:
            found.append(key)
        else:
            found += [key] if per_output(update.magnitude) else []
    return found


def target_by_name(path: Path) -> Target:
    """The form that a name asks for where each is possible: delta.bin, a file for web UIs,
    diffusers' folder.
    """
    return {".bin": "custom", ".safetensors": "webui"}.get(path.suffix.lower(), "diffusers")  # type: ignore[return-value]


def _check_target(source: Path, target: Path) -> None:
    with explained(target):
        if target.exists() and source.resolve() == target.resolve():
            raise RecipeError(f"{target}: is the source itself. Name another target.")
    check_new(target)


def check_new(target: Path) -> None:
    """Raises RecipeError where something stands in the way of a result."""
    with explained(target):
        if target.exists():
            raise RecipeError(f"{target}: exists already. Remove it or choose another name.")


def _is_model(source: Path) -> bool:
    if (source / "model_index.json").is_file():
        return True
    return inspect_file(source, check=False).kind in _MODEL_KINDS


def _convert_aesthetic(source: Path, target: Path, refused: Mapping[str, object]) -> Path:
    if flag := next((flag for flag, value in refused.items() if value is not None), None):
        raise RecipeError(
            f"{flag}: {source.name} is an aesthetic embedding, whose form follows the target's "
            "ending: .pt for A1111, or .safetensors."
        )
    aesthetic.write_aesthetic(aesthetic.read_aesthetic(source), target)
    return target


def _refuse_part(source: Path, kind: str) -> None:
    """Raises RecipeError for one part of a model by itself, saying what takes it."""
    said = {
        "vae": "Every command that reads a base takes it with --vae, and konomi convert MODEL OUT "
        "--vae VAE puts it into a model, in either form.",
        "denoiser": "Give the folder above it, which holds model_index.json, or a complete "
        "checkpoint.",
        "text encoder": "Give the folder above it, which holds model_index.json, or a complete "
        "checkpoint.",
    }
    if kind in said:
        name = "VAE" if kind == "vae" else kind
        raise RecipeError(
            f"{source}: is a {name} alone, and convert takes whole models and adapters. "
            f"{said[kind]}"
        )


def _convert_model(
    source: Path,
    target: Path,
    to: Target | None,
    dtype: torch.dtype | None,
    tell: Callable[[str], object],
    *,
    vae: str | Path | None,
    prediction: str | None,
) -> Path:
    if to in ("kohya", "peft"):
        raise RecipeError(
            f"--to {to} is for adapters; {source.name} is a whole model. Use diffusers or webui."
        )
    base = load_base(source, vae=vae, prediction=prediction)
    for note in base.notes:
        tell(note)
    if to == "diffusers" or (to is None and target.suffix.lower() != ".safetensors"):
        save_folder(base, target, dtype=dtype or torch.float32)
    else:
        save_single_file(base, target, dtype=dtype or torch.float32)
    return target

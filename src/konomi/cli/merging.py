"""`konomi merge`."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from konomi.cli.arguments import ArgumentParser
from konomi.cli.plain import json_text, tell
from konomi.errors import RecipeError, printable
from konomi.language import translated

if TYPE_CHECKING:
    from konomi.tasks.merging_adapters import AdapterMerge
    from konomi.tasks.merging_models import ModelMerge


def merge(arguments: list[str]) -> int:
    """Make one file of several, in the way the first word says."""
    parser = ArgumentParser(
        prog="konomi merge", description="Merge several files into one.", allow_abbrev=False
    )
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    _add_custom(
        kinds.add_parser(
            "custom", help="files of Custom Diffusion that were trained apart", allow_abbrev=False
        )
    )
    _add_adapters(kinds.add_parser("adapters", help="LoRA and its family", allow_abbrev=False))
    _add_models(kinds.add_parser("models", help="whole models", allow_abbrev=False))
    _add_recipe(
        kinds.add_parser(
            "recipe", help="whole models, in several steps from a TOML file", allow_abbrev=False
        )
    )
    _add_saves(
        kinds.add_parser(
            "saves", help="the files of one run, as a moving average (EMA)", allow_abbrev=False
        )
    )
    options = parser.parse_args(arguments)
    verb: Callable[[argparse.Namespace], int] = options.verb
    return verb(options)


def _add_models(parser: argparse.ArgumentParser) -> None:
    from konomi.merging.methods import METHODS
    from konomi.merging.weights import PRESETS

    parser.description = (
        "Merge models of one family into one .safetensors file, tensor by tensor: no model is in "
        "memory whole. Methods that add differences (add_difference, ties, dare ...) take the "
        "model that the others were trained from as the last one."
    )
    parser.set_defaults(verb=_models)
    parser.add_argument(
        "models", metavar="MODEL", nargs="+", help=".safetensors or .ckpt file, diffusers folder"
    )
    ways = ", ".join(method.name for method in METHODS)
    parser.add_argument("--how", metavar="HOW", default="weighted_sum", help=f"one of {ways}")
    parser.add_argument(
        "--alpha", metavar="X", type=float, help="weight of what is added or mixed in"
    )
    parser.add_argument(
        "--beta", metavar="X", type=float, help="second weight, of triple_sum and della"
    )
    parser.add_argument(
        "--density",
        metavar="X",
        type=float,
        help="share of a difference that is kept, of ties, dare and della",
    )
    parser.add_argument(
        "--seed", metavar="S", type=int, default=0, help="of what dare and della draw"
    )
    names = ", ".join(name for name, _ in PRESETS)
    parser.add_argument(
        "--blocks",
        metavar="B",
        help=f"alpha by block: IN00:0,OUT11:1, or a number for each, or one of {names}",
    )
    parser.add_argument("--base-alpha", metavar="X", type=float, help="alpha of the text encoders")
    parser.add_argument(
        "--rule",
        metavar="PATTERN:X",
        action="append",
        default=[],
        help="alpha of the tensors with such names (*attn2*:0.3); the last that fits decides",
    )
    add_result_flags(parser)
    parser.add_argument("--merge-vae", action="store_true", help="merge the VAEs too, with alpha")
    parser.add_argument(
        "--prediction",
        metavar="P",
        help="what the result predicts (epsilon, v_prediction), where the models do not agree",
    )


def _add_adapters(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Merge adapters into one file that does what all of them do together: exactly, with as "
        "many ranks as all have, or in fewer."
    )
    parser.set_defaults(verb=_adapters)
    parser.add_argument(
        "adapters", metavar="FILE[:WEIGHT]", nargs="+", help="FILE, FILE:0.8, FILE:unet=1:text=0.5"
    )
    add_adapter_flags(parser)


def _add_saves(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Average the files that a run saved, as if a moving average of the weights (EMA) had been "
        "kept in training: how long it remembers is chosen now."
    )
    parser.set_defaults(verb=_saves)
    parser.add_argument("run", metavar="RUN", type=Path, help="the run folder")
    parser.add_argument(
        "--ema",
        metavar="X",
        type=float,
        default=0.1,
        help="width of the average in shares of the training: 0.05 follows the last steps, 0.25 "
        "nearly all (default: %(default)s)",
    )
    parser.add_argument(
        "--until", metavar="STEP", type=int, help="the step that counts as the last"
    )
    add_adapter_flags(parser)


def _saves(options: argparse.Namespace) -> int:
    from konomi import tasks

    done = tasks.merge_saves(
        options.run,
        options.output,
        ema=options.ema,
        until=options.until,
        base=options.base,
        progress=bar(),
        **adapter_options(options),
    )
    if options.json:
        print(json_text(done))
        return 0
    for step, weight in done.weights.items():
        print(translated(f"  {weight:6.1%}  step {step}"))
    if done.error:
        print(translated(f"The largest error of a reduced rank is {done.error:.2%} of the change."))
    print(translated(f"Wrote {printable(str(done.path))}"))
    return 0


def add_adapter_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of every verb that writes a LoRA."""
    parser.add_argument("--rank", metavar="R", type=int, help="directions of each layer, at most")
    parser.add_argument(
        "--energy",
        metavar="X",
        type=float,
        help="in place of a rank: share of each layer's squared change that is kept (0.99)",
    )
    parser.add_argument(
        "--max-mib", metavar="M", type=float, help="in place of a rank: size of the file in MiB"
    )
    parser.add_argument("--precision", metavar="P", help="number format: fp32, fp16, bf16")
    parser.add_argument(
        "--to", metavar="FORMAT", help="kohya, diffusers, peft; by default what most programs read"
    )
    parser.add_argument(
        "-o", "--output", metavar="OUT", type=Path, required=True, help="a new file"
    )
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    if parser.prog.rpartition(" ")[2] != "extract":
        parser.add_argument(
            "--base", metavar="BASE", help="the model an adapter belongs to, where that is needed"
        )


def _adapters(options: argparse.Namespace) -> int:
    from konomi import tasks

    done = tasks.merge_adapters(
        options.adapters, options.output, base=options.base, **adapter_options(options)
    )
    print_adapter(done, options)
    return 0


def adapter_options(options: argparse.Namespace) -> dict[str, Any]:
    """What `add_adapter_flags` added, for the verbs."""
    names = ("rank", "energy", "max_mib", "precision", "to")
    return {name: getattr(options, name) for name in names} | {"tell": note_to(options)}


def print_adapter(done: "AdapterMerge", options: argparse.Namespace) -> None:
    """What became of an adapter."""
    if options.json:
        print(json_text(done))
        return
    if done.reduced:
        ranks = [layer.rank for layer in done.reduced]
        worst = max(done.reduced, key=lambda layer: layer.error)
        said = (
            f"{len(done.reduced)} layers with ranks {min(ranks)} to {max(ranks)}; the largest "
            f"error is {worst.error:.2%} of the change, in {worst.key}."
        )
    else:
        said = f"{done.num_layers} layers, exactly the sum."
    print(translated(said))
    print(translated(f"Wrote {printable(str(done.path))}"))


def note_to(options: argparse.Namespace) -> Callable[[str], object]:
    """Where notes go: with --json they are in the report."""
    return _quiet if options.json else tell


def add_result_flags(parser: argparse.ArgumentParser, *, fp8: bool = False) -> None:
    """Flags of every verb that writes a model. `fp8`: the verb knows that number format too."""
    parser.add_argument(
        "--vae", metavar="VAE", help="take the VAE from there; by default the first model's"
    )
    parser.add_argument(
        "--precision",
        metavar="P",
        help="number format of the result: fp32, fp16, bf16, fp8 (e4m3); by default the model's"
        if fp8
        else "number format of the result: fp32, fp16, bf16; by default the first model's",
    )
    parser.add_argument(
        "-o", "--output", metavar="OUT", type=Path, required=True, help="a .safetensors file"
    )
    parser.add_argument("--json", action="store_true", help="print JSON for programs")


def _models(options: argparse.Namespace) -> int:
    from konomi import tasks

    done = tasks.merge_models(
        options.models,
        options.output,
        how=options.how,
        alpha=options.alpha,
        beta=options.beta,
        density=options.density,
        seed=options.seed,
        blocks=options.blocks,
        base_alpha=options.base_alpha,
        rules=options.rule,
        precision=options.precision,
        vae=options.vae,
        merge_vae=options.merge_vae,
        prediction=options.prediction,
        tell=note_to(options),
        progress=bar(),
    )
    return _print_models(done, options)


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Merge models in several steps, read from a TOML file with a [[merge]] table for each: in "
        "one pass, in float32, and without files between."
    )
    parser.set_defaults(verb=_recipe)
    parser.add_argument("recipe", metavar="RECIPE", type=Path, help="a .toml file")
    parser.add_argument(
        "-o", "--output", metavar="OUT", type=Path, required=True, help="a .safetensors file"
    )
    parser.add_argument("--json", action="store_true", help="print JSON for programs")


def _recipe(options: argparse.Namespace) -> int:
    from konomi import tasks

    done = tasks.merge_recipe(options.recipe, options.output, tell=note_to(options), progress=bar())
    return _print_models(done, options)


def _print_models(done: "ModelMerge", options: argparse.Namespace) -> int:
    if options.json:
        print(json_text(done))
        return 0
    print(
        translated(
            f"{done.num_merged} tensors merged by {done.how}, {done.num_kept} kept as they are."
        )
    )
    print(translated(f"Wrote {printable(str(done.path))}"))
    return 0


def _quiet(line: str) -> None:
    """With --json the notes are in the report."""


def bar() -> Callable[[int, int], object]:
    """A line on a terminal's standard error that says how far the work is; nothing elsewhere."""
    if not sys.stderr.isatty():
        return lambda done, total: None
    shown = [-1]

    def show(done: int, total: int) -> None:
        percent = 100 * done // max(total, 1)
        if percent != shown[0]:
            shown[0] = percent
            end = "\r\x1b[K" if done >= total else ""
            print(f"\r{percent} %{end}", end="", file=sys.stderr, flush=True)

    return show


def _add_custom(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(verb=_custom)
    parser.description = (
        "Merge files of Custom Diffusion in closed form: each subject keeps what its word stands "
        "for, and the base changes as little as it can on ordinary captions."
    )
    parser.add_argument("files", metavar="FILE", nargs="+", help="files or folders, two or more")
    parser.add_argument(
        "--base", metavar="BASE", required=True, help="the model all of them were trained on"
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        type=Path,
        required=True,
        help="folder, .bin or .safetensors",
    )
    parser.add_argument(
        "--prompt",
        metavar="TEXT",
        action="append",
        default=[],
        help='a text with the word of a file; repeat it for more (by default "photo of a WORD")',
    )
    parser.add_argument(
        "--captions",
        metavar="FILE",
        type=Path,
        help="ordinary captions, one a line; konomi has some",
    )
    parser.add_argument(
        "--to", metavar="FORMAT", help="diffusers, custom, webui; by default chosen by OUT's name"
    )


def _custom(options: argparse.Namespace) -> int:
    from konomi import tasks

    if options.to is not None and options.to not in ("diffusers", "custom", "webui", "kohya"):
        raise RecipeError(f"--to is {options.to!r}; choose diffusers, custom or webui.")
    merged = tasks.merge_custom(
        options.files,
        options.output,
        base=options.base,
        prompts=options.prompt,
        captions=options.captions,
        to=options.to,
        tell=tell,
    )
    for prompt in merged.prompts:
        print(translated(f"kept: {prompt}"))
    said = (
        f"{merged.num_captions} ordinary captions; largest error on what is kept: "
        f"{merged.largest_error:.1e}"
    )
    print(translated(said))
    print(translated(f"Wrote {merged.path}"))
    return 0

"""`konomi bake`, `extract`, `resize`, `split` and `slim`: a file made of one or two others."""

from pathlib import Path

from konomi.cli.arguments import ArgumentParser
from konomi.cli.merging import (
    adapter_options,
    add_adapter_flags,
    add_result_flags,
    bar,
    note_to,
    print_adapter,
)
from konomi.cli.plain import json_text
from konomi.errors import printable
from konomi.language import translated

SHOWN_LAYERS = 5


def bake(arguments: list[str]) -> int:
    """Fold adapters into a model."""
    parser = ArgumentParser(
        prog="konomi bake",
        description="Fold adapters into a model, tensor by tensor, and write it as one file. It "
        "draws what the model draws with them attached.",
        allow_abbrev=False,
    )
    parser.add_argument("base", metavar="BASE", help="file, diffusers folder, tiny or hub id")
    parser.add_argument(
        "--add",
        metavar="FILE[:WEIGHT]",
        action="append",
        default=[],
        required=True,
        help="an adapter: FILE, FILE:0.8, FILE:unet=1:text=0.5; repeat it for more",
    )
    parser.add_argument(
        "--prediction", metavar="P", help="what it predicts, in place of what the file says"
    )
    add_result_flags(parser)
    options = parser.parse_args(arguments)

    from konomi import tasks

    done = tasks.bake(
        options.base,
        options.add,
        options.output,
        precision=options.precision,
        vae=options.vae,
        prediction=options.prediction,
        tell=note_to(options),
        progress=bar(),
    )
    if options.json:
        print(json_text(done))
        return 0
    print(translated(f"{len(done.layers)} layers changed."))
    print(translated(f"Wrote {printable(str(done.path))}"))
    return 0


def slim(arguments: list[str]) -> int:
    """Write a model without what it does not need."""
    parser = ArgumentParser(
        prog="konomi slim",
        description="Write a model as one file without running averages and an optimiser's state, "
        "in a smaller number format, with another VAE or other text encoders.",
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", help="file, diffusers folder, tiny or hub id")
    parser.add_argument(
        "--text-encoder",
        metavar="MODEL",
        help="take the text encoders from this model of the same family",
    )
    parser.add_argument(
        "--use-ema",
        action="store_true",
        help="write the running averages in place of the U-Net's weights",
    )
    add_result_flags(parser, fp8=True)
    options = parser.parse_args(arguments)

    from konomi import tasks

    done = tasks.slim(
        options.model,
        options.output,
        precision=options.precision,
        vae=options.vae,
        text_encoder=options.text_encoder,
        use_ema=options.use_ema,
        tell=note_to(options),
        progress=bar(),
    )
    if options.json:
        print(json_text(done))
        return 0
    print(translated(f"Wrote {printable(str(done.path))}"))
    return 0


def extract(arguments: list[str]) -> int:
    """Make a LoRA of what a tuned model has learned."""
    parser = ArgumentParser(
        prog="konomi extract",
        description="Write what a tuned model has learned as a LoRA or LoKr: the difference from "
        "its base, layer by layer, by its largest singular values.",
        allow_abbrev=False,
    )
    parser.add_argument("tuned", metavar="TUNED", help="file, diffusers folder or hub id")
    parser.add_argument(
        "--from", dest="base", metavar="BASE", required=True, help="the model it was tuned from"
    )
    parser.add_argument(
        "--kind",
        metavar="KIND",
        default="locon",
        help="lora (linear layers), locon (convolutions too, the default) or lokr (the nearest "
        "Kronecker product)",
    )
    parser.add_argument(
        "--factor", metavar="N", type=int, help="of lokr: width of the first factor (default: 8)"
    )
    parser.add_argument(
        "--layers", metavar="NAMES", help="kinds of layers in place of these, with commas between"
    )
    parser.add_argument(
        "--picture",
        metavar="FILE",
        type=Path,
        help="a new .png or .svg with the singular values and the error of each layer",
    )
    add_adapter_flags(parser)
    options = parser.parse_args(arguments)

    from konomi import tasks

    done = tasks.extract(
        options.tuned,
        options.base,
        options.output,
        kind=options.kind,
        factor=options.factor,
        layers=tuple(n for n in options.layers.split(",") if n) if options.layers else None,
        picture=options.picture,
        progress=bar(),
        **adapter_options(options),
    )
    if options.json:
        print(json_text(done))
        return 0
    ranks = [layer.rank for layer in done.layers]
    if options.kind == "lokr":
        size = f"{len(done.layers)} layers as Kronecker products"
    else:
        size = f"{len(done.layers)} layers with ranks {min(ranks)} to {max(ranks)}"
    print(translated(f"{size}; together they miss {done.error:.2%} of the difference."))
    worst = sorted(done.layers, key=lambda layer: -layer.error)[:SHOWN_LAYERS]
    for layer in worst:
        print(f"  {layer.error:7.2%}  {layer.key}")
    print(translated(f"Wrote {printable(str(done.path))}"))
    if done.picture is not None:
        print(translated(f"Wrote {printable(str(done.picture))}"))
    return 0


def resize(arguments: list[str]) -> int:
    """Write a LoRA in fewer ranks."""
    parser = ArgumentParser(
        prog="konomi resize",
        description="Write a LoRA in fewer ranks, each layer by its largest singular values.",
        allow_abbrev=False,
    )
    parser.add_argument("adapter", metavar="FILE[:WEIGHT]", help="the LoRA")
    add_adapter_flags(parser)
    options = parser.parse_args(arguments)

    from konomi import tasks

    done = tasks.resize(
        options.adapter, options.output, base=options.base, **adapter_options(options)
    )
    print_adapter(done, options)
    return 0


def split(arguments: list[str]) -> int:
    """Write the blocks of an adapter at weights of their own."""
    parser = ArgumentParser(
        prog="konomi split",
        description="Write a LoRA with a weight for each block, and what is left of it as a second "
        "file: the two together are the whole.",
        allow_abbrev=False,
    )
    parser.add_argument("adapter", metavar="FILE", help="the LoRA")
    parser.add_argument(
        "--blocks",
        metavar="B",
        required=True,
        help="IN00-IN08:0,OUT03:0.5,BASE:1 (others keep 1), 12, 17, 20 or 26 numbers, or OUTALL "
        "and the other presets of the block weight extension",
    )
    parser.add_argument(
        "-o", "--output", metavar="OUT", type=Path, required=True, help="a new file"
    )
    parser.add_argument(
        "--rest", metavar="OUT", type=Path, help="a second new file, each block at 1 - weight"
    )
    parser.add_argument("--precision", metavar="P", help="number format: fp32, fp16, bf16")
    parser.add_argument(
        "--to", metavar="FORMAT", help="kohya, diffusers, peft; by default what most programs read"
    )
    parser.add_argument(
        "--base", metavar="BASE", help="the model an adapter belongs to, where that is needed"
    )
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    options = parser.parse_args(arguments)

    from konomi import tasks

    done = tasks.split(
        options.adapter,
        options.output,
        blocks=options.blocks,
        rest=options.rest,
        base=options.base,
        precision=options.precision,
        to=options.to,
        tell=note_to(options),
    )
    if options.json:
        print(json_text(done))
        return 0
    print("  ".join(f"{block} {weight:g}" for block, weight in sorted(done.weights.items())))
    print(translated(f"Wrote {printable(str(done.path))}, {done.num_layers} layers"))
    if done.rest is not None:
        print(translated(f"Wrote {printable(str(done.rest))}, {done.num_rest} layers"))
    return 0

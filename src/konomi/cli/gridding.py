"""`konomi grid`."""

from pathlib import Path

from konomi.cli.arguments import ArgumentParser
from konomi.cli.generating import METAVARS, add_picture_settings
from konomi.cli.recipes import add_base_flags
from konomi.language import translated


def grid(arguments: list[str]) -> int:
    """Draw settings against each other; prints where the picture and the page are."""
    options = _parser().parse_intermixed_args(arguments)

    from konomi import tasks
    from konomi.cli.plain import json_text
    from konomi.cli.progress import finished_or_interrupted

    events = tasks.grid(
        options.x,
        options.y,
        base=options.base,
        z=options.z,
        prompt=options.prompt or "",
        add=options.add,
        edit=options.edit,
        vae=options.vae,
        prediction=options.prediction,
        **{name: getattr(options, name) for name in METAVARS},
        size=options.size,
        clip_skip=options.clip_skip,
        output=options.output,
        batch=options.batch,
        device=options.device,
        precision=options.precision,
    )
    finished = finished_or_interrupted(events, quiet=options.json)
    if finished is None or isinstance(finished, int):
        return finished or 0
    if options.json:
        print(json_text({"page": finished.path, "picture": finished.pictures[0]}))
        return 0
    print(translated(f"Wrote {finished.pictures[0]}"))
    print(translated(f"Look at {finished.path}"))
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="konomi grid",
        usage="konomi grid [PROMPT] --x SETTING=VALUES [--y SETTING=VALUES] [--z SETTING=VALUES] "
        "--base BASE [options]",
        description="Draw two or three settings against each other, in one picture and on a page. "
        "Settings: weight, file, prompt, seed, steps, guidance, guidance_rescale, sampler, "
        "negative, size, clip_skip, eta.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("prompt", metavar="PROMPT", nargs="?", help="what to draw, where no axis says it")
    add(
        "--x",
        metavar="SETTING=VALUES",
        required=True,
        help="from left to right: weight=0.4:1.2:5, seed=1:4, file=a.safetensors,base",
    )
    add(
        "--y",
        metavar="SETTING=VALUES",
        default="",
        help="from top to bottom; prompts are divided by semicolons (default: one row)",
    )
    add("--z", metavar="SETTING=VALUES", default="", help="a sheet for each value")
    add("--base", required=True, help="`tiny`, a folder, a .safetensors or .ckpt file, or a hub id")
    add_base_flags(parser)
    add("--add", metavar="FILE[:WEIGHT]", default="", help="an adapter, where no axis is of files")
    add(
        "--edit",
        metavar="FILE",
        type=Path,
        help="an edited picture (konomi train imagic), for an axis eta=0:1.2:7",
    )
    add_picture_settings(parser, seed="0")
    add("--size", metavar="WxH", help="in pixels, multiples of 8; by default the base's own")
    add("--clip-skip", metavar="N", type=int, help="CLIP layer from the end; 0: the base's own")
    add(
        "--batch",
        metavar="N",
        type=int,
        default=4,
        help="images generated at a time (default: %(default)s)",
    )
    add("--output", metavar="DIR", type=Path, help="where to (default: a folder below grids)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: %(default)s)")
    add("--precision", default="auto", help="auto, fp32, bf16, fp16 (default: %(default)s)")
    add("--json", action="store_true", help="print JSON for programs")
    return parser

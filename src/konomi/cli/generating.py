"""`konomi generate`."""

import argparse
import json
from pathlib import Path

from konomi.cli.arguments import ArgumentParser
from konomi.cli.recipes import add_base_flags
from konomi.errors import printable

SAMPLERS = "ddim, euler, euler_a, heun, lms, dpmpp_2m, dpmpp_2m_karras, dpmpp_2m_sde, dpmpp_2m_sde_karras, unipc, pndm"


def generate(arguments: list[str]) -> int:
    """Draw pictures; prints each file's path when it is written."""
    parser = _parser()
    options = parser.parse_intermixed_args(arguments)
    if not options.prompts and options.prompt_file is None:
        parser.error("give a prompt, or --prompt-file FILE")

    from konomi import tasks
    from konomi.cli.plain import tell

    paths = tasks.generate(
        options.prompts,
        base=options.base,
        vae=options.vae,
        prediction=options.prediction,
        add=options.add,
        negative=options.negative,
        seed=options.seed,
        steps=options.steps,
        guidance=options.guidance,
        guidance_rescale=options.guidance_rescale,
        size=options.size,
        count=options.count,
        sampler=options.sampler,
        init=options.init,
        strength=options.strength,
        mask=options.mask,
        output=options.output,
        batch=options.batch,
        grid=options.grid,
        clip_skip=options.clip_skip,
        device=options.device,
        precision=options.precision,
        prompt_file=options.prompt_file,
        tell=_tell_json if options.json else tell,
    )
    for path in paths:
        print(json.dumps({"picture": str(path)}) if options.json else path, flush=True)
    return 0


def _tell_json(note: str) -> None:
    print(json.dumps({"note": printable(note)}), flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(
        prog="konomi generate",
        description="Draw pictures. The settings are written into each PNG; the same seed gives the same picture.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("prompts", metavar="PROMPT", nargs="*", help="what to draw; several prompts give several pictures")
    add("--base", required=True, help="`tiny`, a folder, a .safetensors or .ckpt file, or a hub id")
    add_base_flags(parser)
    add("--add", metavar="FILE[:WEIGHT]", action="append", default=[], help="an adapter; may be repeated")
    add("--negative", metavar="P", default="", help="what to avoid")
    add("--seed", metavar="S", type=int, help="of the first picture; by default a new one")
    add("--steps", metavar="N", type=int, default=25, help="sampling steps (default: %(default)s)")
    add("--guidance", metavar="G", type=float, default=7.0, help="hold on the prompt (default: %(default)s)")
    add(
        "--guidance-rescale",
        metavar="PHI",
        type=float,
        help="contrast kept under guidance, 0 to 1; by default 0.7 for bases whose noise ends in pure noise, else 0",
    )
    add("--size", metavar="WxH", help="in pixels, multiples of 8; by default the base's own")
    add("--count", metavar="N", type=int, default=1, help="pictures for each prompt (default: %(default)s)")
    add("--batch", metavar="N", type=int, default=1, help="pictures drawn at a time (default: %(default)s)")
    add("--sampler", metavar="NAME", default="dpmpp_2m", help=f"one of {SAMPLERS} (default: %(default)s)")
    add("--init", metavar="IMAGE", type=Path, help="a picture to start from; a large one is fitted to the base's area")
    add("--strength", metavar="X", type=float, help="share of it drawn anew (default: 0.7)")
    add("--mask", metavar="IMAGE", type=Path, help="white where the picture is to be drawn anew")
    add("--output", metavar="DIR", type=Path, default=Path("images"), help="where to (default: %(default)s)")
    add("--grid", action="store_true", help="also write all pictures on one sheet")
    add("--clip-skip", metavar="N", type=int, default=0, help="CLIP layer from the end; 0: the base's own")
    add("--prompt-file", metavar="FILE", type=Path, help="one prompt a line, with --n --w --h --d --s --l")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: %(default)s)")
    add("--precision", default="auto", help="auto, fp32, bf16, fp16 (default: %(default)s)")
    add("--json", action="store_true", help="a JSON object for each picture and each note, one a line")
    return parser

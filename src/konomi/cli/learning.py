"""`konomi learn-start`."""

import sys
from dataclasses import asdict
from json import dumps
from typing import TYPE_CHECKING

from konomi.cli.arguments import ArgumentParser
from konomi.cli.countdown import Countdown
from konomi.cli.plain import tell
from konomi.errors import printable
from konomi.language import translated

if TYPE_CHECKING:
    from konomi.tasks.learning_start import StartEvent, StartLearned

INTERRUPTED = 130


def learn_start(arguments: list[str]) -> int:
    """Learn a network that guesses where a word starts."""
    options = _parser().parse_args(arguments)

    from konomi import tasks
    from konomi.tasks.learning_start import StartLearned

    events = tasks.learn_start(
        options.base,
        subjects=options.subjects,
        words=options.words,
        pictures=options.pictures,
        network=options.network,
        clip=options.clip,
        epochs=options.epochs,
        rate=options.rate,
        seed=options.seed,
        output=options.output,
        overwrite=options.overwrite,
        device=options.device,
        precision=options.precision,
    )
    show = _Shown(json=options.json)
    try:
        for event in events:
            if isinstance(event, StartLearned):
                _print_result(event, json=options.json)
            else:
                show(event)
    except KeyboardInterrupt:
        told = "Interrupted; what is done is kept. The same command goes on with it."
        print(translated(told), file=sys.stderr)
        return INTERRUPTED
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="konomi learn-start",
        description="Learn, once per base, a network that guesses the first embedding of a word "
        "from its pictures, for method.initial=leap.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--base", required=True, help="`tiny` (built in), a folder, a file, or a hub id")
    add(
        "--subjects",
        metavar="DIR",
        default="",
        help="folder of folders of pictures to learn from, each with an embedding file in it or "
        "called by words the base knows (default: the base draws words of its vocabulary)",
    )
    add("--words", metavar="N", type=int, default=400, help="how many (default: %(default)s)")
    add(
        "--pictures",
        metavar="N",
        type=int,
        default=16,
        help="pictures of each word or folder (default: %(default)s)",
    )
    add(
        "--network",
        choices=("auto", "features", "convolutional"),
        default="auto",
        help="linear in a CLIP's features, LEAP's convolutions, or the better of both "
        "(default: %(default)s)",
    )
    add(
        "--clip",
        metavar="CLIP",
        default="",
        help="a CLIP folder or hub id, in place of the base's own",
    )
    add(
        "--epochs",
        metavar="N",
        type=int,
        default=250,
        help="of the convolutional network (default: %(default)s)",
    )
    add(
        "--rate",
        type=float,
        default=1e-4,
        help="learning rate of the convolutional network (default: %(default)s)",
    )
    add("--seed", metavar="S", type=int, default=0, help="random seed (default: %(default)s)")
    add(
        "--output",
        metavar="FILE",
        default="",
        help="the file (default: where training with this base looks for it)",
    )
    add("--overwrite", action="store_true", help="replace the file if it exists")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: %(default)s)")
    add(
        "--precision",
        default="auto",
        help="number format of drawing: auto, fp32, fp16, bf16 (default: %(default)s)",
    )
    add("--json", action="store_true", help="print JSON for programs")
    return parser


class _Shown:
    """Progress with the time left on a terminal, remarks, and what each network is worth."""

    def __init__(self, *, json: bool) -> None:
        self.json = json
        self.counts: dict[str, Countdown] = {}
        self.live = sys.stderr.isatty() and not json

    def __call__(self, event: "StartEvent") -> None:
        from konomi.training.events import Prepared, Warned

        if isinstance(event, Warned):
            self._say(event.message)
        elif isinstance(event, Prepared):
            left = self.counts.setdefault(event.what, Countdown()).text(event)
            end = "\n" if event.done == event.total else ""
            if self.live:
                told = translated(f"{event.what}: {event.done}/{event.total}")
                print(f"\r{told}  {translated(left):16}", end=end, file=sys.stderr, flush=True)

    def _say(self, message: str) -> None:
        if self.json:
            print(dumps({"note": printable(message)}), flush=True)
        else:
            tell(message)


def _print_result(event: "StartLearned", *, json: bool) -> None:
    if json:
        print(dumps(asdict(event)))
        return
    from rich.table import Table

    from konomi.cli.screen import screen

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(translated("network"))
    for name in ("held out", "similarity", "error", "error of the mean"):
        table.add_column(translated(name), justify="right")
    for one in event.measured:
        cells = (f"{one.similarity:.3f}", f"{one.error:.4f}", f"{one.mean_error:.4f}")
        table.add_row(one.kind, str(one.subjects), *cells)
    screen().print(table)
    print(translated("Similarity to the true embeddings, as seen from their mean: 1 is the best."))
    print(event.path)
    print(translated("Train from it: konomi train textual_inversion ... method.initial=leap"))

"""`konomi COMMAND`: find the command, run it, and turn what goes wrong into one line and an exit
code.

Nothing heavy is imported before a command needs it, so that `konomi --help` answers at once.
"""

import difflib
import importlib
import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from types import FrameType

from konomi import __version__
from konomi.errors import KonomiError
from konomi.language import translated

USAGE_ERROR = 2
INTERRUPTED = 130
BROKEN_PIPE = 141

COMMANDS: tuple[tuple[str, str, str], ...] = (
    (
        "demo",
        "konomi.cli.training",
        "train three methods on the built-in base and images, and say which to keep",
    ),
    ("collect", "konomi.cli.collecting", "collect pictures and tags from a site"),
    ("new", "konomi.cli.recipes", "write a commented recipe"),
    ("check", "konomi.cli.recipes", "check images, captions, sizes and steps before training"),
    ("train", "konomi.cli.training", "train from a recipe, or a method and a folder of images"),
    ("resume", "konomi.cli.training", "continue a run exactly where it stopped"),
    ("branch", "konomi.cli.training", "go back to a checkpoint and go on with other settings"),
    ("benchmark", "konomi.cli.benchmarking", "measure methods by the protocol of a published work"),
    ("compare", "konomi.cli.comparing", "train candidates alike, and say which one to keep"),
    ("generate", "konomi.cli.generating", "generate images"),
    (
        "evaluate",
        "konomi.cli.evaluating",
        "measure saved files beside the base, and say which to keep",
    ),
    ("grid", "konomi.cli.gridding", "draw settings against each other"),
    ("identifiers", "konomi.cli.identifying", "list rare words that can serve as identifiers"),
    (
        "learn-start",
        "konomi.cli.learning",
        "learn a network that guesses a word's first embedding",
    ),
    ("inspect", "konomi.cli.files", "show what a model or adapter file is"),
    ("convert", "konomi.cli.files", "write a file in another tool's format"),
    ("merge", "konomi.cli.merging", "merge several files into one"),
    ("bake", "konomi.cli.workshop", "fold adapters into a model"),
    ("extract", "konomi.cli.workshop", "make a LoRA of what a tuned model has learned"),
    ("resize", "konomi.cli.workshop", "write a LoRA in fewer ranks"),
    ("split", "konomi.cli.workshop", "write the blocks of a LoRA at weights of their own"),
    ("slim", "konomi.cli.workshop", "write a model without what it does not need"),
    ("report", "konomi.cli.reporting", "write the page of a run or a comparison again"),
    ("doctor", "konomi.cli.machine", "show what this machine can run"),
)
"""Name, module, and what it does. The module has a function of that name: arguments -> exit
code."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns its exit code: 0 done, 1 something to mend, 2 usage, 130
    interrupted.

    No error leaves it, of whatever kind, unless KONOMI_DEBUG is set: then its traceback is wanted.
    """
    _prepare_streams()
    # Waiting OpenMP threads sleep instead of spinning: with a busy neighbour, spinning made a step
    # ten times slower. Read when torch is loaded, which is later.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    interrupts: list[int] = []
    listening = _notice(interrupts)
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print(translated("Interrupted."), file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has left. Python would complain once more while closing stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except SystemExit as leaving:
        # argparse leaves this way after --help (0) and after usage errors (2).
        return leaving.code if isinstance(leaving.code, int) else 0
    except Exception as error:
        # The top: what got here has no other reader than the person.
        if os.environ.get("KONOMI_DEBUG"):
            raise
        return _ended_by(error, arguments, interrupted=bool(interrupts))
    finally:
        if listening:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _ended_by(error: Exception, arguments: Sequence[str], *, interrupted: bool) -> int:
    """One line on standard error: the message of what the person can mend, a note of where the
    details lie else.
    """
    if interrupted:
        # A library took the Ctrl-C for a failure of its own, as imports that are cut off do.
        print(translated("Interrupted."), file=sys.stderr)
        return INTERRUPTED
    if isinstance(error, KonomiError):
        print(translated(str(error)), file=sys.stderr)
        return 1
    from konomi.cli.failure import explain_failure

    print(translated(explain_failure(error, arguments)), file=sys.stderr)
    return 1


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        if arguments[1:] and arguments[0] == "help":
            return _dispatch([arguments[1], "--help"])
        print(_overview())
        return 0 if arguments else USAGE_ERROR
    if arguments[0] in ("-V", "--version"):
        print(f"konomi {__version__}")
        return 0
    name, *rest = arguments
    for command, module, _ in COMMANDS:
        if command == name:
            run: Callable[[list[str]], int] = getattr(
                importlib.import_module(module), command.replace("-", "_")
            )
            return run(rest)
    close = difflib.get_close_matches(name, [command for command, _, _ in COMMANDS], 1)
    meant = f" Did you mean {close[0]}?" if close else " `konomi --help` lists the commands."
    print(translated(f"konomi {name}: no such command.{meant}"), file=sys.stderr)
    return USAGE_ERROR


def _overview() -> str:
    lines = [
        "usage: konomi COMMAND ...",
        "",
        "Fine-tune a text-to-image diffusion model to your own taste.",
        "",
        *(f"  {command:<13}{translated(what)}" for command, _, what in COMMANDS),
        "",
        "Run konomi COMMAND --help for details. Start with: konomi demo",
    ]
    return translated("\n".join(lines))


def _notice(interrupts: list[int]) -> bool:
    """Let Ctrl-C leave a note besides raising KeyboardInterrupt. Whether that was possible."""
    # Where it is ignored (nohup), or someone else listens, it stays so.
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not ours or threading.current_thread() is not threading.main_thread():
        return False

    def handle(number: int, frame: FrameType | None) -> None:
        interrupts.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, handle)
    return True


def _prepare_streams() -> None:
    """Names in any script must not stop a command on a terminal that cannot write them; libraries
    keep quiet.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    for name, value in (
        ("TRANSFORMERS_VERBOSITY", "error"),
        ("DIFFUSERS_VERBOSITY", "error"),
        ("HF_HUB_DISABLE_TELEMETRY", "1"),
    ):
        os.environ.setdefault(name, value)
    # Wherever it is installed, diffusers imports it; on many CPUs it then advises a package for
    # 4-bit inference.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

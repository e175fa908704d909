"""What the commands share: common flags, options from arguments, logging and errors."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from promptseg import __version__
from promptseg.folders import Folders, find_folders

# What a user or a machine can cause: one message. Anything else shows its traceback; so do these
# with PROMPTSEG_LOG_LEVEL=DEBUG.
EXPECTED_ERRORS = (ValueError, OSError, RuntimeError, ImportError)

Options = TypeVar("Options")

_OF_ROOT = {
    "raw": "raw datasets",
    "preprocessed": "preprocessed datasets",
    "results": "trained models",
}
DATASET_HELP = "number or full name, such as 4 or Dataset004_Hippocampus"


def command_parser(documentation: str) -> argparse.ArgumentParser:
    """The parser of a command whose module is documented `promptseg_name: what it does.`"""
    name, description = documentation.split(":", 1)
    parser = argparse.ArgumentParser(prog=name, description=description.strip(), allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"promptseg {__version__}")
    return parser


def add_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="MODULE",
        help="module to import first, which registers classes of your own; can be repeated",
    )


def add_folders(parser: argparse.ArgumentParser, *roots: str) -> None:
    for root in roots:
        parser.add_argument(
            f"--{root}",
            type=Path,
            metavar="FOLDER",
            help=f"folder of {_OF_ROOT[root]} (default: $promptseg_{root}, else "
            f"./promptseg_data/{root})",
        )


def add_processes(parser: argparse.ArgumentParser, default: int | None) -> None:
    """`-np`, in the words of every command but training, whose workers make samples.

    Args:
        parser: gets the flag.
        default: number of processes; None for as many as there are cores, and `args.processes`
            is None then.
    """
    by_default = "one per core" if default is None else "%(default)s"
    parser.add_argument(
        "-np",
        "--processes",
        type=count,
        default=default,
        metavar="N",
        help=f"number of worker processes; 0 runs everything in this process (default: "
        f"{by_default})",
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-device", help="cpu, cuda, cuda:1 or mps (default: a GPU if there is one, else cpu)"
    )


def add_folds(parser: argparse.ArgumentParser, help: str) -> None:
    """`-f`, the folds of a trained model; `args.folds` is None for all, as the help should say."""
    parser.add_argument("-f", "--fold", dest="folds", metavar="FOLD", nargs="+", help=help)


def folders_of(args: argparse.Namespace) -> Folders:
    return find_folders(*(getattr(args, root, None) for root in ("raw", "preprocessed", "results")))


def options_from(args: argparse.Namespace, kind: type[Options], **others: Any) -> Options:
    """An options dataclass from the arguments whose `dest` is a field's name, and from others."""
    given = {f.name: getattr(args, f.name) for f in fields(kind) if hasattr(args, f.name)}
    return kind(**{**given, **others})


def prepare_torch() -> None:
    """Set what torch reads from the environment; to be called before it is imported.

    Threads that wait for one another are to sleep soon: spinning slows training tenfold on a
    machine that others use as well. GNU's OpenMP is told to spin for about 0.1 ms, which between
    short operations is faster than sleeping.
    """
    # what Apple's GPUs lack runs on the CPU; torch reads this while it is imported
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def run_command(
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None,
    command: Callable[[argparse.Namespace], int],
) -> int:
    """Parse, log to the terminal, call; expected errors become one message and exit code 1."""
    args = parser.parse_args(arguments)
    args.typed = list(sys.argv[1:] if arguments is None else arguments)
    prepare_torch()
    with _logged_to_terminal():
        try:
            for module in getattr(args, "imports", []):
                importlib.import_module(module)
            return command(args)
        except EXPECTED_ERRORS as error:
            print_error(error)
            return 1
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130


def print_error(error: BaseException) -> None:
    logging.getLogger("promptseg").debug("traceback", exc_info=error)
    print(f"error: {error}", file=sys.stderr)


class _TqdmHandler(logging.Handler):
    """Prints log lines above the progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


@contextmanager
def _logged_to_terminal() -> Iterator[None]:
    """Print the package's log on the terminal while the block runs."""
    logger, handler = logging.getLogger("promptseg"), _TqdmHandler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(os.environ.get("PROMPTSEG_LOG_LEVEL", "INFO").upper())
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def count(text: str) -> int:
    """A whole number, 0 or more, for argparse."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be 0 or more, got {text}")
    return value


def seconds(text: str) -> float:
    """Seconds from `90s`, `30m` or `1.5h`, for argparse; a number alone could be any of these."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if not match or not float(match[1]) > 0:
        raise argparse.ArgumentTypeError(
            f"expected a time with its unit, such as 90s, 30m or 2h, got {text!r}"
        )
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]

"""promptseg_evaluate: compare predictions with the ground truth."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from promptseg.commands.parsing import (
    add_processes,
    command_parser,
    run_command,
)
from promptseg.parallel import cores


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = command_parser(__doc__)
    parser.add_argument(
        "-g",
        "--ground-truth",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="folder of label files to compare with",
    )
    parser.add_argument(
        "-p",
        "--predictions",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="folder of predicted label files",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FOLDER",
        help="folder for summary.json, metrics.csv and metrics.png (default: that of the "
        "predictions)",
    )
    _add_folders_flags(parser)
    return run_command(parser, arguments, _run)


def _add_folders_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tolerances",
        nargs="+",
        default=[],
        type=_tolerance,
        metavar="MM",
        help="distances in mm at which surfaces count as equal in NSD; LABEL=MM is for one label "
        "(default: 1 2)",
    )
    add_processes(parser, default=None)
    parser.add_argument(
        "--missing-ok",
        action="store_true",
        help="accept cases without a prediction instead of exiting with 1",
    )


def _tolerance(text: str) -> tuple[str | None, float]:
    """`2` or `liver=2`, for argparse."""
    name, equals, number = text.rpartition("=")
    return name if equals else None, float(number)


def _run(args: argparse.Namespace) -> int:
    from promptseg.evaluation.evaluate import Tolerances, evaluate_folders, format_table

    of_label: dict[str, list[float]] = {}
    for name, mm in args.tolerances:
        of_label.setdefault(name, []).append(mm)
    default = of_label.pop(None, Tolerances.default)
    summary = evaluate_folders(
        args.ground_truth,
        args.predictions,
        output=args.output,
        tolerances=Tolerances(default=default, of_label=of_label),
        processes=cores() if args.processes is None else args.processes,
        missing_ok=args.missing_ok,
        box_plots=True,
    )
    print(format_table(summary))
    return 1 if summary["failures"] else 0

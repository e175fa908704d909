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
        help="folder of predicted label files; summary.json and metrics.csv are written there",
    )
    add_processes(parser, default=0)
    parser.add_argument(
        "--missing-ok",
        action="store_true",
        help="accept cases without a prediction instead of exiting with 1",
    )
    return run_command(parser, arguments, _run)


def _run(args: argparse.Namespace) -> int:
    from promptseg.evaluation.evaluate import evaluate_folders, format_table

    summary = evaluate_folders(
        args.ground_truth, args.predictions, processes=args.processes, missing_ok=args.missing_ok
    )
    print(format_table(summary))
    return 1 if summary["failures"] else 0

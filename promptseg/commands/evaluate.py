"""promptseg_evaluate: compare predictions with the ground truth."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from promptseg.commands.parsing import (
    command_parser,
    count,
    run_command,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = command_parser(__doc__)
    parser.add_argument("-g", "--ground-truth", type=Path, required=True, help="label files")
    parser.add_argument("-p", "--predictions", type=Path, required=True, help="predicted files")
    parser.add_argument("-np", "--processes", type=count, default=0, help="worker processes")
    parser.add_argument(
        "--missing-ok", action="store_true", help="cases without prediction are no failure"
    )
    return run_command(parser, arguments, _run)


def _run(args: argparse.Namespace) -> int:
    from promptseg.evaluation.evaluate import evaluate_folders, format_table

    summary = evaluate_folders(
        args.ground_truth, args.predictions, processes=args.processes, missing_ok=args.missing_ok
    )
    print(format_table(summary))
    return 1 if summary["failures"] else 0

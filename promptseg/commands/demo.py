"""promptseg_demo: simulate a dataset, plan, train, predict, evaluate and draw it, in minutes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from promptseg.commands.parsing import (
    add_processes,
    command_parser,
    run_command,
    seconds,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = command_parser(__doc__)
    parser.add_argument(
        "--modality",
        choices=("CT", "MRI", "PET", "US"),
        default="CT",
        help="modality of the simulated images (default: %(default)s)",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("promptseg_demo"),
        metavar="FOLDER",
        help="folder to write all files to (default: %(default)s)",
    )
    parser.add_argument(
        "--time-budget",
        type=seconds,
        default=240.0,
        metavar="T",
        help="training time, such as 90s or 10m (default: 4m)",
    )
    add_processes(parser, default=2)
    return run_command(parser, arguments, _run)


def _run(args: argparse.Namespace) -> int:
    from promptseg.demo.run import run_demo
    from promptseg.evaluation.evaluate import format_table

    result = run_demo(
        args.output,
        modality=args.modality,
        time_budget=args.time_budget,
        processes=args.processes,
    )
    print(format_table(result["evaluation"]))
    stages = ", ".join(f"{name} {value:.0f} s" for name, value in result["seconds"].items())
    print(f"\n{stages}\nLook at {result['picture']}")
    return 1 if result["evaluation"]["failures"] else 0

"""promptseg_demo: simulate a dataset, plan, train, predict, evaluate and draw it, in minutes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from promptseg.commands.parsing import command_parser, count, run_command, seconds


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = command_parser(__doc__)
    parser.add_argument(
        "--modality",
        choices=("CT", "MRI", "PET", "US"),
        default="CT",
        help="modality of the simulated images; %(default)s by default",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("promptseg_demo"),
        metavar="FOLDER",
        help="folder of all files that the demo writes; ./%(default)s by default",
    )
    parser.add_argument(
        "--time-budget",
        type=seconds,
        default=240.0,
        metavar="T",
        help="training time, such as 90s or 10m; 4m by default",
    )
    parser.add_argument(
        "-np",
        "--processes",
        type=count,
        default=2,
        metavar="N",
        help="number of worker processes; %(default)s by default",
    )
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

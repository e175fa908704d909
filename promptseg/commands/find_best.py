"""promptseg_find_best: compare trained models, ensembles and post-processing of a dataset."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence

from promptseg.commands.parsing import (
    DATASET_HELP,
    add_device,
    add_folders,
    add_folds,
    add_import,
    add_processes,
    command_parser,
    folders_of,
    run_command,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = command_parser(__doc__)
    parser.add_argument("-d", "--dataset", metavar="ID", required=True, help=DATASET_HELP)
    parser.add_argument(
        "-tr",
        "--trainer",
        dest="trainers",
        metavar="TRAINER",
        nargs="+",
        help="trainers to compare (default: all that are trained)",
    )
    add_folds(parser, "folds to compare on (default: those that all models have)")
    parser.add_argument(
        "--disable_ensembling",
        dest="ensembles",
        action="store_false",
        help="compare single models only",
    )
    add_device(parser)
    add_processes(parser, default=2)
    add_import(parser)
    add_folders(parser, "preprocessed", "results")
    return run_command(parser, arguments, _run)


def _run(args: argparse.Namespace) -> int:
    from promptseg.inference_plan import FILE_NAME
    from promptseg.pipeline.find_best import find_best, table

    folders = folders_of(args)
    plan = find_best(
        args.dataset,
        folders,
        trainers=args.trainers,
        folds=args.folds,
        ensembles=args.ensembles,
        processes=args.processes,
        device=args.device,
    )
    print("\n".join(table(plan)))
    before = plan.measured["dice"][" + ".join(plan.models)]
    after = plan.measured["dice_after_postprocessing"]
    print(f"\n{plan.measured['cases']} held-out cases: {before:.4f}, post-processed {after:.4f}")
    command = ["promptseg_predict", "-i", "INPUT", "-o", "OUTPUT", "-d", args.dataset]
    if args.results is not None:
        command += ["--results", str(args.results)]
    print(f"{FILE_NAME} is written; this follows it:\n  {shlex.join(command)}")
    return 0

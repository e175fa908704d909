"""promptseg_evaluate: measure predictions, or a model by boxes and clicks, on ground truth."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from promptseg.commands.parsing import (
    add_device,
    add_folds,
    add_processes,
    command_parser,
    run_command,
)
from promptseg.io.challenge_npz import SPACING_ORDERS
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
        help="folder of label files to compare with; with --cvpr of npz files, or a raw dataset",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "-p",
        "--predictions",
        type=Path,
        metavar="FOLDER",
        help="folder of predicted label files",
    )
    what.add_argument(
        "--cvpr",
        type=Path,
        metavar="MODEL",
        help="model folder, or a zip file of it, to evaluate by the interactive protocol of the "
        "CVPR 2025 BiomedSegFM challenge: a box, then five clicks for each object",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FOLDER",
        help="folder for summary.json, metrics.csv and metrics.png, or challenge_metrics.csv "
        "(default: that of the predictions; with --cvpr it must be given)",
    )
    _add_folders_flags(parser)
    _add_challenge_flags(parser)
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


def _add_challenge_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--images",
        type=Path,
        metavar="FOLDER",
        help="with --cvpr: folder of npz files with the images (default: the files of the ground "
        "truth)",
    )
    add_folds(
        parser,
        "with --cvpr: folds of the model; of a raw dataset the cases are evaluated that none "
        "of them was trained on (default: every trained fold)",
    )
    parser.add_argument(
        "--with-names",
        action="store_true",
        help="with --cvpr: ask for labels by name as well, which the challenge does not",
    )
    parser.add_argument(
        "--spacing-order",
        choices=SPACING_ORDERS,
        default="auto",
        help="with --cvpr: order of the spacing in npz files, for NSD; the challenge's script "
        "takes zyx (default: %(default)s)",
    )
    add_device(parser)


def _tolerance(text: str) -> tuple[str | None, float]:
    """`2` or `liver=2`, for argparse."""
    name, equals, number = text.rpartition("=")
    return name if equals else None, float(number)


def _run(args: argparse.Namespace) -> int:
    return _evaluate_predictions(args) if args.cvpr is None else _evaluate_model(args)


def _evaluate_predictions(args: argparse.Namespace) -> int:
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


def _evaluate_model(args: argparse.Namespace) -> int:
    from promptseg.evaluation.challenge_files import evaluate_challenge, format_rounds

    if args.output is None:
        raise ValueError("--cvpr needs a folder to write to: -o FOLDER")
    found = evaluate_challenge(
        args.cvpr,
        args.ground_truth,
        args.output,
        images=args.images,
        folds=args.folds,
        device=args.device,
        with_names=args.with_names,
        spacing_order=args.spacing_order,
    )
    print(format_rounds(found))
    return 1 if found["failures"] else 0

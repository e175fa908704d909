"""promptseg_convert: other formats to raw datasets, predictions to npz or DICOM SEG."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptseg.commands.parsing import (
    add_folders,
    command_parser,
    count,
    folders_of,
    run_command,
)
from promptseg.io.challenge_npz import SPACING_ORDERS

if TYPE_CHECKING:
    from promptseg.conversion.result import Conversion


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = command_parser(__doc__)
    parser.add_argument(
        "-i",
        "--input",
        type=Path,
        required=True,
        help="task folder of the Medical Segmentation Decathlon, folder of the BiomedSegFM "
        "challenge's .npz files, or, with --to npz or dicom-seg, folder of predictions",
    )
    parser.add_argument(
        "--to",
        choices=("raw", "npz", "dicom-seg"),
        default="raw",
        help="raw: a dataset to train on; npz, dicom-seg: predictions in these formats",
    )
    parser.add_argument("-o", "--output", type=Path, help="folder to write predictions to")
    parser.add_argument(
        "-d", "--dataset", type=count, metavar="ID", help="number of the new raw dataset"
    )
    parser.add_argument("--name", help="name of the new raw dataset")
    parser.add_argument(
        "--only", default="", metavar="PREFIX", help="npz: take files whose names begin so"
    )
    parser.add_argument(
        "-g", "--ground-truth", type=Path, help="npz: folder of files with gts, if elsewhere"
    )
    parser.add_argument(
        "--spacing-order",
        choices=SPACING_ORDERS,
        default="auto",
        help="npz: order of the files' spacing; auto takes the two that agree as y and x",
    )
    parser.add_argument(
        "--merge-instances",
        action="store_true",
        help="npz: files that number objects of one kind get label 1 for all of them",
    )
    parser.add_argument(
        "--dicom", type=Path, help="dicom-seg: folder with a series, or one for each case"
    )
    parser.add_argument(
        "-m",
        "--model",
        type=Path,
        help="dicom-seg: folder whose dataset.json names the labels, if the predictions' does not",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    parser.add_argument("-np", "--processes", type=count, default=2, help="worker processes")
    add_folders(parser, "raw")
    return run_command(parser, arguments, lambda args: _run(parser, args))


def _run(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    common = {"overwrite": args.overwrite, "processes": args.processes}
    if args.to != "raw" and args.output is None:
        parser.error(f"--to {args.to} needs -o, the folder to write to")
    if args.to == "npz":
        from promptseg.conversion.predictions import convert_predictions_to_npz

        result = convert_predictions_to_npz(args.input, args.output, **common)
    elif args.to == "dicom-seg":
        from promptseg.conversion.dicom_seg import convert_predictions_to_dicom

        if args.dicom is None:
            parser.error("--to dicom-seg needs --dicom, the folder of the images' series")
        result = convert_predictions_to_dicom(
            args.input, args.output, args.dicom, model=args.model, **common
        )
    else:
        result = _to_raw(parser, args, common)
    print(result.report())
    return 1 if result.failed else 0


def _to_raw(
    parser: argparse.ArgumentParser, args: argparse.Namespace, common: dict[str, Any]
) -> Conversion:
    from promptseg.conversion.msd import convert_msd, is_msd_task
    from promptseg.conversion.npz_dataset import convert_npz, npz_files

    raw = folders_of(args).raw
    if is_msd_task(args.input):
        return convert_msd(args.input, raw, number=args.dataset, name=args.name, **common)
    if not npz_files(args.input):
        raise FileNotFoundError(
            f"{args.input}: expected a task folder of the Decathlon (with its dataset.json) or a "
            f"folder of .npz files; there is neither"
        )
    if args.dataset is None or args.name is None:
        parser.error("a new raw dataset needs -d ID and --name NAME")
    return convert_npz(
        args.input,
        raw,
        number=args.dataset,
        name=args.name,
        only=args.only,
        ground_truth=args.ground_truth,
        spacing_order=args.spacing_order,
        merge_instances=args.merge_instances,
        **common,
    )

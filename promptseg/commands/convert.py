"""promptseg_convert: convert other formats to raw datasets, and predictions to npz or DICOM SEG."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptseg.commands.parsing import (
    add_folders,
    add_processes,
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
    _add_general(parser)
    _add_raw(parser)
    _add_two_folders(parser)
    _add_tree(parser)
    _add_dicom(parser)
    add_folders(parser, "raw")
    return run_command(parser, arguments, lambda args: _run(parser, args))


def _add_general(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-i",
        "--input",
        type=Path,
        metavar="FOLDER",
        help="task folder of the Medical Segmentation Decathlon, folder of .npz files of the "
        "BiomedSegFM challenge, or, with --to images, folder or zip file of DICOM files, or BIDS "
        "tree, with --to npz, dicom-seg or rtstruct, folder of predictions; without it --images "
        "and --masks",
    )
    parser.add_argument(
        "--to",
        choices=("raw", "images", "npz", "dicom-seg", "rtstruct"),
        default="raw",
        help="raw makes a dataset for training, images one file for each volume of a DICOM export "
        "or BIDS tree, the others convert predictions (default: raw)",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FOLDER",
        help="folder for images or predictions",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    add_processes(parser, default=2)


def _add_raw(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("to raw datasets")
    group.add_argument(
        "-d",
        "--dataset",
        type=count,
        metavar="ID",
        help="number of the new dataset (default: 4 for a task folder named Task04_Name)",
    )
    group.add_argument(
        "--name", help="name of the new dataset (default: Name for a task folder named Task04_Name)"
    )
    group.add_argument(
        "--only",
        default="",
        metavar="PREFIX",
        help=".npz files: convert only those whose names start with PREFIX, such as CT_",
    )
    group.add_argument(
        "-g",
        "--ground-truth",
        type=Path,
        metavar="FOLDER",
        help=".npz files: folder of files of the same names with gts, if the input lacks it",
    )
    group.add_argument(
        "--spacing-order",
        choices=SPACING_ORDERS,
        default="auto",
        help=".npz files: order of their spacing; auto takes two equal neighbours for y and x "
        "(default: auto)",
    )
    group.add_argument(
        "--merge-instances",
        action="store_true",
        help=".npz files: give label 1 to all objects of files that number objects of one kind",
    )


def _add_two_folders(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("images and masks in two folders, to raw datasets")
    group.add_argument(
        "--images",
        type=Path,
        metavar="FOLDER",
        help="folder of images of any format, or of a folder for each DICOM series",
    )
    group.add_argument(
        "--masks",
        type=Path,
        metavar="FOLDER",
        help="folder of masks with the images' names, or with a folder of each image's name that "
        "has a file for each structure",
    )
    group.add_argument(
        "--labels",
        metavar="NAMES",
        help="what the masks' values mean: 'liver=1,tumour=2', or a text file (default: the names "
        "of structures' files or of Slicer's segments)",
    )
    group.add_argument(
        "--modality",
        metavar="NAME",
        help="of --images: CT, MRI, PET, US or another name; of several channels T1,T2,...; with "
        "--to images: only series of this one, in a BIDS tree also a suffix such as T1w",
    )


def _add_tree(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("DICOM exports and BIDS trees to images")
    group.add_argument(
        "--min-slices",
        type=count,
        default=10,
        metavar="N",
        help="leave out DICOM series of fewer images (default: %(default)s)",
    )
    group.add_argument(
        "--dry-run",
        action="store_true",
        help="only print what there is, what would be converted, and why the rest would not",
    )


def _add_dicom(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("to DICOM SEG and RTSTRUCT")
    group.add_argument(
        "--dicom",
        type=Path,
        metavar="FOLDER",
        help="folder of the DICOM series that was segmented, or with one subfolder per case",
    )
    group.add_argument(
        "-m",
        "--model",
        type=Path,
        metavar="FOLDER",
        help="folder whose dataset.json names the labels (default: the input folder)",
    )


def _run(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    common = {"overwrite": args.overwrite, "processes": args.processes}
    if (args.input is None) == (args.images is None) or (args.images and args.to != "raw"):
        parser.error("give -i FOLDER, or --images FOLDER and --masks FOLDER to make a raw dataset")
    if args.to != "raw" and args.output is None:
        parser.error(f"--to {args.to} needs -o, the folder to write to")
    if args.to == "images":
        result = _to_images(args, common)
    elif args.to == "npz":
        from promptseg.conversion.predictions import convert_predictions_to_npz

        result = convert_predictions_to_npz(args.input, args.output, **common)
    elif args.to in ("dicom-seg", "rtstruct"):
        from promptseg.conversion.dicom_seg import convert_predictions_to_dicom

        if args.dicom is None:
            parser.error(f"--to {args.to} needs --dicom, the folder of the images' series")
        result = convert_predictions_to_dicom(
            args.input,
            args.output,
            args.dicom,
            model=args.model,
            rtstruct=args.to == "rtstruct",
            **common,
        )
    else:
        result = _to_raw(parser, args, common)
    print(result.report())
    return 1 if result.failed else 0


def _to_images(args: argparse.Namespace, common: dict[str, Any]) -> Conversion:
    from promptseg.conversion.bids import convert_bids, is_bids
    from promptseg.conversion.dicom_tree import convert_dicom_tree

    chosen = {"modality": args.modality, "dry_run": args.dry_run}
    if is_bids(args.input):
        return convert_bids(args.input, args.output, **chosen, **common)
    return convert_dicom_tree(
        args.input, args.output, min_slices=args.min_slices, **chosen, **common
    )


def _to_raw(
    parser: argparse.ArgumentParser, args: argparse.Namespace, common: dict[str, Any]
) -> Conversion:
    from promptseg.conversion.msd import convert_msd, is_msd_task
    from promptseg.conversion.npz_dataset import convert_npz
    from promptseg.io.challenge_npz import npz_files

    raw = folders_of(args).raw
    if args.images is not None:
        return _of_two_folders(parser, args, raw, common)
    if is_msd_task(args.input):
        return convert_msd(args.input, raw, number=args.dataset, name=args.name, **common)
    if not npz_files(args.input):
        raise FileNotFoundError(
            f"{args.input}: expected a task folder of the Decathlon (with its dataset.json) or a "
            f"folder of .npz files, found neither"
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


def _of_two_folders(
    parser: argparse.ArgumentParser, args: argparse.Namespace, raw: Path, common: dict[str, Any]
) -> Conversion:
    from promptseg.conversion.masks import parse_labels
    from promptseg.conversion.two_folders import convert_two_folders

    needed = {"--masks": args.masks, "--modality": args.modality, "-d": args.dataset}
    if missing := [flag for flag, value in (needed | {"--name": args.name}).items() if not value]:
        parser.error(f"--images needs {', '.join(missing)} too")
    return convert_two_folders(
        args.images,
        args.masks,
        raw,
        number=args.dataset,
        name=args.name,
        modality=args.modality,
        labels=None if args.labels is None else parse_labels(args.labels),
        **common,
    )

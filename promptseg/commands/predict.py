"""promptseg_predict: segment a folder of images with a trained model."""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from promptseg.commands.parsing import (
    DATASET_HELP,
    add_device,
    add_folders,
    add_folds,
    add_import,
    command_parser,
    count,
    folders_of,
    options_from,
    run_command,
)
from promptseg.folders import find_dataset_folder, find_model_folder
from promptseg.inference.options import PredictionOptions
from promptseg.inference_plan import FILE_NAME, InferencePlan
from promptseg.io.images import (
    SEGMENTATION_ENDINGS,
    is_dicom_folder,
    read_segmentation,
    write_image,
)
from promptseg.signals import interrupted_by_signals


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = command_parser(__doc__)
    parser.set_defaults(**vars(PredictionOptions()))  # of the arguments that are added below
    parser.add_argument(
        "-i", "--input", type=Path, required=True, help="folder of images, or one image"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        help=f"folder to write to; for one image also a file that ends in "
        f"{', '.join(SEGMENTATION_ENDINGS)}",
    )
    _add_model(parser)
    _add_prompts(parser)
    _add_work(parser)
    parser.add_argument(
        "--save_probabilities", action="store_true", help="also write probabilities/CASE.npz"
    )
    parser.add_argument(
        "--review-list",
        type=Path,
        metavar="CSV",
        help="write a list of all cases, those to review first at the top",
    )
    add_import(parser)
    add_folders(parser, "results")
    return run_command(parser, arguments, _run)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-m", "--model", type=Path, help="model folder or a zip of it; or find it by -d, -tr, -p"
    )
    parser.add_argument(
        "-d",
        "--dataset",
        metavar="ID",
        help=f"{DATASET_HELP}; alone it follows what promptseg_find_best chose, if that was run",
    )
    parser.add_argument("-tr", "--trainer", help="trainer class of the model")
    parser.add_argument("-p", "--plans-name", help="name of the model's plans")
    add_folds(
        parser, "folds whose networks are averaged: 0, 1, ..., or all (default: every trained fold)"
    )
    parser.add_argument(
        "-chk",
        "--checkpoint",
        metavar="FILE",
        help="file name in each fold's folder (default: %(default)s)",
    )
    parser.add_argument(
        "-step_size",
        "--step-size",
        metavar="FRACTION",
        type=float,
        help="largest distance of neighbouring patches, as a fraction of the patch, in (0, 1] "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--disable_tta",
        dest="tta",
        action="store_false",
        help="no test-time mirroring; has no effect unless training used mirroring",
    )
    add_device(parser)


def _add_prompts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--auto-prompt",
        nargs="?",
        const="plans",
        metavar="STRATEGY",
        help="prompt each label by the strategy that led to the best masks in validation, else as "
        "the plans chose; or all by one strategy: name is the label's name alone, coarse the "
        "network's own box, hybrid the better of that and the plans'; with "
        "--prompts, for the labels that those have nothing for",
    )
    parser.add_argument(
        "--prompts",
        type=Path,
        help="boxes, points, scribbles and lassos: one JSON for all images, or a folder with files "
        "for each (JSON, .npz, 3D Slicer's .mrk.json and .fcsv, napari's .csv, label maps of "
        "scribbles), or one such file",
    )
    parser.add_argument(
        "--initial",
        type=Path,
        metavar="FOLDER",
        help="masks to correct: a label map CASE.nii.gz per image, on its grid; --prompts may say "
        "where to correct them",
    )
    parser.add_argument(
        "--background-value",
        metavar="VALUE",
        type=int,
        help="value of background scribbles in label maps; with 0, voxels with the value after "
        "the model's last label are not annotated (default: no value, and 0 is not annotated)",
    )
    parser.add_argument(
        "--perturbations",
        "--jitters",  # former name
        dest="n_perturbations",
        metavar="N",
        type=count,
        help="number of perturbed copies of each prompt whose masks are compared; 0 for none "
        "(default: %(default)s)",
    )


def _add_work(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--continue_prediction",
        action="store_true",
        help="keep existing segmentations; predict the other cases, and those that failed",
    )
    parser.add_argument(
        "-num_parts",
        dest="parts",
        metavar="N",
        type=int,
        help="number of parts to divide the cases into, one per command (default: %(default)s)",
    )
    parser.add_argument(
        "-part_id",
        dest="part",
        metavar="INDEX",
        type=int,
        help="index of this command among them, starting at 0 (default: %(default)s)",
    )
    parser.add_argument(
        "-npp",
        "--readers",
        metavar="N",
        type=count,
        help="threads that read and prompt the next cases; 0 reads each case just before it is "
        "predicted (default: %(default)s)",
    )
    parser.add_argument(
        "-nps",
        "--writers",
        metavar="N",
        type=count,
        help="threads that write segmentations; 0 writes each case before the "
        "next is predicted (default: %(default)s)",
    )
    parser.add_argument(
        "--dask",
        metavar="ADDRESS",
        help="let the workers of a Dask cluster predict; tcp://HOST:PORT of its scheduler",
    )


def _run(args: argparse.Namespace) -> int:
    from promptseg.inference.batch.predict_files import predict_files

    plan, model = _inference_plan(args)
    if plan is not None:
        args.folds, args.postprocessing = list(plan.folds), plan.postprocessing
        if args.auto_prompt is None and args.prompts is None and args.initial is None:
            args.auto_prompt = plan.auto_prompt
    options = options_from(args, PredictionOptions)
    if str(args.output).lower().endswith(SEGMENTATION_ENDINGS) and not args.output.is_dir():
        return _into_file(model, args, options)
    with _stopped_cleanly(args.output):
        report = predict_files(model, args.input, args.output, options)
    done = len(report["cases"]) - report["failed"]
    print(f"{done} segmentations, prompts_used.json and predict_report.json in {args.output}")
    for case_id, entry in report["cases"].items():
        if entry["status"] == "failed":
            print(f"  failed: {case_id}: {entry['error']}")
    return 1 if report["failed"] else 0


def _into_file(model: Path | list[Path], args: argparse.Namespace, options: Any) -> int:
    """Predict one image, and write its segmentation alone, as the file that was named."""
    from promptseg.inference.batch.predict_files import predict_files

    if args.input.is_dir() and not is_dicom_folder(args.input):
        raise ValueError(
            f"-o {args.output} is one file, but -i {args.input} is a folder of images; name an "
            f"output folder"
        )
    if options.save_probabilities or options.continue_prediction or options.parts > 1:
        raise ValueError(
            f"-o {args.output} is one file; --save_probabilities, --continue_prediction and "
            f"-num_parts need an output folder"
        )
    with interrupted_by_signals(), tempfile.TemporaryDirectory(prefix="promptseg_") as folder:
        report = predict_files(model, args.input, folder, options)
        [(case_id, entry)] = report["cases"].items()
        if entry["status"] == "failed":
            print(f"  failed: {case_id}: {entry['error']}")
            return 1
        images = [Path(path).resolve() for path in entry["images"]]
        if args.output.resolve() in images:
            raise ValueError(f"{args.output} is the image to predict; choose another file")
        segmentation, geometry = read_segmentation(entry["prediction"])
        write_image(args.output, segmentation, geometry, like=images[0])
    print(f"segmentation in {args.output}")
    for label, result in entry["labels"].items():
        flags = f"; look at it: {', '.join(result['flags'])}" if result["flags"] else ""
        print(f"  {label}: {result['voxels']} voxels{flags}")
    return 0


def _inference_plan(
    args: argparse.Namespace,
) -> tuple[InferencePlan | None, Path | list[Path]]:
    """The inference plan to follow, and its models; or None, and the model that is meant.

    A plan is followed where the dataset alone says which model to use.
    """
    folders = folders_of(args)
    named = args.model, args.trainer, args.plans_name, args.folds
    if args.dataset is not None and not any(named):
        folder = find_dataset_folder(folders.results, args.dataset, "train it with promptseg_train")
        if (folder / FILE_NAME).is_file():
            plan = InferencePlan.load(folder)
            print(f"following {folder / FILE_NAME}: {plan.in_words}")
            return plan, [folder / name for name in plan.models]
    model = args.model or find_model_folder(
        folders,
        dataset=args.dataset,
        trainer=args.trainer,
        plans_name=args.plans_name,
        command=shlex.join(["promptseg_predict", *args.typed]),
    )
    return None, model


@contextmanager
def _stopped_cleanly(output: Path) -> Iterator[None]:
    """Interrupted by SIGTERM or Ctrl-C, the command says how to continue."""
    try:
        with interrupted_by_signals():
            yield
    except KeyboardInterrupt:
        print(
            f"finished segmentations are in {output}; continue with the same command and "
            f"--continue_prediction",
            file=sys.stderr,
        )
        raise

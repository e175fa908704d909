"""promptseg_predict: segment a folder of images with a trained model."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from promptseg.commands.parsing import (
    DATASET_HELP,
    add_folders,
    add_import,
    command_parser,
    count,
    folders_of,
    run_command,
)
from promptseg.folders import find_model_folder
from promptseg.signals import interrupted_by_signals


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = command_parser(__doc__)
    parser.add_argument("-i", "--input", type=Path, required=True, help="folder or file of images")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write to")
    parser.add_argument(
        "-m", "--model", type=Path, help="model folder or a zip of it; or by -d, -tr, -p"
    )
    parser.add_argument("-d", "--dataset", metavar="ID", help=DATASET_HELP)
    parser.add_argument("-tr", "--trainer", help="trainer class of the model")
    parser.add_argument("-p", "--plans-name", help="name of the model's plans")
    parser.add_argument("-f", "--fold", nargs="+", help="folds to average; all trained by default")
    parser.add_argument(
        "-chk", "--checkpoint", default="checkpoint_final.pth", help="file in each fold's folder"
    )
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument(
        "--auto-prompt",
        nargs="?",
        const="plans",
        metavar="STRATEGY",
        help="propose boxes: as the plans chose, or by one strategy for all labels; coarse is the "
        "network's own, hybrid the better of that and the plans'",
    )
    prompts.add_argument(
        "--prompts",
        type=Path,
        help="boxes and points: one JSON, or a folder with a JSON, .npz or 3D Slicer .mrk.json a "
        "case; voxels or mm",
    )
    parser.add_argument("-step_size", type=float, default=0.5, help="of the sliding window")
    parser.add_argument(
        "--disable_tta",
        action="store_true",
        help="no test-time mirroring (there is none unless training mirrored)",
    )
    parser.add_argument("--continue_prediction", action="store_true", help="keep what is there")
    parser.add_argument("-num_parts", type=int, default=1, help="commands that share the work")
    parser.add_argument("-part_id", type=int, default=0, help="which of them this is, from 0")
    parser.add_argument(
        "-npp", type=count, default=1, help="threads that read and prompt; 0 does it in turn"
    )
    parser.add_argument("-nps", type=count, default=1, help="threads that write; 0 does it in turn")
    parser.add_argument(
        "--dask",
        metavar="SCHEDULER_ADDRESS",
        help="have the workers of a Dask cluster do the cases; tcp://HOST:PORT",
    )
    parser.add_argument(
        "--perturbations",
        "--jitters",
        dest="n_perturbations",
        metavar="N",
        type=count,
        default=2,
        help="perturbed copies of each prompt whose masks are compared; 0 for none",
    )
    parser.add_argument(
        "--save_probabilities", action="store_true", help="write probabilities/CASE.npz too"
    )
    parser.add_argument(
        "--review-list", type=Path, metavar="CSV", help="write all cases, those to look at first"
    )
    parser.add_argument("-device", help="cpu, cuda, cuda:1 or mps; a GPU if there is one")
    add_import(parser)
    add_folders(parser, "results")
    return run_command(parser, arguments, _run)


def _run(args: argparse.Namespace) -> int:
    from promptseg.inference.batch.predict_files import predict_files

    model = args.model or find_model_folder(
        folders_of(args),
        dataset=args.dataset,
        trainer=args.trainer,
        plans_name=args.plans_name,
        command=shlex.join(["promptseg_predict", *args.typed]),
    )
    with _stopped_cleanly(args.output):
        report = predict_files(
            model,
            args.input,
            args.output,
            folds=args.fold,
            auto_prompt=args.auto_prompt,
            prompts=args.prompts,
            checkpoint=args.checkpoint,
            device=args.device,
            step_size=args.step_size,
            tta=not args.disable_tta,
            continue_prediction=args.continue_prediction,
            parts=args.num_parts,
            part=args.part_id,
            readers=args.npp,
            writers=args.nps,
            dask=args.dask,
            imports=args.imports,
            n_perturbations=args.n_perturbations,
            save_probabilities=args.save_probabilities,
            review_list=args.review_list,
        )
    done = len(report["cases"]) - report["failed"]
    print(f"{done} segmentations, prompts_used.json and predict_report.json in {args.output}")
    for case_id, entry in report["cases"].items():
        if entry["status"] == "failed":
            print(f"  failed: {case_id}: {entry['error']}")
    return 1 if report["failed"] else 0


@contextmanager
def _stopped_cleanly(output: Path) -> Iterator[None]:
    """Interrupted by SIGTERM or Ctrl-C, the command says how to continue."""
    try:
        with interrupted_by_signals():
            yield
    except KeyboardInterrupt:
        print(
            f"what is done is in {output}; the same command with --continue_prediction continues",
            file=sys.stderr,
        )
        raise

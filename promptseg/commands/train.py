"""promptseg_train: train a fold, then predict and evaluate its validation cases."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from promptseg.commands.parsing import (
    DATASET_HELP,
    EXPECTED_ERRORS,
    add_device,
    add_folders,
    add_import,
    command_parser,
    count,
    folders_of,
    options_from,
    run_command,
    seconds,
)
from promptseg.training.request import RunOptions, TrainingRequest
from promptseg.training.settings import FREEZABLE, PRECISIONS, RECIPES, TrainingSettings


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = command_parser(__doc__)
    _add_task(parser)
    _add_length(parser)
    _add_settings(parser)
    _add_weights(parser)
    _add_options(parser)
    add_import(parser)
    add_folders(parser, "preprocessed", "results")
    typed = sys.argv[1:] if arguments is None else arguments
    if len(typed) > 1 and not typed[0].startswith("-"):  # as nnUNetv2_train is called
        dataset, fold = typed[0], typed[2] if len(typed) > 2 else "0"
        parser.error(
            f"the dataset and the fold are given with flags: nnU-Net's `nnUNetv2_train "
            f"{' '.join(typed[:3])}` corresponds to `promptseg_train -d {dataset} -f {fold}`"
        )
    return run_command(parser, arguments, _run)


def _add_task(parser: argparse.ArgumentParser) -> None:
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("-d", "--dataset", metavar="ID", help=DATASET_HELP)
    task.add_argument(
        "--list-trainers",
        action="store_true",
        help="print a table of the trainers that -tr can name, and train nothing",
    )
    parser.add_argument(
        "-tr",
        "--trainer",
        help="name of the trainer (default: the one that the plans name)",
    )
    parser.add_argument(
        "-f",
        "--fold",
        nargs="+",
        default=[TrainingRequest.fold],
        help="folds to train one after the other: 0, 1, ..., or all (default: 0)",
    )
    parser.add_argument(
        "-p",
        "--plans-name",
        default=TrainingRequest.plans_name,
        help="name of the plans (default: %(default)s)",
    )
    parser.add_argument(
        "--group-regex",
        metavar="REGEX",
        help="regular expression that finds the patient in a case identifier, by its first (...) "
        "if there is one, so that no patient is in both training and validation (default: "
        "`groups` in dataset.json)",
    )


def _add_length(parser: argparse.ArgumentParser) -> None:
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--epochs",
        type=int,
        help=f"length of the run in epochs (default: {TrainingSettings.epochs}, with --recipe "
        f"paper {RECIPES['paper']['epochs']})",
    )
    length.add_argument(
        "--time-budget",
        type=seconds,
        metavar="T",
        help="length of the run as a time: 90s, 30m or 2h",
    )
    parser.add_argument(
        "--iterations-per-epoch",
        "--iterations",
        type=int,
        metavar="N",
        help=f"optimizer steps in one epoch (default: {TrainingSettings.iterations_per_epoch})",
    )
    parser.add_argument(
        "--early-stopping",
        type=count,
        metavar="EPOCHS",
        help="end the run after this many epochs without a better validation Dice; 0 never ends "
        "it (default: 0)",
    )


def _add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--recipe",
        choices=tuple(RECIPES),
        help="scratch is AdamW with warm-up and decay, paper is the paper's Adam at 1e-5 (default: "
        "paper with -pretrained_weights, else scratch)",
    )
    parser.add_argument(
        "--initial-lr",
        "--lr",
        type=float,
        metavar="RATE",
        help=f"learning rate after the warm-up (default: {TrainingSettings.initial_lr:g} or the "
        f"trainer's own, with --recipe paper {RECIPES['paper']['initial_lr']:g})",
    )
    parser.add_argument(
        "--seed", type=int, help="seed of weights, samples and augmentation (default: 0)"
    )
    parser.add_argument(
        "--ema",
        type=float,
        metavar="DECAY",
        help="validate and predict with an exponential moving average of the weights; 0.999 is a "
        "usual decay (default: no average)",
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="precision of training steps (default: bf16 where the device computes in it, else "
        "fp32)",
    )


def _add_weights(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-pretrained_weights",
        metavar="FILE",
        help="weights to start from: SegVol's checkpoint, or a checkpoint_*.pth of the same "
        "encoder; what fits is loaded, the rest is listed (default: random weights)",
    )
    parser.add_argument(
        "--freeze",
        choices=FREEZABLE,
        help="keep the image encoder's weights unchanged (default: train all weights)",
    )
    parser.add_argument(
        "--teacher",
        metavar="FOLDER",
        help="trained model of the same plans, a folder or zip file, that -tr DistillationTrainer "
        "learns from; with --c, its new location if it was moved",
    )


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--c", dest="resume", action="store_true", help="continue from the latest checkpoint"
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="train a fold from scratch even if it has been trained before",
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="let torch.compile speed up the encoder in training steps",
    )
    parser.add_argument(
        "--tensorboard", action="store_true", help="write event files into the fold's folder"
    )
    parser.add_argument(
        "--wandb",
        metavar="PROJECT",
        help="send settings and metrics to this project at Weights & Biases (default: nothing is "
        "sent anywhere)",
    )
    parser.add_argument(
        "-np",
        "--processes",
        type=count,
        default=RunOptions.processes,
        metavar="N",
        help="worker processes that make samples; 0 makes them in the training process (default: "
        "%(default)s)",
    )
    add_device(parser)
    parser.add_argument(
        "-num_gpus",
        type=int,
        metavar="N",
        help="train on N GPUs of this machine, dividing each batch among them; with -device cpu "
        "in N processes on the CPU (default: one GPU, or on a CPU with several cores one process "
        "for each image of a batch)",
    )


def _run(args: argparse.Namespace) -> int:
    if args.list_trainers:
        return _list_trainers()
    from promptseg.training.distributed import (
        is_said_by_first,
        processes_to_start,
        start_processes,
    )

    if number := processes_to_start(args.num_gpus):
        return start_processes(number, args.device, args.typed)
    from promptseg.pipeline.train import check_folds

    folds = dict.fromkeys(args.fold)
    requests = [options_from(args, TrainingRequest, fold=fold) for fold in folds]
    options = options_from(args, RunOptions)
    if number := _processes_on_cpu(args):
        check_folds(args.dataset, folders_of(args), requests, options)  # once, and at once
        return start_processes(number, "cpu", args.typed)
    try:
        # the first one is checked soon enough when it is trained
        check_folds(args.dataset, folders_of(args), requests[1:], options)
        return _train(args, requests, options)
    except EXPECTED_ERRORS:
        if is_said_by_first():
            return 1
        raise


def _train(
    args: argparse.Namespace, requests: Sequence[TrainingRequest], options: RunOptions
) -> int:
    """Train folds one after the other."""
    from promptseg.pipeline.train import train
    from promptseg.training.distributed import is_rank_zero

    for request in requests:
        model = train(args.dataset, folders_of(args), request, options)
        if model is None:
            if is_rank_zero():
                print(
                    "stopped before the end; the same command with --c continues", file=sys.stderr
                )
            return 1
        if is_rank_zero():
            print(f"trained: {model / f'fold_{request.fold}'}; look at progress.png there")
    return 0


def _processes_on_cpu(args: argparse.Namespace) -> int:
    """How many processes share the CPU where nothing is said of it; 0 for this one alone."""
    from promptseg.folders import find_dataset_folder
    from promptseg.networks.device import choose_device
    from promptseg.plans import load_plans
    from promptseg.training.distributed import processes_on_cpu

    if args.num_gpus is not None or choose_device(args.device) != "cpu":
        return 0
    try:
        folder = find_dataset_folder(folders_of(args).preprocessed, args.dataset, "promptseg_plan")
        images = load_plans(folder / f"{args.plans_name}.json").batch_size
    except (OSError, ValueError):
        return 0  # training tells what is wrong
    defaults = TrainingSettings()
    epochs = args.epochs or defaults.epochs
    steps = epochs * (args.iterations_per_epoch or defaults.iterations_per_epoch)
    return processes_on_cpu(images, seconds=args.time_budget, steps=steps)


def _list_trainers() -> int:
    from promptseg.training.cost_table import plans_for_cost, trainer_table
    from promptseg.training.trainers import TRAINERS

    print(trainer_table(plans_for_cost(), {name: TRAINERS.get(name).encoder for name in TRAINERS}))
    return 0

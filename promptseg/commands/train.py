"""promptseg_train: train a fold, then predict and evaluate its validation cases."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from promptseg.commands.parsing import (
    DATASET_HELP,
    add_folders,
    add_import,
    command_parser,
    count,
    folders_of,
    run_command,
    seconds,
)
from promptseg.training.settings import PRECISIONS


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = command_parser(__doc__)
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("-d", "--dataset", metavar="ID", help=DATASET_HELP)
    task.add_argument(
        "--list-trainers", action="store_true", help="print what -tr can name, train nothing"
    )
    parser.add_argument("-tr", "--trainer", default="ViTTrainer", help="trainer class")
    parser.add_argument("-f", "--fold", nargs="+", default=["0"], help="0, 1, ..., or all")
    parser.add_argument(
        "--group-regex",
        metavar="REGEX",
        help="finds the patient in a case identifier, by its first (...) if there is one, so that "
        "none is in both halves of a fold; instead of `groups` in dataset.json",
    )
    parser.add_argument("-p", "--plans-name", default="PromptSegPlans", help="name of the plans")
    parser.add_argument("--c", dest="resume", action="store_true", help="continue training")
    parser.add_argument("--overwrite", action="store_true", help="start a trained fold again")
    parser.add_argument(
        "--recipe",
        choices=("scratch", "paper"),
        help="AdamW with warm-up and decay (the default), or the paper's Adam at 1e-5 (the "
        "default with -pretrained_weights)",
    )
    parser.add_argument(
        "-pretrained_weights",
        metavar="FILE",
        help="weights to start from: SegVol's checkpoint, or a checkpoint_*.pth of the same "
        "encoder; what fits is loaded, the rest is listed",
    )
    parser.add_argument(
        "--freeze", choices=("encoder",), help="keep the image encoder's weights as they are"
    )
    parser.add_argument(
        "--teacher",
        metavar="FOLDER",
        help="trained model of the same plans, a folder or zip file, that -tr DistillationTrainer "
        "learns from; with --c the place it was moved to",
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=int, help="length of the run")
    length.add_argument(
        "--time-budget", type=seconds, metavar="T", help="length of the run: 90s, 30m or 2h"
    )
    parser.add_argument("--iterations", type=int, help="optimizer steps in one epoch")
    parser.add_argument("--lr", type=float, help="initial learning rate")
    parser.add_argument("--seed", type=int, help="of weights, samples and augmentation")
    parser.add_argument(
        "--ema",
        type=float,
        metavar="DECAY",
        help="validate and predict with an average of the weights; 0.999 is a usual decay",
    )
    parser.add_argument(
        "--early-stopping",
        type=count,
        metavar="EPOCHS",
        help="end after so many epochs without a better validation Dice; 0 never does",
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="of training steps; without it bf16 on a GPU that has it, else fp32",
    )
    parser.add_argument(
        "--compile", action="store_true", help="let torch.compile speed up the training steps"
    )
    parser.add_argument(
        "--tensorboard", action="store_true", help="write event files into the fold's folder"
    )
    parser.add_argument(
        "--wandb",
        metavar="PROJECT",
        help="send settings and metrics to this project at Weights & Biases; without it nothing "
        "is sent anywhere",
    )
    parser.add_argument("-np", "--processes", type=count, default=1, help="sample workers")
    parser.add_argument("-device", help="cpu, cuda, cuda:1 or mps; a GPU if there is one")
    parser.add_argument(
        "-num_gpus",
        type=int,
        metavar="N",
        help="train on N GPUs of this machine, which share each batch; with -device cpu in N "
        "processes on the CPU",
    )
    add_import(parser)
    add_folders(parser, "preprocessed", "results")
    return run_command(parser, arguments, _run)


def _run(args: argparse.Namespace) -> int:
    if args.list_trainers:
        return _list_trainers()
    from promptseg.training.distributed import is_rank_zero, processes_to_start, start_processes

    if count := processes_to_start(args.num_gpus):
        return start_processes(count, args.device, args.typed)
    from promptseg.pipeline import check_folds
    from promptseg.pipeline import train as train_fold

    folds = list(dict.fromkeys(args.fold))
    if later := folds[1:]:  # the first is refused soon enough
        check_folds(
            args.dataset,
            folders_of(args),
            later,
            trainer=args.trainer,
            group_regex=args.group_regex,
            plans_name=args.plans_name,
            resume=args.resume,
            overwrite=args.overwrite,
        )
    for fold in folds:
        model = train_fold(
            args.dataset,
            folders_of(args),
            trainer=args.trainer,
            fold=fold,
            group_regex=args.group_regex,
            plans_name=args.plans_name,
            recipe=args.recipe,
            epochs=args.epochs,
            iterations_per_epoch=args.iterations,
            time_budget=args.time_budget,
            initial_lr=args.lr,
            seed=args.seed,
            pretrained_weights=args.pretrained_weights,
            freeze=args.freeze,
            teacher=args.teacher,
            ema=args.ema,
            early_stopping=args.early_stopping,
            precision=args.precision,
            compile=args.compile,
            tensorboard=args.tensorboard,
            wandb=args.wandb,
            device=args.device,
            processes=args.processes,
            resume=args.resume,
            overwrite=args.overwrite,
        )
        if model is None:
            if is_rank_zero():
                print(
                    "stopped before the end; the same command with --c continues", file=sys.stderr
                )
            return 1
        if is_rank_zero():
            print(f"trained: {model / f'fold_{fold}'}; look at progress.png there")
    return 0


def _list_trainers() -> int:
    from promptseg.networks.cost_table import plans_for_cost, trainer_table
    from promptseg.training.trainers import TRAINERS

    print(trainer_table(plans_for_cost(), {name: TRAINERS.get(name).encoder for name in TRAINERS}))
    return 0

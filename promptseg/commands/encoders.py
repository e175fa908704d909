"""promptseg_encoders: measure each encoder's parameters, operations and memory for a patch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from promptseg.commands.parsing import (
    DATASET_HELP,
    add_folders,
    add_import,
    command_parser,
    folders_of,
    run_command,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = command_parser(__doc__)
    parser.add_argument(
        "-d", "--dataset", metavar="ID", help=f"use the plans of this dataset: {DATASET_HELP}"
    )
    parser.add_argument(
        "-p",
        "--plans-name",
        default="PromptSegPlans",
        help="name of the dataset's plans (default: PromptSegPlans)",
    )
    axes = ("Z", "Y", "X")
    parser.add_argument(
        "--patch-size",
        "--window",
        nargs=3,
        type=int,
        metavar=axes,
        help="patch size in voxels, zyx (default without a dataset: 40 56 40)",
    )
    parser.add_argument(
        "--stride",
        nargs=3,
        type=int,
        metavar=axes,
        help="voxels of one token, zyx (default without a dataset: 8 8 8)",
    )
    parser.add_argument(
        "--size",
        choices=("tiny", "small", "base"),
        help="encoder size (default without a dataset: tiny)",
    )
    parser.add_argument(
        "-device",
        default="cpu",
        help="device on which the memory of prediction is measured (default: cpu)",
    )
    add_import(parser)
    add_folders(parser, "preprocessed")
    return run_command(parser, arguments, _run)


def _run(args: argparse.Namespace) -> int:
    from promptseg.folders import find_dataset_folder
    from promptseg.networks.device import choose_device
    from promptseg.plans import load_plans
    from promptseg.training.cost_table import cost_table, plans_for_cost
    from promptseg.training.trainers import TRAINERS

    own = {name: getattr(args, name) for name in ("patch_size", "stride", "size")}
    own = {name: value for name, value in own.items() if value is not None}
    if args.dataset is None:
        plans = plans_for_cost(**own)
    elif own:
        flags = ", ".join("--" + name.replace("_", "-") for name in own)
        raise ValueError(f"{flags}: the plans of dataset {args.dataset} fix that; leave out -d")
    else:
        made_by = f"run `promptseg_plan -d {args.dataset}` first"
        folder = find_dataset_folder(folders_of(args).preprocessed, args.dataset, made_by)
        plans = load_plans(folder / f"{args.plans_name}.json")
    trainers = {name: TRAINERS.get(name).encoder for name in TRAINERS}
    print(cost_table(plans, trainers, choose_device(args.device)))
    return 0

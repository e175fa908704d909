"""promptseg_plan: check a dataset, measure it, plan, fit automatic prompts and preprocess."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from promptseg.commands.parsing import (
    DATASET_HELP,
    EXPECTED_ERRORS,
    add_folders,
    add_import,
    add_processes,
    command_parser,
    folders_of,
    print_error,
    run_command,
)
from promptseg.parallel import ClusterWorkers, Workers
from promptseg.words import rounded


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = command_parser(__doc__)
    parser.add_argument(
        "-d", "--dataset", nargs="+", required=True, metavar="ID", help=DATASET_HELP
    )
    parser.add_argument(
        "--size",
        choices=("tiny", "small", "base"),
        help="encoder size (default: the largest that fits the machine, without a GPU tiny; base "
        "with --preset segvol)",
    )
    parser.add_argument(
        "--memory",
        metavar="GB",
        help="what training will have: a GPU's memory such as 8GB or 24GB, or cpu for this "
        "computer without its GPU (default: what is there)",
    )
    parser.add_argument(
        "--preset",
        choices=("none", "segvol"),
        default="none",
        help="segvol: patch size, stride and normalization of SegVol's released weights",
    )
    parser.add_argument(
        "-p",
        "--plans-name",
        default="PromptSegPlans",
        help="name of the plans file (default: %(default)s)",
    )
    add_processes(parser, default=2)
    parser.add_argument(
        "--dask",
        metavar="ADDRESS",
        help="read, preprocess and fit on the workers of a Dask cluster in place of -np processes; "
        "tcp://HOST:PORT of its scheduler",
    )
    parser.add_argument(
        "--skip-broken",
        action="store_true",
        help="plan without the cases that have problems, instead of stopping",
    )
    parser.add_argument(
        "--no-locator",
        action="store_true",
        help="do not train networks that find the labels' boxes (minutes)",
    )
    add_import(parser)
    add_folders(parser, "raw", "preprocessed")
    return run_command(parser, arguments, _run)


def _run(args: argparse.Namespace) -> int:
    with ClusterWorkers(args.dask) if args.dask else Workers(args.processes) as workers:
        workers.start("promptseg.experiment_planning.planner")  # while this process loads it too
        results = [_planned(dataset, args, workers) for dataset in args.dataset]
    return max(results)


def _planned(dataset: str, args: argparse.Namespace, workers: Workers) -> int:
    """Plan one dataset and print what was chosen; returns its exit code, as others may follow."""
    from promptseg.experiment_planning.planner import plan_dataset

    try:
        result = plan_dataset(
            dataset,
            folders_of(args),
            size=args.size,
            memory=args.memory,
            preset=args.preset,
            plans_name=args.plans_name,
            processes=workers,
            skip_broken=args.skip_broken,
            locator=not args.no_locator,
        )
    except EXPECTED_ERRORS as error:
        print_error(error)
        return 1
    plans = result.plans
    print(f"\n{plans.dataset_name}: {result.folder / (plans.plans_name + '.json')}")
    spacing = rounded(plans.spacing, digits=4)
    print(f"  spacing {spacing} mm, median shape {plans.median_shape} (zyx)")
    patch = f"patch {plans.patch_size}, stride {plans.stride}, batch size {plans.batch_size}"
    print(f"  size {plans.size}, {patch}")
    for rule, reason in plans.reasons.items():
        print(f"  {rule}: {reason}")
    print(result.auto_prompt_table)
    for problem in result.skipped:
        print(f"  left out: {problem}")
    for case_id, message in result.failed.items():
        print(f"  not preprocessed: {case_id}: {message}")
    return 1 if result.failed else 0

"""Is the data pipeline the bottleneck? Training steps on real data against one fixed batch.

    python benchmarks/data_pipeline.py --preprocessed PREPROCESSED_ROOT -d 4 -tr MobileNetTrainer

In one process, a trainer takes turns between the batches of a run, which worker processes prepare
meanwhile (`-np 1`, as a user would), and one batch prepared in advance. The fixed batch is the one
with the median number of prompts among those of the first steps, because a step costs more with
more prompts. The first steps of each turn are not timed: on real data they would use batches that
the workers prepared during the previous turn, and on the fixed batch the workers still fill their
queue.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
import time
from collections.abc import Iterable
from itertools import islice, repeat
from pathlib import Path
from typing import Any

from promptseg.commands.parsing import prepare_torch
from promptseg.files import write_json
from promptseg.folders import find_dataset_folder

CANDIDATES = 21  # batches from which the fixed one is chosen


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds per step on real data and on the fixed batch, in every turn."""
    import torch
    from ready_trainer import ready_trainer

    from promptseg.training.batches import PREFETCHED, batches

    source = find_dataset_folder(args.preprocessed, args.dataset, "promptseg_plan makes it")
    made_by = (args.trainer, args.fold, args.precision)
    with ready_trainer(source, args.plans_name, *made_by) as (run, steps):
        on_cpu = run.options.device == "cpu"
        making, made = [], []
        for i in range(CANDIDATES):
            start = time.perf_counter()
            made.append(steps[i])
            making.append(time.perf_counter() - start)
        fixed = sorted(made, key=lambda batch: len(batch.prompts))[CANDIDATES // 2]

        def seconds_a_step(source: Iterable) -> float:
            for batch in islice(source, 2 * PREFETCHED * args.processes):
                run._optimize(batch)
            start = time.perf_counter()
            for batch in islice(source, args.steps):
                run._optimize(batch)  # reads the loss, so the device has finished
            return (time.perf_counter() - start) / args.steps

        sources = {
            "fixed_batch": repeat(fixed),
            "real_data": batches(steps, CANDIDATES, args.processes, on_cpu=on_cpu),
        }
        taken: dict[str, list[float]] = {name: [] for name in sources}
        for turn in range(args.turns):
            for name, batches_of_kind in sources.items():
                taken[name].append(seconds_a_step(batches_of_kind))
            last = {name: round(values[-1], 4) for name, values in taken.items()}
            print(f"turn {turn}: {last}", flush=True)
    medians = {name: statistics.median(values) for name, values in taken.items()}
    return {
        **medians,
        "ratio": medians["real_data"] / medians["fixed_batch"],
        "all": taken,
        "making_a_batch": statistics.median(making),
        "prompts": len(fixed.prompts),
        "batch_size": run.plans.batch_size,
        "patch_size": run.plans.patch_size,
        "steps_a_turn": args.steps,
        "processes": args.processes,
        "device": run.options.device,
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--preprocessed", type=Path, required=True, help="folder of planned datasets"
    )
    parser.add_argument("-d", "--dataset", default="4")
    parser.add_argument("-tr", "--trainer", default="MobileNetTrainer")
    parser.add_argument("-p", "--plans-name", default="PromptSegPlans")
    parser.add_argument("-f", "--fold", type=int, default=0)
    parser.add_argument(
        "--processes",
        type=int,
        default=1,
        help="worker processes that prepare batches, at least 1 (default: %(default)s)",
    )
    parser.add_argument("--precision", help="precision of training steps (default: the trainer's)")
    parser.add_argument(
        "--steps", type=int, default=20, help="timed steps in each turn (default: %(default)s)"
    )
    parser.add_argument(
        "--turns", type=int, default=7, help="turns of each kind (default: %(default)s)"
    )
    parser.add_argument("--output", type=Path, help="JSON file to write all figures to")
    parser.add_argument("--import", dest="imports", action="append", default=[], metavar="MODULE")
    args = parser.parse_args()
    if args.processes < 1:
        parser.error(
            "--processes must be 1 or more: without workers, nothing is prepared during a step"
        )
    prepare_torch()  # as the commands do
    for module in args.imports:
        importlib.import_module(module)
    figures = measure(args)
    if args.output:
        write_json(args.output, figures)
    print(
        f"{args.trainer}: {figures['real_data']:.4f} s per step on real data, "
        f"{figures['fixed_batch']:.4f} on a fixed batch, ratio {figures['ratio']:.3f}; preparing a "
        f"batch takes {figures['making_a_batch']:.4f} s"
    )


if __name__ == "__main__":
    sys.exit(main())

"""Do the plans estimate memory and time of training right? Estimates against real training steps.

    python benchmarks/memory.py --preprocessed PREPROCESSED_ROOT -d 4 20 21 --steps 24

Each configuration is a dataset's plans with another trainer, size, patch, batch or precision. It
trains in a process of its own, as `promptseg_train` does: batches from a worker, steps with and
without prompts, validation, a checkpoint. Its peak is the largest resident set of that process,
on a GPU the memory that the allocator reserved. The estimate is made beforehand by
`promptseg.experiment_planning.machine`, which has not seen any of it.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from promptseg.commands.parsing import prepare_torch
from promptseg.folders import find_dataset_folder

# trainer, size, sides of the patch by the plans' own, batch by the plans' own, precision
CONFIGURATIONS = [
    ("UNetTrainer", "tiny", 1.0, 1, "bf16"),
    ("UNetTrainer", "tiny", 1.0, 3, "fp32"),
    ("UNetTrainer", "small", 0.75, 1, "bf16"),
    ("ViTTrainer", "tiny", 1.0, 1, "fp32"),
    ("UNetTrainer", "base", 0.5, 1, "bf16"),
    ("MobileNetV3Trainer", "tiny", 0.75, 2, "bf16"),
]


def planned(plans, size: str, sides: float, batches: int):
    """The plans with another size, patch and batch; the patch stays a multiple of the stride."""
    patch = tuple(
        max(round(n * sides / s), 1) * s
        for n, s in zip(plans.patch_size, plans.stride, strict=True)
    )
    return replace(plans, size=size, patch_size=patch, batch_size=plans.batch_size * batches)


def train_once(args: argparse.Namespace, configuration: list) -> dict:
    """Train one configuration in this process: its peak in bytes, and seconds of a step."""
    import torch

    from promptseg.training.fold import load_fold
    from promptseg.training.request import RunOptions
    from promptseg.training.trainers import TRAINERS

    dataset, trainer, size, sides, batches, precision = configuration
    source = find_dataset_folder(args.preprocessed, dataset, "promptseg_plan makes it")
    fold = load_fold(source, args.plans_name, "0")
    fold = replace(fold, plans=planned(fold.plans, size, sides, batches))
    trainer_class = TRAINERS.get(trainer)
    settings = trainer_class.settings_for("scratch").replace(
        precision=precision, epochs=1, iterations_per_epoch=args.steps
    )
    taken = []
    with TemporaryDirectory() as scratch:
        run = trainer_class(
            fold, Path(scratch) / "fold_0", settings, RunOptions(device=args.device)
        )
        optimize = run._optimize

        def timed(batch):
            start = time.perf_counter()
            loss = optimize(batch)
            taken.append(time.perf_counter() - start)
            return loss

        run._optimize = timed
        run.prepare()
        run.run()
    if args.device.startswith("cuda"):
        peak = torch.cuda.max_memory_reserved()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    every = settings.answer_every
    kinds = [median(taken[kind::every][1:]) for kind in range(every)]
    return {"peak": peak, "seconds": sum(kinds) / every, "patch": fold.plans.patch_size}


def compared(args: argparse.Namespace, configuration: list) -> str:
    """The estimate of one configuration beside what its training takes, as a line."""
    from promptseg.experiment_planning.machine import find_machine, need_of
    from promptseg.plans import load_plans

    dataset, trainer, size, sides, batches, precision = configuration
    source = find_dataset_folder(args.preprocessed, dataset, "promptseg_plan makes it")
    plans = planned(load_plans(source / f"{args.plans_name}.json"), size, sides, batches)
    machine = replace(find_machine("cpu" if args.device == "cpu" else None), precision=precision)
    need = need_of(replace(plans, trainer=trainer), machine)
    command = [sys.executable, *sys.argv, "--one", json.dumps(configuration)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"{configuration}: failed: {done.stderr.strip().splitlines()[-1]}"
    found = json.loads(done.stdout.strip().splitlines()[-1])
    estimated = "-" if need.seconds is None else f"{need.seconds:.2f}"
    return (
        f"{dataset}, {trainer} {size} {plans.patch_size}, {plans.batch_size}, {precision}: "
        f"{need.memory / 1e9:.2f} / {found['peak'] / 1e9:.2f} GB, "
        f"{need.memory / found['peak']:.2f}; {estimated} / {found['seconds']:.2f} s"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preprocessed", type=Path, required=True)
    parser.add_argument("-d", "--dataset", nargs="+", default=["4"])
    parser.add_argument("-p", "--plans-name", default="PromptSegPlans")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    prepare_torch()
    if args.one:
        print(json.dumps(train_once(args, args.one)))
        return 0
    print("dataset, configuration: estimate / measured GB, ratio; estimate / measured s a step")
    for dataset in args.dataset:
        for configuration in CONFIGURATIONS:
            print(compared(args, [dataset, *configuration]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

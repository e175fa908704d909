"""Which encoder segments best for its cost? All trainers for the same time on one fold.

    python benchmarks/encoders.py --work FOLDER --raw RAW_ROOT -d 4 --time-budget 20m

Each trainer in turn trains from scratch by `promptseg_train`; then the cases held out are segmented
as a user would, by `promptseg_predict --auto-prompt`, and evaluated. The dataset is planned first
if necessary. All figures are written to one JSON file after each trainer; the same command
continues where it was stopped. `--report` prints the table.

Time budgets are wall-clock time, so nothing else should run meanwhile; the load and the CPU seconds
are measured as well. On a shared machine, `--turns 4` lets the trainers take turns of a quarter of
the time each, so that a busy hour slows all of them down.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from commands import Runner, Stopped, load_results
from fold import Training, import_flags, plan_if_missing
from train_tables import dice

from promptseg.commands.parsing import prepare_torch, seconds
from promptseg.files import read_json, write_json
from promptseg.folders import Folders, find_dataset_folder, find_folders
from promptseg.tables import markdown_table

STEPS, WARM_UP = 10, 3  # steps of the measurement without workers


def training(trainer: str, args: argparse.Namespace, folders: Folders) -> Training:
    """A run of `promptseg_train` as the arguments say."""
    return Training(
        source=find_dataset_folder(folders.preprocessed, args.dataset, "promptseg_plan makes it"),
        results=folders.results,
        trainer=trainer,
        plans_name=args.plans_name,
        fold=0,
        time_budget=args.time_budget,
        processes=args.processes,
        imports=args.imports,
    )


def measure_trainer(
    runner: Runner, task: Training, args: argparse.Namespace, pieces: list[dict[str, float]]
) -> dict[str, Any]:
    """All figures of one trainer, which is trained to the end; for `pieces` see `Training.run`."""
    trainer, scratch = task.trainer, args.work / "predictions" / task.trainer
    measured = _measured_alone(runner, task, args)
    task.run(runner, f"{trainer}_train", pieces)
    return {
        **measured,
        **task.figures(pieces),
        **task.predict(runner, trainer, scratch, "--auto-prompt"),
    }


def _measured_alone(runner: Runner, task: Training, args: argparse.Namespace) -> dict[str, Any]:
    """What `measure_alone` returns in a new process."""
    output = runner.logs / f"{task.trainer}_cost.json"
    command = [sys.executable, __file__, "--measure", task.trainer, "--measured", output]
    command += ["-d", args.dataset, "-p", args.plans_name, *import_flags(args.imports)]
    command += ["--preprocessed", task.source.parent]
    runner.run(f"{task.trainer}_cost", command)
    return read_json(output)


def measure_alone(trainer: str, args: argparse.Namespace) -> dict[str, Any]:
    """In the new process: the network's cost, and the time of steps on real batches.

    The batches are prepared before the clock starts, as worker processes do in a run.
    `seconds_a_step` is the median.
    """
    import torch
    from ready_trainer import ready_trainer

    from promptseg.networks.cost import network_cost
    from promptseg.training.cost import step_cost

    source = find_dataset_folder(args.preprocessed, args.dataset, "promptseg_plan makes it")
    with ready_trainer(source, args.plans_name, trainer) as (run, steps):
        taken = []
        for batch in [steps[i] for i in range(WARM_UP + STEPS)]:
            start = time.perf_counter()
            run._optimize(batch)  # reads the loss, so the device has finished
            taken.append(time.perf_counter() - start)
    plans = run.plans
    return {
        "encoder": run.encoder,
        "size": plans.size,
        "patch_size": plans.patch_size,
        "stride": plans.stride,
        "batch_size": plans.batch_size,
        **vars(network_cost(plans, run.encoder)),
        "training_bytes": step_cost(plans, run.encoder, run.settings).bytes,
        "seconds_a_step": statistics.median(taken[WARM_UP:]),
        "seconds_a_step_all": taken[WARM_UP:],
        "device": run.options.device,
        "threads": torch.get_num_threads(),
    }


def registered_trainers(runner: Runner, args: argparse.Namespace) -> dict[str, bool]:
    """All registered trainers, and whether each needs a teacher; found in a new process."""
    output = runner.logs / "trainers.json"
    command = [sys.executable, __file__, "--list", "--measured", output]
    command += import_flags(args.imports)
    runner.run("trainers", command)
    return read_json(output)


def report(results: dict[str, Any]) -> str:
    """The figures of all finished trainers as a Markdown table, best first."""
    done = {name: r for name, r in results["trainers"].items() if "predict_dice" in r}
    best = max((r["validation_dice"] for r in done.values()), default=float("nan"))
    title = f"{results['dataset']}, fold 0, {results['time_budget']:g} s each, {results['machine']}"
    columns = ["trainer", "encoder, M", "network, M", "encode, GFLOP", "decode, GFLOP"]
    columns += ["s per step alone", "s per step in the run", "steps", "peak, MB"]
    rows = [
        [
            name,
            f"{r['encoder_parameters'] / 1e6:.2f}",
            f"{r['parameters'] / 1e6:.2f}",
            f"{r['encode_flops'] / 1e9:.2f}",
            f"{r['decode_flops'] / 1e9:.3f}",
            f"{r['seconds_a_step']:.3f}",
            f"{r['seconds_a_step_mean']:.3f}",
            r["steps"],
            f"{r['train_command']['peak_resident_bytes'] / 1e6:.0f}",
            dice(r["validation_dice"]),
            dice(best - r["validation_dice"]),
            dice(r["predict_dice"]),
        ]
        for name, r in sorted(done.items(), key=lambda item: -item[1]["validation_dice"])
    ]
    lines = [f"{title}\n", markdown_table([*columns, "Dice", "gap to best", "Dice, predict"], rows)]
    lines += [
        f"\n{name}: {_summary_line(r)}"
        for name, r in results["trainers"].items()
        if name not in done
    ]
    return "\n".join(lines)


def _summary_line(r: dict[str, Any]) -> str:
    if "predict_dice" not in r:
        return f"failed: {r['error']}" if "error" in r else "not finished"
    return (
        f"{r['steps']} steps of {r['seconds_a_step_mean']:.3f} s, Dice {r['validation_dice']:.4f}, "
        f"by promptseg_predict {r['predict_dice']:.4f}"
    )


def take_turns(
    runner: Runner,
    tasks: list[Training],
    args: argparse.Namespace,
    path: Path,
    results: dict[str, Any],
) -> None:
    """All turns of training but the last one."""
    for turn in range(1, args.turns):
        for task in tasks:
            entry = results["trainers"].setdefault(task.trainer, {"train_pieces": []})
            pieces = entry["train_pieces"]
            if len(pieces) < turn:
                print(f"{task.trainer}, turn {turn} of {args.turns}:", flush=True)
                seconds_a_turn = args.time_budget / args.turns
                task.run(runner, f"{task.trainer}_train", pieces, seconds_a_turn)
                write_json(path, results)


def finish(
    runner: Runner,
    tasks: list[Training],
    args: argparse.Namespace,
    path: Path,
    results: dict[str, Any],
) -> None:
    """Train each trainer to the end and measure it; an error is recorded, the next one starts."""
    for task in tasks:
        before = results["trainers"].get(task.trainer, {})
        if "predict_dice" in before:
            print(f"{task.trainer}: finished before", flush=True)
            continue
        print(f"{task.trainer}:", flush=True)
        entry = {"train_pieces": before.get("train_pieces", [])}
        results["trainers"][task.trainer] = entry
        try:
            entry |= measure_trainer(runner, task, args, entry["train_pieces"])
        except (RuntimeError, OSError, ValueError) as error:
            entry["error"] = str(error)
        finally:
            write_json(path, results)
        print(f"  {_summary_line(entry)}", flush=True)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, help="folder for all files; required")
    parser.add_argument("-d", "--dataset", default="4")
    parser.add_argument("-p", "--plans-name", default="PromptSegPlans")
    parser.add_argument(
        "--size", default="tiny", help="encoder size for planning (default: %(default)s)"
    )
    parser.add_argument(
        "--trainers", nargs="+", help="names of the trainers (default: all registered)"
    )
    parser.add_argument(
        "--time-budget",
        type=seconds,
        default=1200.0,
        metavar="T",
        help="of each training (default: 20m)",
    )
    parser.add_argument(
        "--turns",
        type=int,
        default=1,
        help="number of turns that each training is divided into (default: %(default)s)",
    )
    parser.add_argument(
        "--processes",
        type=int,
        default=1,
        help="worker processes of training (default: %(default)s)",
    )
    parser.add_argument("--raw", type=Path, help="folder of raw datasets, for planning")
    parser.add_argument(
        "--preprocessed", type=Path, help="folder of planned datasets (default: in --work)"
    )
    parser.add_argument(
        "--results", type=Path, help="folder of trained models (default: in --work)"
    )
    parser.add_argument("--import", dest="imports", action="append", default=[], metavar="MODULE")
    parser.add_argument("--report", action="store_true", help="only print the table")
    for hidden in ("--measure", "--measured"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--list", action="store_true", help=argparse.SUPPRESS)
    return parser


def main() -> int:
    parser = make_parser()
    args = parser.parse_args()
    if args.list or args.measure:
        return _in_new_process(args)
    if args.work is None:
        parser.error("--work is required")

    args.work = args.work.absolute()
    path = args.work / "encoders.json"
    comparable = ("dataset", "plans_name", "time_budget")
    results = load_results(path, {name: getattr(args, name) for name in comparable}, "trainers")
    if args.report:
        print(report(results))
        return 0
    roots = (args.preprocessed or args.work / "preprocessed", args.results or args.work / "results")
    folders = find_folders(args.raw, *(root.absolute() for root in roots))
    runner = Runner(args.work / "logs")
    try:
        plan_if_missing(runner, folders, args.dataset, args.plans_name, args.size)
        known = registered_trainers(runner, args)
        if unknown := sorted(set(args.trainers or ()) - set(known)):
            parser.error(f"unknown trainers {', '.join(unknown)}; there are {', '.join(known)}")
        for trainer in (taught := [name for name in args.trainers or known if known[name]]):
            print(f"{trainer}: left out, as it needs a --teacher")
        tasks = [training(t, args, folders) for t in args.trainers or known if t not in taught]
        take_turns(runner, tasks, args, path, results)
        finish(runner, tasks, args, path, results)
    except Stopped:
        print("stopped; the same command continues from here", flush=True)
        return 143
    print(f"\n{report(results)}")
    return int(any("error" in r for r in results["trainers"].values()))


def _in_new_process(args: argparse.Namespace) -> int:
    import importlib

    prepare_torch()  # as in the commands
    for module in args.imports:
        importlib.import_module(module)
    from promptseg.training.trainers import TRAINERS

    trainers = {name: TRAINERS.get(name).needs_teacher for name in TRAINERS}
    write_json(args.measured, measure_alone(args.measure, args) if args.measure else trainers)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Which encoder segments best for its cost? Every trainer, the same time on one fold, from scratch.

    python benchmarks/encoders.py --work FOLDER --raw RAW_ROOT -d 4 --time-budget 20m

One after the other, each trainer gets `promptseg_train` in a process of its own; then the cases
held out are segmented as a user would, by `promptseg_predict --auto-prompt`, and evaluated. The
dataset is planned first when it is not. After each trainer everything measured is in one JSON
file; the same command goes on after a stop, where it was stopped. `--report` prints the table.

Time budgets are wall-clock time, so nothing else should run meanwhile: the load and the processor
seconds are measured too. On a machine that others use as well, `--turns 4` lets the trainers take
turns, a quarter of the time each, so that a busy hour slows them all alike.
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

from promptseg.commands.parsing import seconds, share_cores
from promptseg.files import read_json, write_json
from promptseg.folders import Folders, find_dataset_folder, find_folders
from promptseg.tables import markdown_table

STEPS, WARM_UP = 10, 3  # of the measurement on a quiet machine


def training(trainer: str, args: argparse.Namespace, folders: Folders) -> Training:
    """What `promptseg_train` is asked for."""
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
    """Train one trainer to the end and take all its figures; `pieces` as `Training.run`."""
    trainer, scratch = task.trainer, args.work / "predictions" / task.trainer
    measured = _measured_alone(runner, task, args)
    task.run(runner, f"{trainer}_train", pieces)
    return {
        **measured,
        **task.figures(pieces),
        **task.predict(runner, trainer, scratch, "--auto-prompt"),
    }


def _measured_alone(runner: Runner, task: Training, args: argparse.Namespace) -> dict[str, Any]:
    """What `measure_alone` returns in a process of its own."""
    output = runner.logs / f"{task.trainer}_cost.json"
    command = [sys.executable, __file__, "--measure", task.trainer, "--measured", output]
    command += ["-d", args.dataset, "-p", args.plans_name, *import_flags(args.imports)]
    command += ["--preprocessed", task.source.parent]
    runner.run(f"{task.trainer}_cost", command)
    return read_json(output)


def measure_alone(trainer: str, args: argparse.Namespace) -> dict[str, Any]:
    """In the fresh process: the network's cost, and steps on real batches with nothing beside.

    The batches are made before the clock starts, as workers make them in a run. `seconds_a_step`
    is the median.
    """
    import torch
    from ready_trainer import ready_trainer

    from promptseg.networks.cost import network_cost

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
        "seconds_a_step": statistics.median(taken[WARM_UP:]),
        "seconds_a_step_all": taken[WARM_UP:],
        "device": run.options.device,
        "threads": torch.get_num_threads(),
    }


def registered_trainers(runner: Runner, args: argparse.Namespace) -> dict[str, bool]:
    """Every trainer there is, and whether it needs a teacher; found in a process of its own."""
    output = runner.logs / "trainers.json"
    command = [sys.executable, __file__, "--list", "--measured", output]
    command += import_flags(args.imports)
    runner.run("trainers", command)
    return read_json(output)


def report(results: dict[str, Any]) -> str:
    """The figures of all finished trainers as a Markdown table, the best first."""
    done = {name: r for name, r in results["trainers"].items() if "predict_dice" in r}
    best = max((r["validation_dice"] for r in done.values()), default=float("nan"))
    title = f"{results['dataset']}, fold 0, {results['time_budget']:g} s each, {results['machine']}"
    columns = ["trainer", "encoder, M", "network, M", "encode, GFLOP", "decode, GFLOP"]
    columns += ["s a step alone", "s a step in the run", "steps", "peak, MB"]
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, help="folder for all that is made")
    parser.add_argument("-d", "--dataset", default="4")
    parser.add_argument("-p", "--plans-name", default="PromptSegPlans")
    parser.add_argument("--size", default="tiny", help="encoder size, when planning")
    parser.add_argument("--trainers", nargs="+", help="by name; all registered when not given")
    parser.add_argument("--time-budget", type=seconds, default=1200.0, metavar="T")
    parser.add_argument("--turns", type=int, default=1, help="parts to train in, taking turns")
    parser.add_argument("--processes", type=int, default=1, help="sample workers")
    parser.add_argument("--raw", type=Path, help="raw datasets, for planning")
    parser.add_argument("--preprocessed", type=Path, help="else in the work folder")
    parser.add_argument("--results", type=Path, help="else in the work folder")
    parser.add_argument("--import", dest="imports", action="append", default=[], metavar="MODULE")
    parser.add_argument("--report", action="store_true", help="only print the table")
    for hidden in ("--measure", "--measured"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--list", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.list or args.measure:
        return _in_fresh_process(args)
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
            print(f"{trainer}: left out, it does not learn from scratch but from a --teacher")
        trainers = [name for name in args.trainers or known if name not in taught]
        for turn in range(1, args.turns):
            for trainer in trainers:
                entry = results["trainers"].setdefault(trainer, {"train_pieces": []})
                pieces = entry["train_pieces"]
                if len(pieces) < turn:
                    print(f"{trainer}, turn {turn} of {args.turns}:", flush=True)
                    seconds_a_turn = args.time_budget / args.turns
                    training(trainer, args, folders).run(
                        runner, f"{trainer}_train", pieces, seconds_a_turn
                    )
                    write_json(path, results)
        for trainer in trainers:
            before = results["trainers"].get(trainer, {})
            if "predict_dice" in before:
                print(f"{trainer}: finished before", flush=True)
                continue
            print(f"{trainer}:", flush=True)
            entry = {"train_pieces": before.get("train_pieces", [])}
            results["trainers"][trainer] = entry
            try:
                task = training(trainer, args, folders)
                entry |= measure_trainer(runner, task, args, entry["train_pieces"])
            except (RuntimeError, OSError, ValueError) as error:
                entry["error"] = str(error)
            finally:
                write_json(path, results)
            print(f"  {_summary_line(results['trainers'][trainer])}", flush=True)
    except Stopped:
        print("stopped; the same command goes on from here", flush=True)
        return 143
    print(f"\n{report(results)}")
    return int(any("error" in r for r in results["trainers"].values()))


def _in_fresh_process(args: argparse.Namespace) -> int:
    import importlib

    share_cores()  # as the commands do
    for module in args.imports:
        importlib.import_module(module)
    from promptseg.training.trainers import TRAINERS

    trainers = {name: TRAINERS.get(name).needs_teacher for name in TRAINERS}
    write_json(args.measured, measure_alone(args.measure, args) if args.measure else trainers)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Which encoder segments best for its cost? Every trainer, the same time on one fold, from scratch.

    python benchmarks/encoders.py --work FOLDER --raw RAW_ROOT -d 4 --time-budget 20m

One after the other, each trainer gets `promptseg_train` in a process of its own; then the cases
held back are segmented as a user would, by `promptseg_predict --auto-prompt`, and evaluated. The
dataset is planned first when it is not. After each trainer everything measured is in one JSON
file; the same command goes on after a stop, where it was stopped. `--report` prints the table.

Time budgets are wall-clock time, so nothing else should run meanwhile: the load and the processor
seconds are measured too. On a machine that others use as well, `--turns 4` lets the trainers take
turns, a quarter of the time each, so that a busy hour slows them all alike.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from promptseg.commands.parsing import seconds
from promptseg.files import read_json, write_json
from promptseg.folders import Folders, find_dataset_folder, find_folders

HERE = Path(sys.executable).parent  # where the commands of this environment are
STEPS, WARM_UP = 10, 3  # of the measurement on a quiet machine


class Stopped(Exception):
    """SIGTERM or Ctrl-C came; the command under way, if any, has ended and used this much."""

    def __init__(self, usage: dict[str, float] | None = None) -> None:
        self.usage = usage


class Runner:
    """Runs commands one at a time, passes SIGTERM and Ctrl-C on to them, and measures them."""

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self.process: subprocess.Popen | None = None
        self.stop_requested = False
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)

    def _stop(self, number: int, frame: object) -> None:
        self.stop_requested = True
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)

    def run(
        self,
        name: str,
        command: Sequence[object],
        metrics: Path | None = None,
        stop_after: float | None = None,
    ) -> dict[str, float]:
        """Run a command with its output in a log file.

        Args:
            name: of the log file.
            command: program and arguments.
            metrics: a `metrics.csv` whose new rows are printed as they appear.
            stop_after: seconds after which the command is told to stop, as by SIGTERM.

        Returns:
            Wall seconds, processor seconds of all its processes, and the largest resident memory
            of any one of them, in bytes.

        Raises:
            Stopped: if a signal came, once the command has ended.
            RuntimeError: if the command failed, with the end of its log.
        """
        if self.stop_requested:
            raise Stopped
        log = self.logs / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        printed = _rows(metrics)
        with open(log, "a", encoding="utf-8") as output:
            start = time.monotonic()
            # a session of its own: Ctrl-C at the terminal reaches it once, from here
            self.process = subprocess.Popen(
                [str(word) for word in command],
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            asked, is_told = time.monotonic(), False
            while True:
                if stop_after and not is_told and time.monotonic() - start > stop_after:
                    is_told = True
                    self.process.send_signal(signal.SIGTERM)
                if self.stop_requested and time.monotonic() - asked > 10:
                    asked = time.monotonic()
                    self._stop(0, None)  # a process that was just starting may have missed it
                pid, status, usage = os.wait4(self.process.pid, os.WNOHANG)
                if len(rows := _rows(metrics)) > len(printed):
                    printed = rows
                    print(f"  {_row_line(rows[-1])}", flush=True)
                if pid:
                    break
                time.sleep(0.5)
            self.process.returncode = os.waitstatus_to_exitcode(status)
        measured = {
            "wall_seconds": time.monotonic() - start,
            "cpu_seconds": usage.ru_utime + usage.ru_stime,
            "peak_resident_bytes": usage.ru_maxrss * 1024,  # Linux counts it in KiB
        }
        if self.stop_requested:
            raise Stopped(measured)
        if self.process.returncode and not is_told:
            text = log.read_text(encoding="utf-8", errors="replace")
            raise RuntimeError(f"{command[0]} failed, see {log}:\n{text[-1500:]}")
        return measured


def _rows(metrics: Path | None) -> list[dict[str, str]]:
    if metrics is None or not metrics.is_file():
        return []
    with open(metrics, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _row_line(row: dict[str, str]) -> str:
    dice = row["val_dice_auto"] or row["val_dice_label"]
    return f"step {row['step']}, {float(row['seconds']):.0f} s, validation windows {dice[:6]}"


def train_for_a_turn(
    runner: Runner,
    trainer: str,
    args: argparse.Namespace,
    folders: Folders,
    pieces: list[dict[str, float]],
    stop_after: float | None = None,
) -> None:
    """Train, or go on with it, to the end or for so many seconds.

    `pieces` has what each run of the training command used so far; this one's is appended.
    """
    source = find_dataset_folder(folders.preprocessed, args.dataset, "promptseg_plan makes it")
    fold = folders.results / source.name / f"{trainer}__{args.plans_name}__3d" / "fold_0"
    command = [HERE / "promptseg_train", "-d", source.name, "-tr", trainer, "-f", 0]
    command += ["-p", args.plans_name, "--time-budget", f"{args.time_budget:g}s"]
    command += ["--preprocessed", folders.preprocessed, "--results", folders.results]
    command += ["-np", args.processes, *_imports(args)]
    if (fold / "checkpoint_latest.pth").is_file():
        command += ["--c"]
    try:
        used = runner.run(f"{trainer}_train", command, fold / "metrics.csv", stop_after)
        pieces.append({**used, "load_after": os.getloadavg()[0]})
    except Stopped as stop:
        pieces += [stop.usage] if stop.usage else []
        raise


def measure_trainer(
    runner: Runner,
    trainer: str,
    args: argparse.Namespace,
    folders: Folders,
    pieces: list[dict[str, float]],
) -> dict[str, Any]:
    """Train one trainer to the end and take all its figures; `pieces` as `train_for_a_turn`."""
    source = find_dataset_folder(folders.preprocessed, args.dataset, "promptseg_plan makes it")
    model = folders.results / source.name / f"{trainer}__{args.plans_name}__3d"
    fold = model / "fold_0"
    measured = _measured_alone(runner, trainer, args, folders)
    train_for_a_turn(runner, trainer, args, folders, pieces)
    last = _rows(fold / "metrics.csv")[-1]
    validation = read_json(fold / "validation" / "summary.json")
    predicted = predict_as_a_user(runner, trainer, model, source, args)
    return {
        **measured,
        "steps": int(last["step"]),
        "training_seconds": float(last["seconds"]),
        "seconds_a_step_mean": float(last["seconds"]) / int(last["step"]),
        "train_command": {
            "wall_seconds": sum(piece["wall_seconds"] for piece in pieces),
            "cpu_seconds": sum(piece["cpu_seconds"] for piece in pieces),
            "peak_resident_bytes": max(piece["peak_resident_bytes"] for piece in pieces),
        },
        "train_pieces": pieces,
        "validation_dice": validation["foreground_mean"]["Dice"],
        "validation_dice_by_label": {k: v["Dice"] for k, v in validation["mean"].items()},
        **predicted,
    }


def _imports(args: argparse.Namespace) -> list[str]:
    return [word for module in args.imports for word in ("--import", module)]


def _measured_alone(
    runner: Runner, trainer: str, args: argparse.Namespace, folders: Folders
) -> dict[str, Any]:
    """What `measure_alone` returns in a process of its own."""
    output = runner.logs / f"{trainer}_cost.json"
    command = [sys.executable, __file__, "--measure", trainer, "--measured", output]
    command += ["-d", args.dataset, "-p", args.plans_name, *_imports(args)]
    command += ["--preprocessed", folders.preprocessed]
    runner.run(f"{trainer}_cost", command)
    return read_json(output)


def measure_alone(trainer: str, args: argparse.Namespace) -> dict[str, Any]:
    """In the fresh process: the network's cost, and steps on real batches with nothing beside.

    The batches are made before the clock starts, as workers make them in a run. `seconds_a_step`
    is the median.
    """
    import tempfile

    import torch

    from promptseg.experiment_planning.plans import load_plans
    from promptseg.networks.cost import network_cost
    from promptseg.networks.device import choose_device
    from promptseg.preprocessing.preprocessed_dataset import PreprocessedDataset
    from promptseg.training.patches import TrainingSteps
    from promptseg.training.settings import RunOptions
    from promptseg.training.splits import fold_cases, load_or_make_splits
    from promptseg.training.trainers import TRAINERS

    folder = find_dataset_folder(args.preprocessed, args.dataset, "promptseg_plan makes it")
    plans = load_plans(folder / f"{args.plans_name}.json")
    preprocessed = folder / plans.data_identifier
    case_ids = PreprocessedDataset(preprocessed).case_ids
    splits = load_or_make_splits(folder / "splits_final.json", case_ids)
    training_cases, validation_cases = fold_cases(splits, "0", case_ids)
    auto_boxes = read_json(folder / f"{args.plans_name}_auto_prompt_boxes.json")
    trainer_class, device = TRAINERS.get(trainer), choose_device()
    cost = network_cost(plans, trainer_class.encoder)
    with tempfile.TemporaryDirectory() as scratch:
        run = trainer_class(
            plans=plans,
            preprocessed=preprocessed,
            folder=Path(scratch) / "fold_0",
            training_cases=training_cases,
            validation_cases=validation_cases,
            auto_boxes=auto_boxes,
            settings=trainer_class.settings_for("scratch"),
            options=RunOptions(device=device, workers=0),
        )
        run.prepare()
        run.network.train()
        steps = TrainingSteps(preprocessed, training_cases, plans, run.settings, auto_boxes)
        taken = []
        for batch in [steps[i] for i in range(WARM_UP + STEPS)]:
            start = time.perf_counter()
            run._optimize(batch)  # reads the loss, so the device has finished
            taken.append(time.perf_counter() - start)
    return {
        "encoder": trainer_class.encoder,
        "size": plans.size,
        "window": plans.window,
        "stride": plans.stride,
        "batch_size": plans.batch_size,
        **vars(cost),
        "seconds_a_step": statistics.median(taken[WARM_UP:]),
        "seconds_a_step_all": taken[WARM_UP:],
        "device": device,
        "threads": torch.get_num_threads(),
    }


def predict_as_a_user(
    runner: Runner, trainer: str, model: Path, source: Path, args: argparse.Namespace
) -> dict[str, Any]:
    """`promptseg_predict --auto-prompt` on the held-back cases' images; `promptseg_evaluate`.

    Here the automatic prompts are fitted on all training cases of the dataset, those held back
    from this fold too; `validation_dice` uses the boxes proposed for each case without it.
    """
    scratch = runner.logs.parent / "predictions" / trainer
    shutil.rmtree(scratch, ignore_errors=True)
    images, truth, predictions = scratch / "images", scratch / "truth", scratch / "predictions"
    images.mkdir(parents=True)
    truth.mkdir()
    for case_id in read_json(source / "splits_final.json")[0]["val"]:
        case = read_json(source / f"{args.plans_name}_3d" / f"{case_id}.json")
        for file in map(Path, case["raw"]["files"]):
            (images / file.name).symlink_to(file.absolute())
        for file in (source / "gt_segmentations").glob(f"{case_id}.*"):
            (truth / file.name).symlink_to(file.absolute())
    command = [HERE / "promptseg_predict", "-m", model, "-f", 0, "--auto-prompt"]
    command += ["-i", images, "-o", predictions, *_imports(args)]
    prediction = runner.run(f"{trainer}_predict", command)
    command = [HERE / "promptseg_evaluate", "-g", truth, "-p", predictions]
    runner.run(f"{trainer}_evaluate", command)
    summary = read_json(predictions / "summary.json")
    return {
        "predict_dice": summary["foreground_mean"]["Dice"],
        "predict_dice_by_label": {k: v["Dice"] for k, v in summary["mean"].items()},
        "predict_cases": len(list(truth.iterdir())),
        "predict_command": prediction,
    }


def registered_trainers(runner: Runner, args: argparse.Namespace) -> dict[str, bool]:
    """Every trainer there is, and whether it needs a teacher; found in a process of its own."""
    output = runner.logs / "trainers.json"
    command = [sys.executable, __file__, "--list", "--measured", output, *_imports(args)]
    runner.run("trainers", command)
    return read_json(output)


def plan_if_missing(runner: Runner, args: argparse.Namespace, folders: Folders) -> None:
    try:
        folder = find_dataset_folder(folders.preprocessed, args.dataset, "")
        if (folder / f"{args.plans_name}.json").is_file():
            return
    except FileNotFoundError:
        pass
    print("planning", flush=True)
    command = [HERE / "promptseg_plan", "-d", args.dataset, "-p", args.plans_name]
    command += ["--raw", folders.raw, "--preprocessed", folders.preprocessed]
    runner.run("plan", [*command, "--size", args.size])


def report(results: dict[str, Any]) -> str:
    """The figures of all finished trainers as a Markdown table, the best first."""
    done = {name: r for name, r in results["trainers"].items() if "predict_dice" in r}
    best = max((r["validation_dice"] for r in done.values()), default=float("nan"))
    lines = [
        f"{results['dataset']}, fold 0, {results['time_budget']:g} s each, {results['machine']}\n",
        "| trainer | encoder, M | network, M | encode, GFLOP | decode, GFLOP | s a step alone "
        "| s a step in the run | steps | peak, MB | Dice | gap to best | Dice, predict |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, r in sorted(done.items(), key=lambda item: -item[1]["validation_dice"]):
        lines.append(
            f"| {name} | {r['encoder_parameters'] / 1e6:.2f} | {r['parameters'] / 1e6:.2f} "
            f"| {r['encode_flops'] / 1e9:.2f} | {r['decode_flops'] / 1e9:.3f} "
            f"| {r['seconds_a_step']:.3f} | {r['seconds_a_step_mean']:.3f} | {r['steps']} "
            f"| {r['train_command']['peak_resident_bytes'] / 1e6:.0f} "
            f"| {r['validation_dice']:.4f} | {best - r['validation_dice']:.4f} "
            f"| {r['predict_dice']:.4f} |"
        )
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


def machine() -> str:
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores, {platform.machine()}, Python {platform.python_version()}"


def load_results(path: Path, args: argparse.Namespace) -> dict[str, Any]:
    """The results so far, or none; what is not comparable with this command is refused."""
    wanted = {
        "dataset": args.dataset,
        "plans_name": args.plans_name,
        "time_budget": args.time_budget,
    }
    if not path.is_file():
        return {**wanted, "machine": machine(), "trainers": {}}
    results = read_json(path)
    for name, value in wanted.items():
        if results[name] != value:
            raise SystemExit(
                f"error: {path} has results for {name} {results[name]!r}, this command has "
                f"{value!r}; name another --work folder"
            )
    return results


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
    results = load_results(path, args)
    if args.report:
        print(report(results))
        return 0
    roots = (args.preprocessed or args.work / "preprocessed", args.results or args.work / "results")
    folders = find_folders(args.raw, *(root.absolute() for root in roots))
    runner = Runner(args.work / "logs")
    try:
        plan_if_missing(runner, args, folders)
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
                    train_for_a_turn(runner, trainer, args, folders, pieces, seconds_a_turn)
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
                entry |= measure_trainer(runner, trainer, args, folders, entry["train_pieces"])
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

    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the commands have it
    for module in args.imports:
        importlib.import_module(module)
    from promptseg.training.trainers import TRAINERS

    trainers = {name: TRAINERS.get(name).needs_teacher for name in TRAINERS}
    write_json(args.measured, measure_alone(args.measure, args) if args.measure else trainers)
    return 0


if __name__ == "__main__":
    sys.exit(main())

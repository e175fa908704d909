"""How good after how many minutes? promptseg against nnU-Net, for the same time on one fold.

    python benchmarks/train.py --work FOLDER --raw RAW_ROOT -d 4 -tr MobileNetTrainer \
        --time-budget 10m 30m --nnunet NNUNET_ENVIRONMENT/bin --prompts --pipeline

For each time, `promptseg_train` trains the fold, from scratch, and `promptseg_predict
--auto-prompt` segments its held-back cases from their raw images, as a user would. nnU-Net
(3d_fullres, its own preprocessing, the same training cases) trains for the same time and segments
the same images with `nnUNetv2_predict`. `promptseg_evaluate` compares both with the truth. Each
tool runs in its own environment, one after the other, with one data worker.

nnU-Net has no time budget, and within minutes its learning rate would not fall: the trainer in
`nnunet_trainers/` lets it fall over the time given, and spends all of that time on training steps.

`--prompts` segments the same images with the trained model twice more: with boxes as a person
would draw them (the truth's, each face moved by up to 10 % of the side) and by the labels' names
alone. `--pipeline` measures what the data pipeline costs, see `data_pipeline.py`.

All figures are in one JSON file, `train.json`, that further commands add to: other trainers, times
and options. The same command goes on after a stop, where it was stopped; a training of nnU-Net
that was stopped begins again. `--report` prints the tables. Time budgets are wall-clock time, so
nothing else should run meanwhile: the load and the processor seconds are measured too.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from commands import Runner, Stopped, load_results
from fold import Training, import_flags, link_held_back, plan_if_missing, predict_and_evaluate
from manual_boxes import write_manual_boxes
from nnunet import NNUNet

from promptseg.commands.parsing import seconds
from promptseg.experiment_planning.plans import load_plans
from promptseg.files import read_json, write_json
from promptseg.folders import find_dataset_folder, find_folders
from promptseg.preprocessing.preprocessed_dataset import PreprocessedDataset
from promptseg.training.splits import cases_of_fold

PROMPTS = {"automatic": ["--auto-prompt"], "manual boxes": ["--prompts"], "names alone": []}


class Benchmark:
    """What one command measures; the results are written after every part."""

    def __init__(self, args: argparse.Namespace, path: Path, results: dict[str, Any]) -> None:
        self.args, self.path, self.results = args, path, results
        self.runner = Runner(args.work / "logs")
        self.folders = find_folders(args.raw, args.preprocessed or args.work / "preprocessed")

    def run(self) -> None:
        args = self.args
        self.source = plan_if_missing(
            self.runner, self.folders, args.dataset, args.plans_name, args.size
        )
        plans = load_plans(self.source / f"{args.plans_name}.json")
        cases = PreprocessedDataset(self.source / plans.data_identifier).case_ids
        cases_of_fold(self.source, str(args.fold), cases)  # writes the folds if there are none
        self.results["labels"] = plans.labels
        if args.nnunet:
            raw = find_dataset_folder(self.folders.raw.absolute(), args.dataset, "give --raw")
            self.nnunet = NNUNet(
                programs=args.nnunet,
                dataset=raw,
                work=args.work / "nnunet",
                processes=args.processes,
            )
        for budget in args.time_budget:
            self._part(args.trainer, budget, self._promptseg)
            if args.nnunet:
                self._part("nnU-Net", budget, self._nnunet)
        if args.pipeline:
            self._pipeline()

    def _part(self, tool: str, budget: float, measure: Any) -> None:
        """One tool and budget; an error is written down and the next ones go on."""
        name = f"{tool} {budget:g} s"
        print(f"{name}:", flush=True)
        entry = self.results["runs"].setdefault(name, {"tool": tool, "time_budget": budget})
        entry.pop("error", None)
        try:
            measure(entry, name.replace(" ", "_"))
        except (RuntimeError, OSError, ValueError) as error:
            entry["error"] = str(error)
        finally:
            write_json(self.path, self.results)
        print(f"  {summary_line(entry)}", flush=True)

    def _promptseg(self, entry: dict[str, Any], log: str) -> None:
        args = self.args
        training = Training(
            source=self.source,
            results=args.work / "results" / f"{entry['time_budget']:g}s",
            trainer=args.trainer,
            plans_name=args.plans_name,
            fold=args.fold,
            time_budget=entry["time_budget"],
            processes=args.processes,
            imports=args.imports,
        )
        if "steps" not in entry:
            pieces = entry.setdefault("train_pieces", [])
            training.run(self.runner, f"{log}_train", pieces)
            entry |= training.figures(pieces)
            write_json(self.path, self.results)
        predictions = entry.setdefault("predictions", {})
        for kind in PROMPTS if args.prompts else ["automatic"]:
            if kind not in predictions:
                scratch = self._scratch(log, kind)
                flags = [*PROMPTS[kind]]
                if kind == "manual boxes":
                    flags.append(self._manual_boxes())
                where = f"{log}_{scratch.name}"
                predictions[kind] = training.predict(self.runner, where, scratch, *flags)
                write_json(self.path, self.results)

    def _nnunet(self, entry: dict[str, Any], log: str) -> None:
        args, nnunet = self.args, self.nnunet
        results = f"results/{entry['time_budget']:g}s"
        self.results.setdefault("nnunet", {"version": nnunet.version()})
        if (used := nnunet.plan_if_missing(self.runner)) is not None:
            self.results["nnunet"]["plan_command"] = used
        if "steps" not in entry:
            entry |= nnunet.train(
                self.runner,
                f"{log}_train",
                fold=args.fold,
                splits=self.source / "splits_final.json",
                seconds=entry["time_budget"],
                results=results,
            )
            entry["load_after"] = os.getloadavg()[0]
            write_json(self.path, self.results)
        predictions = entry.setdefault("predictions", {})
        if "no prompts" not in predictions:
            scratch = self._scratch(log, "no prompts")
            images, truth = link_held_back(self.source, args.plans_name, args.fold, scratch)
            predictions["no prompts"] = predict_and_evaluate(
                self.runner,
                log,
                nnunet.predict_command(args.fold),
                images,
                truth,
                scratch / "predictions",
                nnunet.environment(results),
            )

    def _scratch(self, log: str, kind: str) -> Path:
        return self.args.work / "predictions" / log / kind.replace(" ", "_")

    def _manual_boxes(self) -> Path:
        args, path = self.args, self.args.work / "manual_boxes.json"
        if not path.is_file():
            scratch = self._scratch("truth", "")
            truth = link_held_back(self.source, args.plans_name, args.fold, scratch)[1]
            write_manual_boxes(path, truth, self.results["labels"])
        return path

    def _pipeline(self) -> None:
        args = self.args
        if args.trainer in self.results.setdefault("pipeline", {}):
            return
        print(f"{args.trainer}, data pipeline:", flush=True)
        output = self.runner.logs / f"{args.trainer}_pipeline.json"
        command = [
            sys.executable,
            Path(__file__).with_name("data_pipeline.py"),
            "-tr",
            args.trainer,
        ]
        command += ["--preprocessed", self.source.parent, "-d", self.source.name]
        command += ["-p", args.plans_name, "-f", args.fold, "--processes", args.processes]
        command += ["--output", output, *import_flags(args.imports)]
        self.runner.run(f"{args.trainer}_pipeline", command)
        self.results["pipeline"][args.trainer] = read_json(output)
        write_json(self.path, self.results)


def main_dice(entry: dict[str, Any]) -> dict[str, Any] | None:
    """The prediction as a user makes it: automatic prompts; for nnU-Net there are none."""
    predictions = entry.get("predictions", {})
    return predictions.get("automatic", predictions.get("no prompts"))


def summary_line(entry: dict[str, Any]) -> str:
    if "error" in entry:
        return f"failed: {entry['error']}"
    if (predicted := main_dice(entry)) is None:
        return "not finished"
    return (
        f"{entry['steps']} steps of {entry['seconds_a_step_mean']:.3f} s, "
        f"Dice {predicted['predict_dice']:.4f}"
    )


def report(results: dict[str, Any]) -> str:
    """All figures as Markdown tables."""
    parts = [
        f"{results['dataset']}, fold {results['fold']}, {results['machine']}",
        training_table(results),
        prompts_table(results),
        pipeline_table(results),
    ]
    unfinished = {
        name: summary_line(entry)
        for name, entry in results["runs"].items()
        if "error" in entry or main_dice(entry) is None
    }
    return "\n\n".join(filter(None, [*parts, *(f"{k}: {v}" for k, v in unfinished.items())]))


def training_table(results: dict[str, Any]) -> str:
    """What each tool reached in each time."""
    labels = results.get("labels", {})
    rows = []
    for entry in results["runs"].values():
        if (predicted := main_dice(entry)) is None:
            continue
        by_label = predicted["predict_dice_by_label"]
        held_back = entry.get("validation_dice")
        train, predict = entry["train_command"], predicted["predict_command"]
        rows.append(
            [
                entry["tool"],
                f"{entry['time_budget']:g}",
                entry["steps"],
                f"{entry['seconds_a_step_mean']:.3f}",
                *(dice(by_label.get(str(value))) for value in labels.values()),
                dice(predicted["predict_dice"]),
                dice(held_back),
                *(f"{train[key]:.0f}" for key in ("wall_seconds", "cpu_seconds")),
                *(f"{predict[key]:.1f}" for key in ("wall_seconds", "cpu_seconds")),
            ]
        )
    if not rows:
        return ""
    columns = ["tool", "budget, s", "steps", "s a step", *(f"Dice, {name}" for name in labels)]
    columns += ["Dice", "Dice, boxes held back", "training, s", "training, CPU s"]
    text = table([*columns, "prediction, s", "prediction, CPU s"], rows)
    if "nnunet" in results:
        text += (
            f"\n\nnnU-Net {results['nnunet']['version']}, 3d_fullres: its default trainer, but for "
            f"the learning rate, which falls over the time given, and all of that time is for "
            f"training steps (`nnunet_trainers/time_budget.py`)."
        )
    return text


def prompts_table(results: dict[str, Any]) -> str:
    """What the prompts matter to one trained model."""
    rows = []
    for entry in results["runs"].values():
        predictions = entry.get("predictions", {})
        if "error" in entry or not set(PROMPTS) <= set(predictions):
            continue
        by_kind = [predictions[kind]["predict_dice"] for kind in PROMPTS]
        rows.append(
            [
                entry["tool"],
                f"{entry['time_budget']:g}",
                *map(dice, by_kind),
                dice(entry["validation_dice"]),
                f"{by_kind[0] - by_kind[1]:+.4f}",
                f"{entry['validation_dice'] - by_kind[1]:+.4f}",
            ]
        )
    columns = ["tool", "budget, s", *PROMPTS, "automatic, boxes held back"]
    return table([*columns, "automatic - manual", "held back - manual"], rows) if rows else ""


def pipeline_table(results: dict[str, Any]) -> str:
    """What the data pipeline costs."""
    rows = [
        [
            trainer,
            f"{p['fixed_batch']:.4f}",
            f"{p['real_data']:.4f}",
            f"{p['ratio']:.3f}",
            f"{p['making_a_batch']:.4f}",
            p["processes"],
        ]
        for trainer, p in results.get("pipeline", {}).items()
    ]
    columns = ["trainer", "fixed batch, s a step", "real data, s a step", "ratio"]
    return table([*columns, "making a batch, s", "workers"], rows) if rows else ""


def table(columns: list[str], rows: list[list[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def dice(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for all that is made")
    parser.add_argument("--raw", type=Path, help="raw datasets")
    parser.add_argument("-d", "--dataset", default="4")
    parser.add_argument("-tr", "--trainer", default="MobileNetTrainer")
    parser.add_argument("-f", "--fold", type=int, default=0)
    parser.add_argument("-p", "--plans-name", default="PromptSegPlans")
    parser.add_argument("--size", default="tiny", help="encoder size, when planning")
    parser.add_argument("--time-budget", type=seconds, nargs="+", default=[], metavar="T")
    parser.add_argument("--processes", type=int, default=1, help="data workers, of either tool")
    parser.add_argument("--nnunet", type=Path, help="bin folder of nnU-Net's environment")
    parser.add_argument("--prompts", action="store_true", help="also other prompts than automatic")
    parser.add_argument("--pipeline", action="store_true", help="also the data pipeline's cost")
    parser.add_argument("--preprocessed", type=Path, help="else in the work folder")
    parser.add_argument("--import", dest="imports", action="append", default=[], metavar="MODULE")
    parser.add_argument("--report", action="store_true", help="only print the tables")
    args = parser.parse_args()
    args.work = args.work.absolute()
    path = args.work / "train.json"
    comparable = ("dataset", "plans_name", "fold", "processes")
    results = load_results(path, {name: getattr(args, name) for name in comparable}, "runs")
    if not args.report:
        try:
            Benchmark(args, path, results).run()
        except Stopped:
            print("stopped; the same command goes on from here", flush=True)
            return 143
        print()
    print(report(results))
    return int(any("error" in entry for entry in results["runs"].values()))


if __name__ == "__main__":
    sys.exit(main())

"""How good after how many minutes? promptseg and nnU-Net train for the same time on one fold.

    python benchmarks/train.py --work FOLDER --raw RAW_ROOT -d 4 -tr MobileNetTrainer \
        --time-budget 10m 30m --nnunet NNUNET_ENVIRONMENT/bin --prompts --pipeline

For each time, `promptseg_train` trains the fold from scratch, and `promptseg_predict --auto-prompt`
segments its held-out cases from their raw images, as a user would. nnU-Net (3d_fullres, its own
preprocessing, the same training cases) trains for the same time and segments the same images with
`nnUNetv2_predict`. `promptseg_evaluate` compares both with the ground truth. The tools take turns,
each in its own environment, with one data worker.

nnU-Net has no time budget, and within minutes its learning rate would hardly fall: the trainer in
`nnunet_for_a_time.py` makes it fall over the given time, all of which is spent on training steps.

`--prompts` segments the same images twice more: with boxes as a person would draw them (those of
the ground truth, each face moved by up to 10 % of the side) and by the names of the labels alone.
`--pipeline` measures the cost of the data pipeline, see `data_pipeline.py`.

All figures are in one JSON file, `train.json`, which further commands add to: other trainers, times
and options. The same command continues where it was stopped; only a stopped training of nnU-Net
starts again. `--report` prints the tables. Time budgets are wall-clock time, so nothing else should
run meanwhile; the load and the CPU seconds are measured as well.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from commands import Runner, Stopped, load_results
from fold import Training, import_flags, link_held_out, plan_if_missing, predict_and_evaluate
from manual_boxes import write_manual_boxes
from nnunet import NNUNet
from train_tables import report, summary_line

from promptseg.commands.parsing import seconds
from promptseg.files import read_json, through_json, write_json
from promptseg.folders import find_dataset_folder, find_folders
from promptseg.plans import load_plans
from promptseg.preprocessing.dataset import PreprocessedDataset
from promptseg.training.splits import cases_of_fold


class Benchmark:
    """The measurements of one command; results are written after every part."""

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
        cases_of_fold(self.source, str(args.fold), cases)  # writes the folds if they do not exist
        same_plans = {"plans": through_json(plans.to_json())}
        if {**same_plans, **self.results}["plans"] != same_plans["plans"]:
            raise SystemExit(
                f"error: {self.path} has results of other plans; name another --work folder"
            )
        self.results |= {"labels": plans.labels, "size": plans.size, **same_plans}
        self.trainer = " ".join(filter(None, [args.trainer, args.precision]))
        for budget in args.time_budget:
            self._part(self.trainer, budget, self._promptseg)
            if args.nnunet:
                self._part("nnU-Net", budget, self._nnunet)
        if args.pipeline:
            self._pipeline()

    def _part(self, tool: str, budget: float, measure: Any) -> None:
        """Measure one tool and time; an error is recorded and the next part starts."""
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
            results=args.work / "results" / (args.precision or "") / f"{entry['time_budget']:g}s",
            trainer=args.trainer,
            plans_name=args.plans_name,
            fold=args.fold,
            time_budget=entry["time_budget"],
            processes=args.processes,
            precision=args.precision,
            imports=args.imports,
        )
        if "steps" not in entry:
            pieces = entry.setdefault("train_pieces", [])
            training.run(self.runner, f"{log}_train", pieces)
            entry |= training.figures(pieces)
            write_json(self.path, self.results)
        predictions = entry.setdefault("predictions", {})
        flags = {"automatic": ["--auto-prompt"]}
        if args.prompts:
            flags |= {"manual boxes": ["--prompts", self._manual_boxes()], "names alone": []}
        for kind in [kind for kind in flags if kind not in predictions]:
            scratch = self._scratch(log, kind)
            where = f"{log}_{scratch.name}"
            predictions[kind] = training.predict(self.runner, where, scratch, *flags[kind])
            write_json(self.path, self.results)

    def _nnunet(self, entry: dict[str, Any], log: str) -> None:
        args = self.args
        nnunet = NNUNet(
            programs=args.nnunet,
            dataset=find_dataset_folder(self.folders.raw.absolute(), args.dataset, "give --raw"),
            work=args.work / "nnunet",
            processes=args.processes,
            results=f"results/{entry['time_budget']:g}s",
        )
        if "nnunet" not in self.results:
            print("  planning", flush=True)
            planned = {"version": nnunet.version(), "plan_command": nnunet.plan(self.runner)}
            self.results["nnunet"] = planned
            write_json(self.path, self.results)
        if "steps" not in entry:
            splits, budget = self.source / "splits_final.json", entry["time_budget"]
            entry |= nnunet.train(
                self.runner, f"{log}_train", fold=args.fold, splits=splits, seconds=budget
            )
            entry["load_after"] = os.getloadavg()[0]
            write_json(self.path, self.results)
        predictions = entry.setdefault("predictions", {})
        if "no prompts" not in predictions:
            scratch = self._scratch(log, "no prompts")
            images, ground_truth = link_held_out(self.source, args.plans_name, args.fold, scratch)
            command, output = nnunet.predict_command(args.fold), scratch / "predictions"
            predictions["no prompts"] = predict_and_evaluate(
                self.runner, log, command, images, ground_truth, output, nnunet.environment
            )

    def _scratch(self, log: str, kind: str) -> Path:
        return self.args.work / "predictions" / log / kind.replace(" ", "_")

    def _manual_boxes(self) -> Path:
        args, path = self.args, self.args.work / "manual_boxes.json"
        if not path.is_file():
            scratch = self._scratch("ground_truth", "")
            _, ground_truth = link_held_out(self.source, args.plans_name, args.fold, scratch)
            write_manual_boxes(path, ground_truth, self.results["labels"])
        return path

    def _pipeline(self) -> None:
        args = self.args
        if self.trainer in self.results.setdefault("pipeline", {}):
            return
        print(f"{self.trainer}, data pipeline:", flush=True)
        log = f"{self.trainer}_pipeline".replace(" ", "_")
        output = self.runner.logs / f"{log}.json"
        script = Path(__file__).with_name("data_pipeline.py")
        command = [sys.executable, script, "-d", self.source.name, "-tr", args.trainer]
        command += ["--preprocessed", self.source.parent]
        command += ["-p", args.plans_name, "-f", args.fold, "--processes", args.processes]
        command += ["--precision", args.precision] if args.precision else []
        command += ["--output", output, *import_flags(args.imports)]
        self.runner.run(log, command)
        self.results["pipeline"][self.trainer] = read_json(output)
        write_json(self.path, self.results)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for all files")
    parser.add_argument("--raw", type=Path, help="folder of raw datasets")
    parser.add_argument("-d", "--dataset", default="4")
    parser.add_argument("-tr", "--trainer", default="MobileNetTrainer")
    parser.add_argument("-f", "--fold", type=int, default=0)
    parser.add_argument("-p", "--plans-name", default="PromptSegPlans")
    parser.add_argument(
        "--size", default="tiny", help="encoder size for planning (default: %(default)s)"
    )
    parser.add_argument(
        "--time-budget", type=seconds, nargs="+", default=[], metavar="T", help="such as 10m 30m"
    )
    parser.add_argument(
        "--processes",
        type=int,
        default=1,
        help="data workers of either tool (default: %(default)s)",
    )
    parser.add_argument("--nnunet", type=Path, help="bin folder of nnU-Net's environment")
    parser.add_argument(
        "--prompts", action="store_true", help="also use prompts other than automatic ones"
    )
    parser.add_argument("--pipeline", action="store_true", help="also measure the data pipeline")
    parser.add_argument(
        "--preprocessed", type=Path, help="folder of planned datasets (default: in --work)"
    )
    parser.add_argument(
        "--precision", help="precision of promptseg's training steps (default: the trainer's)"
    )
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
            print("stopped; the same command continues from here", flush=True)
            return 143
        print()
    print(report(results))
    return int(any("error" in entry for entry in results["runs"].values()))


if __name__ == "__main__":
    sys.exit(main())

"""The commands: each parses its arguments and calls one public function."""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from promptseg.folders import Folders, find_folders
from promptseg.parallel import Workers

# What a user or a machine can cause: one message. Anything else shows its traceback; so do these
# with PROMPTSEG_LOG_LEVEL=DEBUG.
EXPECTED_ERRORS = (ValueError, OSError, RuntimeError, ImportError)

_DATASET_HELP = "number or full name, such as 4 or Dataset004_Hippocampus"


def plan(arguments: Sequence[str] | None = None) -> int:
    """promptseg_plan: check, fingerprint, plan, fit automatic prompts, preprocess."""
    parser = _parser(plan)
    parser.add_argument(
        "-d", "--dataset", nargs="+", required=True, metavar="ID", help=_DATASET_HELP
    )
    parser.add_argument(
        "--size", choices=("tiny", "small", "base"), default="tiny", help="encoder size"
    )
    parser.add_argument("-p", "--plans-name", default="PromptSegPlans", help="name of the plans")
    parser.add_argument("-np", "--processes", type=_count, default=2, help="worker processes")
    parser.add_argument("--skip-broken", action="store_true", help="go on without broken cases")
    _add_import(parser)
    _add_folders(parser, "raw", "preprocessed")
    return _run(parser, arguments, _plan)


def _plan(args: argparse.Namespace) -> int:
    with Workers(args.processes) as workers:
        workers.start("promptseg.experiment_planning.planner")  # while this process loads it too
        results = [_planned(dataset, args, workers) for dataset in args.dataset]
    return max(results)


def _planned(dataset: str, args: argparse.Namespace, workers: Workers) -> int:
    """Plan one dataset and print what was chosen; its exit code, since others follow."""
    from promptseg.experiment_planning.planner import plan_dataset

    try:
        result = plan_dataset(
            dataset,
            _folders(args),
            size=args.size,
            plans_name=args.plans_name,
            processes=workers,
            skip_broken=args.skip_broken,
        )
    except EXPECTED_ERRORS as error:
        _print_error(error)
        return 1
    plans = result.plans
    print(f"\n{plans.dataset_name}: {result.folder / (plans.plans_name + '.json')}")
    print(f"  spacing {_short(plans.spacing)} mm, median shape {plans.median_shape} (zyx)")
    print(f"  window {plans.window}, stride {plans.stride}, batch size {plans.batch_size}")
    for rule, reason in plans.reasons.items():
        print(f"  {rule}: {reason}")
    print(result.auto_prompt_table)
    for problem in result.skipped:
        print(f"  left out: {problem}")
    for case_id, message in result.failed.items():
        print(f"  not preprocessed: {case_id}: {message}")
    return 1 if result.failed else 0


def train(arguments: Sequence[str] | None = None) -> int:
    """promptseg_train: train a fold, then predict and evaluate its validation cases."""
    parser = _parser(train)
    parser.add_argument("-d", "--dataset", required=True, metavar="ID", help=_DATASET_HELP)
    parser.add_argument("-tr", "--trainer", default="ViTTrainer", help="trainer class")
    parser.add_argument("-f", "--fold", nargs="+", default=["0"], help="0, 1, ..., or all")
    parser.add_argument("-p", "--plans-name", default="PromptSegPlans", help="name of the plans")
    parser.add_argument("--c", dest="resume", action="store_true", help="continue training")
    parser.add_argument("--overwrite", action="store_true", help="start a trained fold again")
    parser.add_argument(
        "--recipe",
        choices=("scratch", "paper"),
        default="scratch",
        help="AdamW with warm-up and decay, or the paper's Adam at 1e-5",
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=int, help="length of the run")
    length.add_argument(
        "--time-budget", type=_seconds, metavar="T", help="length of the run: 90s, 30m or 2h"
    )
    parser.add_argument("--iterations", type=int, help="optimizer steps in one epoch")
    parser.add_argument("--lr", type=float, help="initial learning rate")
    parser.add_argument("--seed", type=int, help="of weights, samples and augmentation")
    parser.add_argument("-np", "--processes", type=_count, default=1, help="sample workers")
    parser.add_argument("-device", help="cpu, cuda, cuda:1 or mps; a GPU if there is one")
    _add_import(parser)
    _add_folders(parser, "preprocessed", "results")
    return _run(parser, arguments, _train)


def _train(args: argparse.Namespace) -> int:
    from promptseg.pipeline import train as train_fold

    for fold in args.fold:
        model = train_fold(
            args.dataset,
            _folders(args),
            trainer=args.trainer,
            fold=fold,
            plans_name=args.plans_name,
            recipe=args.recipe,
            epochs=args.epochs,
            iterations_per_epoch=args.iterations,
            time_budget=args.time_budget,
            initial_lr=args.lr,
            seed=args.seed,
            device=args.device,
            processes=args.processes,
            resume=args.resume,
            overwrite=args.overwrite,
        )
        if model is None:
            print("stopped before the end; the same command with --c continues", file=sys.stderr)
            return 1
        print(f"trained: {model / f'fold_{fold}'}; look at progress.png there")
    return 0


def predict(arguments: Sequence[str] | None = None) -> int:
    """promptseg_predict: segment a folder of images with a trained model."""
    parser = _parser(predict)
    parser.add_argument("-i", "--input", type=Path, required=True, help="folder or file of images")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("-m", "--model", type=Path, help="model folder; or choose by -d, -tr, -p")
    parser.add_argument("-d", "--dataset", metavar="ID", help=_DATASET_HELP)
    parser.add_argument("-tr", "--trainer", help="trainer class of the model")
    parser.add_argument("-p", "--plans-name", help="name of the model's plans")
    parser.add_argument("-f", "--fold", nargs="+", help="folds to average; all trained by default")
    parser.add_argument(
        "-chk", "--checkpoint", default="checkpoint_final.pth", help="file in each fold's folder"
    )
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument(
        "--auto-prompt",
        nargs="?",
        const="plans",
        metavar="STRATEGY",
        help="propose boxes: as the plans chose, or by one strategy for all labels",
    )
    prompts.add_argument("--prompts", type=Path, help="prompts.json with boxes and points")
    parser.add_argument("-step_size", type=float, default=0.5, help="of the sliding window")
    parser.add_argument(
        "--disable_tta",
        action="store_true",
        help="no test-time mirroring (there is none unless training mirrored)",
    )
    parser.add_argument("--continue_prediction", action="store_true", help="keep what is there")
    parser.add_argument("-num_parts", type=int, default=1, help="commands that share the work")
    parser.add_argument("-part_id", type=int, default=0, help="which of them this is, from 0")
    parser.add_argument("-device", help="cpu, cuda, cuda:1 or mps; a GPU if there is one")
    _add_import(parser)
    _add_folders(parser, "results")
    return _run(parser, arguments, _predict)


def _predict(args: argparse.Namespace) -> int:
    from promptseg.inference.predict_files import predict_files
    from promptseg.pipeline import find_model_folder

    model = args.model or find_model_folder(
        _folders(args),
        dataset=args.dataset,
        trainer=args.trainer,
        plans_name=args.plans_name,
        command=shlex.join(["promptseg_predict", *args.typed]),
    )
    report = predict_files(
        model,
        args.input,
        args.output,
        folds=args.fold,
        auto_prompt=args.auto_prompt,
        prompts=args.prompts,
        checkpoint=args.checkpoint,
        device=args.device,
        step_size=args.step_size,
        tta=not args.disable_tta,
        continue_prediction=args.continue_prediction,
        parts=args.num_parts,
        part=args.part_id,
    )
    done = len(report["cases"]) - report["failed"]
    print(f"{done} segmentations, prompts_used.json and predict_report.json in {args.output}")
    for case_id, entry in report["cases"].items():
        if entry["status"] == "failed":
            print(f"  failed: {case_id}: {entry['error']}")
    return 1 if report["failed"] else 0


def auto_prompt(arguments: Sequence[str] | None = None) -> int:
    """promptseg_auto_prompt: propose boxes for any images, without model or dataset."""
    parser = _parser(auto_prompt)
    parser.add_argument("-i", "--input", type=Path, required=True, help="image file or folder")
    parser.add_argument("-o", "--output", type=Path, required=True, help="boxes.json to write")
    parser.add_argument("--strategy", default="intensity", help="the paper's by default")
    parser.add_argument("--modality", help="CT, MRI, PET or US; guessed when not given")
    parser.add_argument("--window", help="CT window: soft tissue, lung, brain or bone")
    parser.add_argument("--label", default="object", help="what the boxes are filed under")
    parser.add_argument("--png", action="store_true", help="draw the boxes beside the output")
    parser.add_argument("-np", "--processes", type=_count, default=0, help="worker processes")
    parser.add_argument(
        "--set",
        dest="parameters",
        type=_parameter,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change a parameter of the strategy, such as sigma=1.5 or margin=0",
    )
    _add_import(parser)
    return _run(parser, arguments, _auto_prompt)


def _auto_prompt(args: argparse.Namespace) -> int:
    from promptseg.prompts.automatic.files import auto_prompt_files

    content = auto_prompt_files(
        args.input,
        args.output,
        strategy=args.strategy,
        modality=args.modality,
        window=args.window,
        png=args.png,
        processes=args.processes,
        parameters=dict(args.parameters),
        label=args.label,
    )
    for case_id, labels in content["cases"].items():
        for prompts in labels.values():
            boxes = [[list(map(int, corner)) for corner in box] for box in prompts["boxes"]]
            print(f"{case_id}: {boxes or 'no box'} ({prompts['reason']})")
    for case_id, message in content["failed"].items():
        print(f"failed: {case_id}: {message}")
    print(f"boxes are lower and upper corners, zyx, upper exclusive; written to {args.output}")
    return 1 if content["failed"] else 0


def evaluate(arguments: Sequence[str] | None = None) -> int:
    """promptseg_evaluate: compare predictions with the ground truth."""
    parser = _parser(evaluate)
    parser.add_argument("-g", "--ground-truth", type=Path, required=True, help="label files")
    parser.add_argument("-p", "--predictions", type=Path, required=True, help="predicted files")
    parser.add_argument("-np", "--processes", type=_count, default=0, help="worker processes")
    parser.add_argument(
        "--missing-ok", action="store_true", help="cases without prediction are no failure"
    )
    return _run(parser, arguments, _evaluate)


def _evaluate(args: argparse.Namespace) -> int:
    from promptseg.evaluation.evaluate import evaluate_folders, format_table

    summary = evaluate_folders(
        args.ground_truth, args.predictions, processes=args.processes, missing_ok=args.missing_ok
    )
    print(format_table(summary))
    return 1 if summary["failures"] else 0


def demo(arguments: Sequence[str] | None = None) -> int:
    """promptseg_demo: phantoms, plan, train, predict, evaluate and a picture, in minutes."""
    parser = _parser(demo)
    parser.add_argument(
        "--modality", choices=("CT", "MRI", "PET", "US"), default="CT", help="of the phantoms"
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("promptseg_demo"), help="folder to work in"
    )
    parser.add_argument(
        "--time-budget", type=_seconds, default=240.0, metavar="T", help="of the training: 4m"
    )
    parser.add_argument("-np", "--processes", type=_count, default=2, help="worker processes")
    return _run(parser, arguments, _demo)


def _demo(args: argparse.Namespace) -> int:
    from promptseg.demo.run import run_demo
    from promptseg.evaluation.evaluate import format_table

    result = run_demo(
        args.output,
        modality=args.modality,
        time_budget=args.time_budget,
        processes=args.processes,
    )
    print(format_table(result["evaluation"]))
    stages = ", ".join(f"{name} {value:.0f} s" for name, value in result["seconds"].items())
    print(f"\n{stages}\nLook at {result['picture']}")
    return 1 if result["evaluation"]["failures"] else 0


def _parser(command: Callable) -> argparse.ArgumentParser:
    name, description = command.__doc__.split(":", 1)
    return argparse.ArgumentParser(prog=name, description=description.strip(), allow_abbrev=False)


def _add_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="MODULE",
        help="import a module that registers classes of your own",
    )


def _add_folders(parser: argparse.ArgumentParser, *roots: str) -> None:
    for root in roots:
        parser.add_argument(
            f"--{root}",
            type=Path,
            metavar="FOLDER",
            help=f"{root} datasets; else $promptseg_{root}, else ./promptseg_data/{root}",
        )


def _folders(args: argparse.Namespace) -> Folders:
    return find_folders(*(getattr(args, root, None) for root in ("raw", "preprocessed", "results")))


def _run(
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None,
    command: Callable[[argparse.Namespace], int],
) -> int:
    """Parse, log to the terminal, call; expected errors become one message and exit code 1."""
    args = parser.parse_args(arguments)
    args.typed = list(sys.argv[1:] if arguments is None else arguments)
    # Waiting threads that spin slow training tenfold on a machine that others use as well.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with _logged_to_terminal():
        try:
            for module in getattr(args, "imports", []):
                importlib.import_module(module)
            return command(args)
        except EXPECTED_ERRORS as error:
            _print_error(error)
            return 1
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130


def _print_error(error: BaseException) -> None:
    logging.getLogger("promptseg").debug("traceback", exc_info=error)
    print(f"error: {error}", file=sys.stderr)


class _TqdmHandler(logging.Handler):
    """Log lines above the progress bar, not through it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


@contextmanager
def _logged_to_terminal() -> Iterator[None]:
    """Log lines of the package appear on the terminal while the block runs."""
    logger, handler = logging.getLogger("promptseg"), _TqdmHandler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(os.environ.get("PROMPTSEG_LOG_LEVEL", "INFO").upper())
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be 0 or more, got {text}")
    return value


def _seconds(text: str) -> float:
    """`90s`, `30m`, `1.5h` or plain seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if not match or not float(match[1]) > 0:
        raise argparse.ArgumentTypeError(f"expected a time such as 90s, 30m or 2h, got {text!r}")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def _parameter(text: str) -> tuple[str, object]:
    """`name=value`; the value is JSON if it can be, else text."""
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def _short(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"

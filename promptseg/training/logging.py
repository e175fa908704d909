"""What a run writes about itself: its log file, and an epoch's metrics to a CSV file and a picture.

Metrics also go to TensorBoard and to Weights & Biases, optional packages that are used only when
requested.
"""

from __future__ import annotations

import csv
import importlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from promptseg.files import replacing
from promptseg.training.distributed import is_rank_zero
from promptseg.training.request import RunOptions

WANDB_RUN = "wandb_run.txt"  # the identifier of a fold's run at W&B, to continue it under
COLUMNS = (
    "epoch",
    "step",
    "seconds",
    "learning_rate",
    "train_loss",
    "val_loss",
    "val_dice_label",
    "val_dice_box",
    "val_dice_auto",
    "val_dice_object",
    "val_dice_clicks",
)

Row = Mapping[str, Any]
LogRow = Callable[[Row], None]

log = logging.getLogger(__name__)


@contextmanager
def log_to_file(path: Path) -> Iterator[None]:
    """Append all log lines to a file too while the block runs, and the error that ends it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger = logging.getLogger("promptseg")
    level = logger.level
    if logger.getEffectiveLevel() > logging.INFO:
        logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    except BaseException as error:  # the command itself prints it on the terminal
        message = f"error: {str(error) or type(error).__name__}"
        record = {
            "levelno": logging.ERROR,
            "msg": message,
            "exc_info": (type(error), error, error.__traceback__),
        }
        handler.handle(logging.makeLogRecord(record))
        raise
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        handler.close()


def score(row: Mapping[str, Any]) -> float:
    """How good an epoch was: the Dice of automatic prompts on the validation patches.

    Where there is none, as when the patches are empty, it is the negative training loss. Rows of
    earlier versions lack it where the plans had no box; there it is the Dice of names alone.
    """
    values = (row["val_dice_auto"], row["val_dice_label"], -row["train_loss"])
    return next(value for value in values if value is not None and value == value)


def epochs_since_best(rows: Sequence[Mapping[str, Any]]) -> int:
    """Epochs since the best score, the first of equal ones; 0 where there are no epochs."""
    scores = [score(row) for row in rows]
    return len(scores) - 1 - scores.index(max(scores)) if scores else 0


def write_metrics(folder: Path, rows: Sequence[dict[str, Any]], title: str) -> None:
    """Write `metrics.csv` and `progress.png` of all epochs, and log the last epoch."""
    write_metrics_csv(folder / "metrics.csv", rows)
    draw_progress(folder / "progress.png", rows, title)
    values = ", ".join(f"{k} {v:.4g}" for k, v in rows[-1].items() if isinstance(v, float))
    log.info("epoch %d: %s", rows[-1]["epoch"], values)


def write_metrics_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write one line per epoch, atomically; an empty cell is an undefined value."""
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(
            {k: "" if v is None or v != v else v for k, v in row.items()} for row in rows
        )


def draw_progress(path: Path, rows: Sequence[dict[str, Any]], title: str) -> None:
    """Draw loss, validation Dice by kind of prompt, and learning rate over the epochs."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    epochs = [row["epoch"] + 1 for row in rows]

    def column(name: str) -> list[float]:
        return [float("nan") if row.get(name) is None else row[name] for row in rows]

    figure = Figure(figsize=(8, 9), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    loss, dice, rate = figure.subplots(3, 1, sharex=True, height_ratios=(3, 3, 1.2))
    dots = {"marker": "."}  # without which one epoch, or one between undefined values, is invisible
    loss.plot(epochs, column("train_loss"), label="training", color="tab:blue", **dots)
    loss.plot(epochs, column("val_loss"), label="validation", color="tab:orange", **dots)
    loss.set_ylabel("loss")
    loss.legend()
    for name, label in (
        ("val_dice_label", "label name alone"),
        ("val_dice_box", "ground-truth box, jittered"),
        ("val_dice_auto", "the plans' automatic prompt"),
        ("val_dice_object", "the box without the name"),
        ("val_dice_clicks", "the name and three clicks"),
    ):
        dice.plot(epochs, column(name), label=label, **dots)
    dice.set_ylabel("Dice on fixed validation patches")
    dice.set_ylim(0, 1)
    dice.legend(loc="lower right")
    rate.plot(epochs, column("learning_rate"), color="tab:gray", **dots)
    rate.set_ylabel("learning rate")
    rate.set_xlabel("epoch")
    for axis in (loss, dice, rate):
        axis.grid(alpha=0.3)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)


def check_installed(options: RunOptions) -> None:
    """Import the packages that the run logs with, before slow work starts.

    Raises:
        ImportError: with the command that installs what is missing.
    """
    if options.tensorboard:
        _tensorboard()
    if options.wandb is not None:
        _wandb()


@contextmanager
def metric_loggers(
    options: RunOptions,
    folder: Path,
    rows: Sequence[Row],
    name: str,
    settings: Mapping[str, Any],
) -> Iterator[LogRow]:
    """Yield a function that sends an epoch's metrics where `options` say, by default nowhere.

    Of several processes only the first one sends them.

    Args:
        options: options of this run.
        folder: folder of the fold; event files and W&B's own files are written into it.
        rows: earlier epochs of a continued run.
        name: name of the run.
        settings: shown beside the metrics at W&B.
    """
    with ExitStack() as stack:
        loggers = []
        if options.tensorboard and is_rank_zero():
            loggers.append(stack.enter_context(_to_tensorboard(folder, rows)))
        if options.wandb is not None and is_rank_zero():
            opened = _to_wandb(options.wandb, folder, rows, name, settings)
            loggers.append(stack.enter_context(opened))

        def log_row(row: Row) -> None:
            for logger in loggers:
                logger(row)

        yield log_row


@contextmanager
def _to_tensorboard(folder: Path, rows: Sequence[Row]) -> Iterator[LogRow]:
    # Every run writes all epochs and hides what earlier runs wrote, so that an epoch that was
    # trained again after a kill, or a fold that was started again, is not shown twice.
    with _tensorboard().SummaryWriter(str(folder), purge_step=0) as writer:

        def log_row(row: Row) -> None:
            for metric, value in _numbers(row).items():
                writer.add_scalar(metric, value, row["step"])
            writer.flush()

        for row in rows:
            log_row(row)
        yield log_row


@contextmanager
def _to_wandb(
    project: str, folder: Path, rows: Sequence[Row], name: str, settings: Mapping[str, Any]
) -> Iterator[LogRow]:
    wandb, file = _wandb(), folder / WANDB_RUN
    known = file.read_text(encoding="utf-8").strip() if rows and file.is_file() else None
    try:
        run = wandb.init(
            project=project,
            name=name,
            dir=str(folder),
            config=dict(settings),
            id=known,
            resume="allow",
            # printed text is not sent: it contains paths and case identifiers
            settings=wandb.Settings(console="off", disable_git=True, save_code=False),
        )
    except wandb.Error as error:
        raise RuntimeError(
            f"W&B started no run in project {project!r}: {error}; run `wandb login` first, set "
            f"WANDB_MODE=offline to keep everything here, or leave --wandb out (--c continues)"
        ) from error
    with replacing(file) as temporary:
        temporary.write_text(run.id, encoding="utf-8")

    def log_row(row: Row) -> None:
        run.log(_numbers(row), step=row["step"])

    failed = True
    try:
        for row in rows if known is None else ():
            log_row(row)
        yield log_row
        failed = False
    finally:  # as a context, the run would print a traceback of its own
        run.finish(exit_code=int(failed))


def _numbers(row: Row) -> dict[str, float]:
    """The defined metrics of an epoch."""
    return {k: v for k, v in row.items() if k != "step" and v is not None and v == v}


def _tensorboard() -> ModuleType:
    return _import("torch.utils.tensorboard", "tensorboard")


def _wandb() -> ModuleType:
    return _import("wandb", "wandb")


def _import(module: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"--{extra} needs the package {extra}, which is not installed ({error}): "
            f'pip install "promptseg[{extra}]"'
        ) from error

"""Metrics to TensorBoard and to Weights & Biases: optional packages, used only when asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from promptseg.files import replacing
from promptseg.training.distributed import is_first
from promptseg.training.settings import RunOptions

WANDB_RUN = "wandb_run.txt"  # the identifier of a fold's run at W&B, to continue it under

Row = Mapping[str, Any]
LogRow = Callable[[Row], None]


def check_installed(options: RunOptions) -> None:
    """Import what the run logs with, before slow work starts.

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
    """Yield a function that hands an epoch's metrics on, to nobody unless `options` say so.

    Of several processes the first one alone hands them on.

    Args:
        options: of this run.
        folder: of the fold: the event files and W&B's own files are written into it.
        rows: the epochs before, of a continued run.
        name: of the run.
        settings: shown beside the metrics at W&B.
    """
    with ExitStack() as stack:
        loggers = []
        if options.tensorboard and is_first():
            loggers.append(stack.enter_context(_to_tensorboard(folder, rows)))
        if options.wandb is not None and is_first():
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
            # paths and case identifiers stand in what is printed: it stays here
            settings=wandb.Settings(console="off", disable_git=True, save_code=False),
        )
    except wandb.Error as error:
        raise RuntimeError(
            f"W&B began no run in project {project!r}: {error}; run `wandb login` first, set "
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
    """The metrics of an epoch that are defined."""
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

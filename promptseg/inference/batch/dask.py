"""Cases shared out over the workers of a Dask cluster, one case a task."""

from __future__ import annotations

import importlib
import logging
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptseg.inference.batch.case import CaseSteps
from promptseg.inference.predictor import Predictor
from promptseg.io.dataset import RawCase
from promptseg.prompts.given import CasePrompts

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger(__name__)

_CONNECT_SECONDS = 10
_one_at_a_time = threading.Lock()  # a predictor holds one image; a worker may have threads
_loaded: dict[str, Predictor] = {}  # of the latest run, by its name


@dataclass(frozen=True, kw_only=True)
class ClusterJob:
    """What a worker needs to know to do cases; every path is one that it sees too.

    Attributes:
        model_folder, model_options: arguments of `Predictor.from_model_folder`.
        output, auto_prompt: see `CaseSteps`.
        imports: modules to import first.
        run: a name of its own for every run, so that no worker takes an earlier run's model.
    """

    model_folder: Path
    model_options: Mapping[str, Any]
    output: Path
    auto_prompt: str | None
    imports: tuple[str, ...]
    run: str


def connect(address: str) -> Client:
    """A client of the scheduler at an address such as `tcp://host:8786`.

    Raises:
        ImportError: if Dask is not installed, with what to install.
        ConnectionError: if no scheduler answers there, with how to start one.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise ImportError(
            f"--dask needs Dask, which is not installed here ({error}); install it on every "
            f'machine with: pip install "promptseg[dask]"'
        ) from error
    try:
        return Client(address, timeout=_CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ConnectionError(
            f"no Dask scheduler at {address!r} ({error}); expected tcp://HOST:PORT of a running "
            f"`dask scheduler`, with a `dask worker tcp://HOST:PORT --nthreads 1` a machine or GPU"
        ) from error


def predict_on_cluster(
    client: Client,
    cases: Sequence[RawCase],
    done: Callable[[RawCase, dict[str, Any] | None, Exception | None], None],
    *,
    model_folder: Path,
    model_options: Mapping[str, Any],
    output: Path,
    auto_prompt: str | None,
    from_file: Mapping[str, CasePrompts] | None,
    imports: Sequence[str] = (),
) -> None:
    """Have the workers read, segment and write every case; tell `done` what came of it.

    The model is loaded once in each worker process. Cases of workers that are lost are done
    again; one on which several workers died in a row has failed. A result is one move of a
    finished file, so that doing a case twice leaves the same as doing it once.

    Args:
        client: of the scheduler; see `connect`.
        cases: to segment.
        done: called with case, report entry, None or case, None, exception, as they come.
        model_folder, model_options: arguments of `Predictor.from_model_folder`.
        output, auto_prompt, from_file: see `CaseSteps`.
        imports: modules that the workers import first.
    """
    job = ClusterJob(
        model_folder=model_folder.absolute(),
        model_options=model_options,
        output=output.absolute(),
        auto_prompt=auto_prompt,
        imports=tuple(imports),
        run=uuid.uuid4().hex,
    )
    if not client.scheduler_info()["workers"]:
        log.warning("no worker has joined the cluster yet; waiting for the first")
    from distributed import as_completed

    running = {}
    try:
        for case in cases:
            images = tuple(path.absolute() for path in case.images)
            prompts = None
            if from_file is not None:  # of this case alone
                own = from_file.get(case.case_id)
                prompts = {} if own is None else {case.case_id: own}
            key = f"{case.case_id}-{job.run}"
            task = client.submit(
                _predict_case, replace(case, images=images), prompts, job, key=key, pure=False
            )
            running[task] = case
        for task in as_completed(list(running), loop=client.loop):
            try:
                entry, message = task.result()
                error = None if message is None else RuntimeError(message)
            except Exception as cause:
                entry, error = None, _in_words(cause)
            # Dask would do a case again whose worker is lost while anybody holds its result.
            task.release()
            done(running.pop(task), entry, error)
    finally:
        client.cancel(list(running))


def _predict_case(
    case: RawCase, from_file: Mapping[str, CasePrompts] | None, job: ClusterJob
) -> tuple[dict[str, Any] | None, str | None]:
    """Do a case on a worker; returns its report entry, or what went wrong in words."""
    try:
        with _one_at_a_time:
            steps = CaseSteps(
                predictor=_predictor(job),
                output=job.output,
                auto_prompt=job.auto_prompt,
                from_file=from_file,
            )
            return steps.all(case), None
    except Exception as error:
        return None, str(error) or type(error).__name__


def _predictor(job: ClusterJob) -> Predictor:
    """The run's model, loaded by the first case that this process does."""
    if job.run not in _loaded:
        _loaded.clear()
        for module in job.imports:
            importlib.import_module(module)
        _loaded[job.run] = Predictor.from_model_folder(job.model_folder, **job.model_options)
    return _loaded[job.run]


def _in_words(cause: Exception) -> Exception:
    """The error of a case whose task came to no end; what went wrong inside, a task returns."""
    from distributed.scheduler import KilledWorker

    if isinstance(cause, KilledWorker):
        return RuntimeError(
            f"its workers were lost (KilledWorker: {cause}); most often they ran out of memory: "
            f"give each more, and run the same command with --continue_prediction"
        )
    return RuntimeError(
        f"its task did not come to an end on the cluster ({type(cause).__name__}: {cause}); if "
        f"that does not tell what to do, look at the worker's log, and run the same command with "
        f"--continue_prediction"
    )

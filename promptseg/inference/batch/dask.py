"""Cases distributed over the workers of a Dask cluster, one task per case."""

from __future__ import annotations

import importlib
import threading
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptseg.inference.batch.case import CaseSteps, Done, load_for_files
from promptseg.inference.load import ModelFolders, model_folders
from promptseg.inference.options import PredictionOptions
from promptseg.inference.predictor import Predictor
from promptseg.io.dataset import RawCase
from promptseg.parallel import unfinished
from promptseg.prompts.given import CasePrompts

if TYPE_CHECKING:
    from distributed import Client, Future

_AGAIN = "run the same command with --continue_prediction"
_one_at_a_time = threading.Lock()  # a predictor holds one image; a worker may have threads
_loaded: dict[str, Predictor] = {}  # of the latest run, by its identifier


@dataclass(frozen=True, kw_only=True)
class ClusterJob:
    """What a worker needs to know of a run; it must see the paths, too.

    Attributes:
        models: absolute paths of the model folders or zip files.
        output: absolute path of the folder to write to.
        options: of the run.
        run: identifies the run, so that no worker uses an earlier run's model.
    """

    models: tuple[Path, ...]
    output: Path
    options: PredictionOptions
    run: str

    @classmethod
    def of(cls, model: ModelFolders, output: Path, options: PredictionOptions) -> ClusterJob:
        """A new run."""
        initial = None if options.initial is None else Path(options.initial).absolute()
        return cls(
            models=tuple(folder.absolute() for folder in model_folders(model)),
            output=output.absolute(),
            options=replace(options, initial=initial),
            run=uuid.uuid4().hex,
        )


def predict_on_cluster(
    client: Client,
    cases: Sequence[RawCase],
    done: Done,
    job: ClusterJob,
    from_file: Mapping[str, CasePrompts] | None,
) -> None:
    """Have the workers read, segment and write every case.

    The model is loaded once in each worker process. Cases of workers that are lost are repeated;
    one on which several workers died in a row has failed. A result is one move of a finished
    file, so that repeating a case changes nothing.

    Args:
        client: of the scheduler; see `promptseg.parallel.connect`.
        cases: to segment.
        done: called with the outcome of each case, in the order in which cases end.
        job: the run.
        from_file: see `CaseSteps`.
    """
    from distributed import as_completed

    running = {}
    try:
        for case in cases:
            running[_submit(client, case, job, from_file)] = case
        for task in as_completed(list(running), loop=client.loop):
            try:
                entry, message = task.result()
                error = None if message is None else RuntimeError(message)
            except Exception as cause:
                entry, error = None, unfinished(cause, _AGAIN)
            # Dask would repeat a case whose worker is lost while its result is still held.
            task.release()
            done(running.pop(task), entry, error)
    finally:
        client.cancel(list(running))


def _submit(
    client: Client,
    case: RawCase,
    job: ClusterJob,
    from_file: Mapping[str, CasePrompts] | None,
) -> Future:
    """The task of a case, with its prompts alone."""
    images = tuple(path.absolute() for path in case.images)
    prompts = None
    if from_file is not None:
        own = from_file.get(case.case_id)
        prompts = {} if own is None else {case.case_id: own}
    key = f"{case.case_id}-{job.run}"
    return client.submit(
        _predict_case, replace(case, images=images), prompts, job, key=key, pure=False
    )


def _predict_case(
    case: RawCase, from_file: Mapping[str, CasePrompts] | None, job: ClusterJob
) -> tuple[dict[str, Any] | None, str | None]:
    """Segment a case on a worker; returns its report entry, or a message if it failed."""
    try:
        with _one_at_a_time:
            steps = CaseSteps(
                predictor=_predictor(job),
                output=job.output,
                options=job.options,
                from_file=from_file,
            )
            return steps.all(case), None
    except Exception as error:
        return None, str(error) or type(error).__name__


def _predictor(job: ClusterJob) -> Predictor:
    """The run's model, loaded by the first case in this process."""
    if job.run not in _loaded:
        _loaded.clear()
        for module in job.options.imports:
            importlib.import_module(module)
        _loaded[job.run] = load_for_files(job.models, job.options)
    return _loaded[job.run]

"""Many images through a model: a folder to segmentations and a report, or one after the other."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from promptseg.files import replacing
from promptseg.inference.batch.case import (
    CaseSteps,
    Done,
    failure,
    load_for_files,
    target,
)
from promptseg.inference.batch.dask import ClusterJob, predict_on_cluster
from promptseg.inference.batch.report import Report, write_review_list
from promptseg.inference.batch.stages import overlapped
from promptseg.inference.decoder import PreparedImage
from promptseg.inference.load import ModelFolders, model_folders, opened_model
from promptseg.inference.options import PredictionOptions, check_for_loaded
from promptseg.inference.predictor import Predictor
from promptseg.inference.results import Prediction, probabilities_file
from promptseg.io.dataset import RawCase, cases_in_folder
from promptseg.io.images import is_windowed
from promptseg.labels import Values
from promptseg.parallel import connect
from promptseg.plans import Normalization, Plans
from promptseg.preprocessing.normalize import windows_in_words
from promptseg.progress_bar import progress_bar
from promptseg.prompts.given import CasePrompts
from promptseg.prompts.label_maps import cases_with_masks
from promptseg.prompts.reading import read_case_prompts
from promptseg.words import some

log = logging.getLogger(__name__)

Work = Callable[[Sequence[RawCase], Done], None]  # segments cases, and reports the outcome of each

_END = object()


def predict_files(
    model: Predictor | ModelFolders,
    inputs: Path | str,
    output: Path | str,
    options: PredictionOptions | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """Segment every case of a folder and write the results into another.

    Writes `CASE.nii.gz` (the images' own ending), `prompts_used.json` (can be edited and given
    back as `prompts`), `predict_report.json` and, of a model folder, its `dataset.json`. A case
    that fails is reported; the others are segmented. The segmentation of an earlier run is removed
    before its case is predicted anew, so that it cannot be taken for a result of this run.

    Args:
        model: folder of a trained model or a zip file of it, or several, whose networks are
            averaged; or a predictor from `load_predictor`, whose own step size, perturbations and
            so on are used. (Without arguments, it has no perturbed prompts, and keeps more
            encodings.)
        inputs: folder of images, DICOM series folder, or one file.
        output: folder to write to.
        options: see `PredictionOptions`.
        changes: fields of the options, as keywords: `predict_files(..., auto_prompt="plans")`.

    Returns:
        The report: `auto_prompt`, `cases`, each with `status` `done`, `kept` or `failed`, and
        `failed`, the number of those.

    Raises:
        FileNotFoundError, ValueError: if the model, the inputs or the prompts file as a whole
            cannot be used, if an option is wrong or does not apply to a loaded predictor, if
            `review_list` is a folder, or if an image or a mask to correct would be overwritten.
        ImportError, ConnectionError: if `dask` is given and Dask or the scheduler is missing.
    """
    options, output = replace(options or PredictionOptions(), **changes), Path(output)
    if options.review_list is not None and Path(options.review_list).is_dir():
        raise ValueError(f"{options.review_list} is a folder; the review list is a CSV file")
    is_loaded = isinstance(model, Predictor)
    if is_loaded:
        check_for_loaded(options)
    with connect(options.dask) if options.dask else nullcontext() as client:
        if is_loaded:
            predictor = model
        else:  # a cluster's client decodes nothing, and may have no GPU
            predictor = load_for_files(model, replace(options, device="cpu") if client else options)
        _check_options(options, predictor)
        cases, problems, from_file = _find_cases(inputs, options, predictor.plans)

        def on_cluster(cases: Sequence[RawCase], done: Done) -> None:
            job = ClusterJob.of(model, output, options)
            predict_on_cluster(client, cases, done, job, from_file)

        steps = CaseSteps(predictor=predictor, output=output, options=options, from_file=from_file)
        report = _predict(steps, cases, problems, on_cluster if client else _in_this_process(steps))
    if options.review_list is not None:
        write_review_list(Path(options.review_list), report)
    if not is_loaded:
        _keep_dataset_json(model, output)
    return report


def predict_cases(
    predictor: Predictor,
    cases: Sequence[RawCase],
    output: Path | str,
    options: PredictionOptions | None = None,
    *,
    from_file: Mapping[str, CasePrompts] | None = None,
) -> dict[str, Any]:
    """`predict_files` for a loaded predictor and cases that have been found.

    Args:
        predictor: with its networks.
        cases: to segment; their labels are not used.
        output: folder to write to; made when missing.
        options: those that concern a loaded predictor, except `prompts` and `review_list`.
        from_file: prompts by case; see `read_case_prompts`.
    """
    options, output = options or PredictionOptions(), Path(output)
    steps = CaseSteps(predictor=predictor, output=output, options=options, from_file=from_file)
    return _predict(steps, cases, {}, _in_this_process(steps))


def predict_iterator(
    predictor: Predictor, images: Iterable[Any], **prompts: Any
) -> Iterator[Prediction]:
    """`Predictor.predict` for one image after the other, the next being read meanwhile.

    Writes no files. A predictor that was loaded without arguments has no perturbed prompts: give
    `load_predictor` `n_perturbations=2` for the prompt consistency that `predict_files` reports.
    The iteration can be left at any image.

    Args:
        predictor: with its networks; its image is replaced.
        images: files, lists of one file per channel, or (array, spacing) as in `set_image`.
        prompts: keywords of `Predictor.predict`, the same for all images; most often
            `auto_prompt` or `labels`.

    Yields:
        A prediction per image, in their order. An error in an image is raised in its place.
    """
    remaining = iter(images)
    warned = False

    def read_next() -> PreparedImage | object:
        nonlocal warned
        if (item := next(remaining, _END)) is _END:
            return _END
        if _is_array(item):
            return predictor.prepare(*item)
        files = _files(item)
        warned = warned or _warn_of_windows(files, predictor.plans.normalizations)
        return predictor.prepare_files(files)[0]

    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(read_next)
        while (image := coming.result()) is not _END:
            coming = reader.submit(read_next)
            predictor.set_prepared(image)
            yield predictor.predict(**prompts)


def _check_options(options: PredictionOptions, predictor: Predictor) -> None:
    """Refuse, once, what the model does not have: labels to post-process, and strategies."""
    labels = predictor.plans.labels
    if unknown := sorted(set(options.postprocessing or ()) - set(labels)):
        raise ValueError(
            f"post-processing of unknown label(s) {', '.join(unknown)}; the model knows "
            f"{', '.join(labels)}; run promptseg_find_best again"
        )
    if options.auto_prompt:
        predictor.proposer.check(options.auto_prompt)
        predictor.proposer.log_choice(options.auto_prompt)


def _find_cases(
    inputs: Path | str, options: PredictionOptions, plans: Plans
) -> tuple[list[RawCase], dict[str, str], dict[str, CasePrompts] | None]:
    """This part's cases, why some of them cannot be read, and the prompts given for all."""
    cases, notes, problems = cases_in_folder(inputs, len(plans.channel_names))
    for note in notes:
        log.info(note)
    from_file, masked = None, set()
    if options.initial is not None:
        masked = cases_with_masks(Path(options.initial), [case.case_id for case in cases])
    if options.prompts is not None:
        from_file = _prompts_for_all(cases, options, plans.labels, masked)
    return cases[options.part :: options.parts], problems, from_file


def _prompts_for_all(
    cases: Sequence[RawCase],
    options: PredictionOptions,
    labels: Mapping[str, Values],
    masked: Collection[str],
) -> dict[str, CasePrompts]:
    """`read_case_prompts`; a case without any prompts gets a problem that says what to do."""
    path, case_ids = Path(options.prompts), [case.case_id for case in cases]
    given = read_case_prompts(
        path,
        case_ids,
        labels,
        background_value=options.background_value,
        images=[path for case in cases for path in case.images],
    )
    have = some(given)
    missing = [case_id for case_id in case_ids if case_id not in given and case_id not in masked]
    if options.auto_prompt and missing:
        log.info("%s: automatic prompts alone for %s", path, some(missing))
        return given
    for case_id in missing:
        problem = (
            f"{path} has no prompts for case {case_id!r}, only for {have}; add some under this "
            f"name, add automatic prompts (--auto-prompt), or take the image out of the folder"
        )
        given[case_id] = CasePrompts(labels={}, problems=(problem,))
    return given


def _in_this_process(steps: CaseSteps) -> Work:
    def work(cases: Sequence[RawCase], done: Done) -> None:
        overlapped(
            cases,
            steps.read,
            steps.segment,
            steps.write,
            done,
            readers=steps.options.readers,
            writers=steps.options.writers,
        )

    return work


def _predict(
    steps: CaseSteps, cases: Sequence[RawCase], problems: Mapping[str, str], work: Work
) -> dict[str, Any]:
    """Segment the cases that are not to be kept, and write the report.

    Args:
        steps: of a case; tell what to predict and where to write.
        cases: all.
        problems: why cases cannot be read at all; these are reported as failed.
        work: segments the remaining cases.

    Raises:
        ValueError: if a segmentation would overwrite an image or a mask to correct.
    """
    output, initial = steps.output, steps.options.initial
    if initial is not None and Path(initial).resolve() == output.resolve():
        raise ValueError(
            f"{output} has the masks to correct (--initial), which would be overwritten; choose "
            f"another output folder"
        )
    images = [path for case in cases for path in case.images]
    resolved = {path.resolve() for path in images}
    for case in cases:
        if (file := target(case, output).resolve()) in resolved:
            raise ValueError(f"{file} is an image to predict; choose another output folder")
    report = Report(output, steps.options, [case.case_id for case in cases])
    _warn_of_windows(images, steps.predictor.plans.normalizations)
    output.mkdir(parents=True, exist_ok=True)
    waiting = []
    for case in cases:
        if report.keeps(case.case_id) and target(case, output).is_file():
            report.keep(case.case_id)
            continue
        target(case, output).unlink(missing_ok=True)
        probabilities_file(output, case.case_id).unlink(missing_ok=True)
        if case.case_id in problems:
            report.add(case.case_id, failure(case, ValueError(problems[case.case_id])))
        else:
            waiting.append(case)
    with progress_bar(total=len(waiting), desc="predicting", unit="case") as bar:

        def done(case: RawCase, entry: dict[str, Any] | None, error: Exception | None) -> None:
            report.add(case.case_id, entry or failure(case, error))
            bar.update()

        try:
            work(waiting, done)
        finally:  # an interrupted run also reports what it did
            content = report.write()
    return content


def _keep_dataset_json(model: ModelFolders, output: Path) -> None:
    """Copy the names of the labels, for the evaluation and for later readers of the folder."""
    with opened_model(model_folders(model)[0], endings=(".json",)) as opened:
        if (source := opened / "dataset.json").is_file():
            with replacing(output / "dataset.json") as temporary:
                temporary.write_bytes(source.read_bytes())


def _is_array(item: Any) -> bool:
    """Whether an item is an array and its spacing."""
    return isinstance(item, Sequence) and len(item) == 2 and isinstance(item[0], np.ndarray)


def _files(item: Any) -> list[Path]:
    """The files of an item, one per channel."""
    files = [item] if isinstance(item, (str, Path)) else item
    if (
        not isinstance(files, Sequence)
        or not files
        or not all(isinstance(file, (str, Path)) for file in files)
    ):
        raise ValueError(
            f"expected an image file, a list of one file per channel, or (array, spacing), found "
            f"{type(item).__name__}"
        )
    return [Path(file) for file in files]


def _warn_of_windows(files: Iterable[Path], normalizations: Sequence[Normalization]) -> bool:
    """Warn if files are windowed but the model was planned on HU; returns whether that is so."""
    windows = windows_in_words(normalizations)
    if concerns := bool(windows) and any(map(is_windowed, files)):
        log.warning(
            "CT in .npz files is windowed to [0, 255] already, but the model was planned on HU: "
            "the images are assumed to be windowed as its plans do (%s). If they are not, expect "
            "poor segmentations; a model trained on converted .npz files avoids the question",
            windows,
        )
    return concerns

"""A folder of images through a predictor: segmentations, the prompts used and a report."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from promptseg.files import replacing
from promptseg.inference.batch.case import CaseSteps, failure, target
from promptseg.inference.batch.dask import connect, predict_on_cluster
from promptseg.inference.batch.report import Report, write_review_list
from promptseg.inference.batch.stages import overlapped
from promptseg.inference.load import opened_model
from promptseg.inference.predictor import Predictor
from promptseg.inference.prepared import warn_of_windows
from promptseg.inference.results import probabilities_file
from promptseg.io.dataset import RawCase, cases_in_folder
from promptseg.prompts.given import CasePrompts
from promptseg.prompts.reading import read_case_prompts
from promptseg.words import some

log = logging.getLogger(__name__)

_Done = Callable[[RawCase, dict[str, Any] | None, Exception | None], None]


def predict_folder(
    predictor: Predictor,
    inputs: Path | str,
    output: Path | str,
    *,
    auto_prompt: str | None = None,
    prompts: Path | str | None = None,
    continue_prediction: bool = False,
    parts: int = 1,
    part: int = 0,
    readers: int = 1,
    writers: int = 1,
    review_list: Path | str | None = None,
    work: Callable[..., None] | None = None,
) -> dict[str, Any]:
    """`predict_files` with networks that are loaded already.

    Args:
        predictor: with its networks.
        work: does the cases in place of this process, called as `predict_on_cluster` is.
        inputs, output and all others: see `predict_files`.
    """
    check_arguments(
        auto_prompt=auto_prompt, prompts=prompts, parts=parts, part=part, review_list=review_list
    )
    output = Path(output)
    if auto_prompt:
        predictor.proposer.check(auto_prompt)  # a wrong name fails here, once
        predictor.proposer.tell(auto_prompt)
    cases, notes, problems = cases_in_folder(inputs, len(predictor.plans.channel_names))
    for note in notes:
        log.info(note)
    from_file = None
    if prompts is not None:
        case_ids = [case.case_id for case in cases]
        from_file = _prompts_for_all(Path(prompts), case_ids, predictor.plans.labels)
    cases = cases[part::parts]
    how = {"output": output, "auto_prompt": auto_prompt, "from_file": from_file}
    if work is None:
        work = _in_this_process(CaseSteps(predictor=predictor, **how), readers, writers)
    else:
        work = partial(work, **how)
    report = Report(
        output,
        auto_prompt,
        [case.case_id for case in cases],
        suffix="" if parts == 1 else f"_part{part}",
        goes_on=continue_prediction,
    )
    content = _predict(predictor, cases, work, output, report, problems)
    if review_list is not None:
        write_review_list(Path(review_list), content)
    return content


def predict_cases(
    predictor: Predictor,
    cases: Sequence[RawCase],
    output: Path | str,
    *,
    auto_prompt: str | None = None,
    from_file: Mapping[str, CasePrompts] | None = None,
    continue_prediction: bool = False,
    readers: int = 1,
    writers: int = 1,
) -> dict[str, Any]:
    """`predict_folder` for a predictor and cases that are there already.

    Args:
        predictor: with its networks.
        cases: to segment; labels are not looked at.
        output: folder to write to; made when missing.
        auto_prompt, continue_prediction, readers, writers: see `predict_files`.
        from_file: prompts by case; see `read_case_prompts`.
    """
    output = Path(output)
    steps = CaseSteps(
        predictor=predictor, output=output, auto_prompt=auto_prompt, from_file=from_file
    )
    case_ids = [case.case_id for case in cases]
    report = Report(output, auto_prompt, case_ids, goes_on=continue_prediction)
    work = _in_this_process(steps, readers, writers)
    return _predict(predictor, cases, work, output, report, {})


def check_arguments(
    *,
    auto_prompt: str | None,
    prompts: Path | str | None,
    parts: int,
    part: int,
    review_list: Path | str | None,
    **_: Any,
) -> None:
    """What is wrong with the arguments by themselves, whatever the model and the images are."""
    if auto_prompt and prompts:
        raise ValueError("give either --auto-prompt or --prompts, not both")
    if parts < 1:
        raise ValueError(f"the work has 1 part or more, got {parts} (-num_parts)")
    if not 0 <= part < parts:
        raise ValueError(f"part must be in 0 to {parts - 1} for {parts} part(s), got {part}")
    if review_list is not None and Path(review_list).is_dir():
        raise ValueError(f"{review_list} is a folder; the review list is a CSV file")


def _prompts_for_all(
    path: Path, case_ids: Sequence[str], labels: Mapping[str, int]
) -> dict[str, CasePrompts]:
    """`read_case_prompts`, and for each case that it has nothing for what to do about it."""
    given = read_case_prompts(path, case_ids, labels)
    have = some(given)
    for case_id in case_ids:
        if case_id not in given:
            problem = (
                f"{path} has no prompts for case {case_id!r}, only for {have}; add some under this "
                f"name, or take the image out of the folder"
            )
            given[case_id] = CasePrompts(labels={}, problems=(problem,))
    return given


def _in_this_process(
    steps: CaseSteps, readers: int, writers: int
) -> Callable[[Sequence[RawCase], _Done], None]:
    def work(cases: Sequence[RawCase], done: _Done) -> None:
        overlapped(
            cases, steps.read, steps.segment, steps.write, done, readers=readers, writers=writers
        )

    return work


def _predict(
    predictor: Predictor,
    cases: Sequence[RawCase],
    work: Callable[[Sequence[RawCase], _Done], None],
    output: Path,
    report: Report,
    problems: Mapping[str, str],
) -> dict[str, Any]:
    """Have the cases done that are not there yet, and write the report.

    Args:
        predictor: of the model.
        cases: all.
        work: does cases and tells a function what came of each.
        output: folder of the segmentations; made when missing.
        report: to go on with.
        problems: for cases that cannot be read as they are, why; they are reported as failed.

    Raises:
        ValueError: if a segmentation would overwrite an image.
    """
    images = {path.resolve() for case in cases for path in case.images}
    for case in cases:
        if (file := target(case, output).resolve()) in images:
            raise ValueError(f"{file} is an image to predict; choose another output folder")
    files = [path for case in cases for path in case.images]
    warn_of_windows(files, predictor.plans.normalizations)
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
    with tqdm(total=len(waiting), desc="predicting", unit="case", dynamic_ncols=True) as bar:

        def done(case: RawCase, entry: dict[str, Any] | None, error: Exception | None) -> None:
            report.add(case.case_id, entry or failure(case, error))
            bar.update()

        try:
            work(waiting, done)
        finally:  # also an interrupted run tells what it did
            content = report.write()
    return content


KEPT_ENCODINGS = 4  # of patches; an image is asked once, and then mostly patch after patch


def predict_files(
    model_folder: Path | str,
    inputs: Path | str,
    output: Path | str,
    *,
    folds: Sequence[str] | None = None,
    auto_prompt: str | None = None,
    prompts: Path | str | None = None,
    checkpoint: str = "checkpoint_final.pth",
    device: str | None = None,
    step_size: float = 0.5,
    tta: bool = True,
    continue_prediction: bool = False,
    parts: int = 1,
    part: int = 0,
    readers: int = 1,
    writers: int = 1,
    dask: str | None = None,
    imports: Sequence[str] = (),
    n_perturbations: int = 2,
    save_probabilities: bool = False,
    review_list: Path | str | None = None,
) -> dict[str, Any]:
    """Segment every case of a folder and write the results beside each other.

    Writes `CASE.nii.gz` (the images' own ending), `prompts_used.json` (can be edited and given
    back as `prompts`), `predict_report.json` and the model's `dataset.json`. A case that fails is
    reported; the others are done. A segmentation of an earlier run is removed before its case is
    predicted anew, so that none is taken for a result of this run.

    Args:
        model_folder: of a trained model, see `Predictor.from_model_folder`.
        inputs: folder of images, DICOM series folder, or one file.
        output: folder to write to.
        folds: networks to average; every trained fold when not given.
        auto_prompt: `plans`, a strategy's name, `coarse` or `hybrid` (see `Proposer`); None asks
            by label names, or by `prompts`.
        prompts: file or folder of prompts, see `read_case_prompts`; a case it has nothing for
            fails. Labels that a case does not list are not segmented.
        checkpoint, device, step_size, tta: see `Predictor.from_model_folder`.
        continue_prediction: keep the segmentations that are there, but those of cases that the
            report calls failed.
        parts, part: do every `parts`-th case only, from number `part` on, so that several
            commands share the work.
        readers, writers: threads that read and prompt the next cases, and write the last ones,
            while the network works; 0 does it in turn. As many cases more are held in memory.
        dask: address of a Dask scheduler, `tcp://HOST:PORT`; its workers do the cases, each with
            a model of its own, and see the same folders. `readers` and `writers` do not count.
        imports: modules that register the user's own classes, for those workers to import.
        n_perturbations: moved copies of each prompt whose answers are compared, see `Predictor`.
        save_probabilities: write `probabilities/CASE.npz` too, see `read_probabilities`.
        review_list: CSV to write, all cases, those that a person should look at first.

    Returns:
        The report: `auto_prompt`, `cases` with `status` `done`, `kept` or `failed` each, and
        `failed`, how many.

    Raises:
        FileNotFoundError, ValueError: if the model, the inputs or the prompts file as a whole
            cannot be used, if `auto_prompt` is unknown, if it and `prompts` are given, if
            `review_list` is a folder, or if a segmentation would overwrite an image.
        ImportError, ConnectionError: if `dask` is given and Dask or the scheduler is not there.
    """
    output, model_folder = Path(output), Path(model_folder)
    asked = {
        "auto_prompt": auto_prompt,
        "prompts": prompts,
        "continue_prediction": continue_prediction,
        "parts": parts,
        "part": part,
        "readers": readers,
        "writers": writers,
        "review_list": review_list,
    }
    check_arguments(**asked)  # before the model is loaded
    options = {
        "folds": folds,
        "checkpoint": checkpoint,
        "device": device,
        "step_size": step_size,
        "tta": tta,
        "most_encodings": KEPT_ENCODINGS,
        "n_perturbations": n_perturbations,
        "keep_probabilities": save_probabilities,
    }
    with connect(dask) if dask else nullcontext() as client:
        if client:  # it runs where the workers are; here may be no GPU
            predictor = Predictor.from_model_folder(model_folder, **{**options, "device": "cpu"})
            asked["work"] = partial(
                predict_on_cluster,
                client,
                model_folder=model_folder,
                model_options=options,
                imports=imports,
            )
        else:
            predictor = Predictor.from_model_folder(model_folder, **options)
        report = predict_folder(predictor, inputs, output, **asked)
    _keep_dataset_json(model_folder, output)
    return report


def _keep_dataset_json(model_folder: Path, output: Path) -> None:
    """The labels' names, for the evaluation and for whoever finds the folder later."""
    with opened_model(model_folder, endings=(".json",)) as opened:
        if (source := opened / "dataset.json").is_file():
            with replacing(output / "dataset.json") as temporary:
                temporary.write_bytes(source.read_bytes())

"""A folder of images through a predictor: segmentations, the prompts used and a report."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from promptseg.inference.case_steps import CaseSteps, failure, target
from promptseg.inference.overlap import overlapped
from promptseg.inference.predictor import Predictor
from promptseg.inference.prepared import warn_of_windows
from promptseg.inference.probabilities import probabilities_file
from promptseg.inference.report import Report
from promptseg.inference.review import write_review_list
from promptseg.prompts.given import CasePrompts
from promptseg.prompts.prompts_file import read_case_prompts
from promptseg.raw_dataset import RawCase, cases_in_folder
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

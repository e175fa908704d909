"""A folder of images to a folder of segmentations, the prompts used and a report."""

from __future__ import annotations

import logging
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from promptseg.files import read_json, replacing, write_json
from promptseg.image_io import WRITABLE_ENDINGS, Geometry, file_ending, read_image, write_image
from promptseg.inference.predictor import Prediction, Predictor
from promptseg.prompts.automatic.base import AUTO_PROMPTERS
from promptseg.prompts.given import CasePrompts
from promptseg.prompts.prompts import Prompts, write_prompts_file
from promptseg.prompts.prompts_file import read_case_prompts
from promptseg.raw_dataset import RawCase, cases_in_folder

log = logging.getLogger(__name__)

SECONDS_BETWEEN_REPORTS = 10.0


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
        auto_prompt: `plans` or a strategy's name; None asks by label names, or by `prompts`.
        prompts: file or folder of prompts, see `read_case_prompts`; a case it has nothing for
            fails. Labels that a case does not list are not segmented.
        checkpoint, device, step_size, tta: see `Predictor.from_model_folder`.
        continue_prediction: keep the segmentations that are there, but those of cases that the
            report calls failed.
        parts, part: do every `parts`-th case only, from number `part` on, so that several
            commands share the work.

    Returns:
        The report: `auto_prompt`, `cases` with `status` `done`, `kept` or `failed` each, and
        `failed`, how many.

    Raises:
        FileNotFoundError, ValueError: if the model, the inputs or the prompts file as a whole
            cannot be used, if `auto_prompt` is unknown, if it and `prompts` are given, or if a
            segmentation would overwrite an image.
    """
    if auto_prompt and prompts:
        raise ValueError("give either --auto-prompt or --prompts, not both")
    if auto_prompt not in (None, "plans"):
        AUTO_PROMPTERS.get(auto_prompt)  # a wrong name fails here, once
    if not 0 <= part < parts:
        raise ValueError(f"part must be in 0 to {parts - 1} for {parts} part(s), got {part}")
    predictor = Predictor.from_model_folder(
        model_folder,
        folds=folds,
        checkpoint=checkpoint,
        device=device,
        step_size=step_size,
        tta=tta,
    )
    cases, notes, problems = cases_in_folder(inputs, len(predictor.plans.channel_names))
    for note in notes:
        log.info(note)
    from_file = None
    if prompts is not None:
        case_ids = [case.case_id for case in cases]
        from_file = read_case_prompts(prompts, case_ids, predictor.plans.labels)
    suffix = "" if parts == 1 else f"_part{part}"
    report = predict_cases(
        predictor,
        cases[part::parts],
        output,
        auto_prompt=auto_prompt,
        from_file=from_file,
        continue_prediction=continue_prediction,
        suffix=suffix,
        problems=problems,
    )
    _keep_dataset_json(Path(model_folder), Path(output))
    return report


def predict_cases(
    predictor: Predictor,
    cases: Sequence[RawCase],
    output: Path | str,
    *,
    auto_prompt: str | None = None,
    from_file: Mapping[str, CasePrompts] | None = None,
    continue_prediction: bool = False,
    suffix: str = "",
    problems: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """`predict_files` for a predictor and cases that are there already.

    Args:
        predictor: with its networks.
        cases: to segment; labels are not looked at.
        output: folder to write to; made when missing.
        auto_prompt, continue_prediction: see `predict_files`.
        from_file: prompts by case; see `read_case_prompts`.
        suffix: of the report's and the prompts file's names.
        problems: for cases that cannot be read as they are, why; they are reported as failed.
    """
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    report_file = output / f"predict_report{suffix}.json"
    prompts_file = output / f"prompts_used{suffix}.json"
    entries = {}
    if continue_prediction and report_file.is_file():
        entries = read_json(report_file)["cases"]
    failed = {case_id for case_id, entry in entries.items() if entry["status"] == "failed"}
    kept = {
        case.case_id
        for case in cases
        if continue_prediction and case.case_id not in failed and target(case, output).is_file()
    }
    run = _Run(predictor, output, from_file, auto_prompt, kept, problems or {})
    images = {path.resolve() for case in cases for path in case.images}
    for case in cases:
        if (file := target(case, output).resolve()) in images:
            raise ValueError(f"{file} is an image to predict; choose another output folder")
    written = time.monotonic()
    try:
        for case_id, entry in run.all(cases):
            if entry["status"] != "kept" or case_id not in entries:
                entries[case_id] = entry
            if time.monotonic() - written > SECONDS_BETWEEN_REPORTS:
                _write_reports(report_file, prompts_file, auto_prompt, entries)
                written = time.monotonic()
    finally:  # also an interrupted run tells what it did
        report = _write_reports(report_file, prompts_file, auto_prompt, entries)
    return report


def _write_reports(
    report_file: Path,
    prompts_file: Path,
    auto_prompt: str | None,
    entries: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Write the report and, taken from it, the prompts in the form that is read back."""
    entries = dict(sorted(entries.items()))
    fields = ("boxes", "points", "point_labels", "source", "score", "reason")
    used = {
        case_id: {
            label: {name: result[name] for name in fields}
            for label, result in entry["labels"].items()
        }
        for case_id, entry in entries.items()
        if "labels" in entry
    }
    report = {
        "auto_prompt": auto_prompt,
        "failed": sum(entry["status"] == "failed" for entry in entries.values()),
        "cases": entries,
    }
    write_json(report_file, report)
    write_prompts_file(prompts_file, used)
    return report


class _Run:
    """One pass over cases; reading the next and writing the last overlap with the network."""

    def __init__(
        self,
        predictor: Predictor,
        output: Path,
        from_file: Mapping[str, CasePrompts] | None,
        auto_prompt: str | None,
        kept: Container[str],
        problems: Mapping[str, str],
    ) -> None:
        self.predictor = predictor
        self.output = output
        self.from_file = from_file
        self.auto_prompt = auto_prompt
        self.kept = kept
        self.problems = problems

    def all(self, cases: Sequence[RawCase]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield case identifier and report entry, case by case."""
        waiting = []
        for case in cases:
            if case.case_id in self.kept:
                yield case.case_id, {"status": "kept"}
                continue
            target(case, self.output).unlink(missing_ok=True)
            if case.case_id in self.problems:
                yield case.case_id, _failure(case, ValueError(self.problems[case.case_id]))
            else:
                waiting.append(case)
        bar = tqdm(total=len(waiting), desc="predicting", unit="case", dynamic_ncols=True)
        with bar, ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
            coming = reader.submit(read_image, waiting[0].images) if waiting else None
            writing: list[tuple[RawCase, Any, Prediction]] = []
            for number, case in enumerate(waiting):
                current, coming = coming, None
                if number + 1 < len(waiting):
                    coming = reader.submit(read_image, waiting[number + 1].images)
                if len(writing) > 1:  # bounds the masks waiting to be written
                    yield self._written(*writing.pop(0))
                try:
                    image, geometry = current.result()
                    prediction = self._predict(case, image, geometry)
                except Exception as error:
                    yield case.case_id, _failure(case, error)
                else:
                    job = writer.submit(
                        write_image, target(case, self.output), prediction.segmentation, geometry
                    )
                    writing.append((case, job, prediction))
                bar.update()
            for item in writing:
                yield self._written(*item)

    def _predict(self, case: RawCase, image: np.ndarray, geometry: Geometry) -> Prediction:
        self.predictor.set_image(image, geometry.spacing)
        labels = list(self.predictor.plans.labels)
        given: dict[str, Prompts] = {}
        if self.from_file is not None:
            if case.case_id not in self.from_file:
                raise ValueError("the prompts file has nothing for this case")
            given = self.from_file[case.case_id].on(geometry)
            labels = list(given)
        return self.predictor.predict_prompts(given, labels=labels, auto_prompt=self.auto_prompt)

    def _written(
        self, case: RawCase, job: Any, prediction: Prediction
    ) -> tuple[str, dict[str, Any]]:
        try:
            job.result()
        except Exception as error:
            return case.case_id, _failure(case, error)
        entry = {
            "status": "done",
            "images": [str(path) for path in case.images],
            "prediction": str(target(case, self.output)),
            "labels": {name: result.to_json() for name, result in prediction.labels.items()},
        }
        return case.case_id, entry


def target(case: RawCase, output: Path) -> Path:
    """The file that a case's segmentation is written to."""
    ending = file_ending(case.images[0])
    return output / f"{case.case_id}{ending if ending in WRITABLE_ENDINGS else '.nii.gz'}"


def _failure(case: RawCase, error: Exception) -> dict[str, Any]:
    message = str(error) or type(error).__name__
    log.error("case %s failed: %s", case.case_id, message)
    return {"status": "failed", "images": [str(p) for p in case.images], "error": message}


def _keep_dataset_json(model_folder: Path, output: Path) -> None:
    """The labels' names, for the evaluation and for whoever finds the folder later."""
    source = model_folder / "dataset.json"
    if source.is_file():
        with replacing(output / "dataset.json") as temporary:
            temporary.write_bytes(source.read_bytes())

"""What is done with one case: read and prompt it, segment it, write it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptseg.inference.predictor import Predictor
from promptseg.inference.prepared import PreparedImage, read_prepared
from promptseg.inference.results import Prediction, probabilities_file, write_probabilities
from promptseg.io.dataset import RawCase
from promptseg.io.images import SEGMENTATION_ENDINGS, Geometry, file_ending, write_image
from promptseg.prompts.given import CasePrompts
from promptseg.prompts.types import Prompts
from promptseg.words import some

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ReadCase:
    """A case's image, the labels to segment and what prompts there are for them."""

    image: PreparedImage
    geometry: Geometry
    labels: list[str]
    prompts: dict[str, Prompts]


@dataclass(frozen=True, kw_only=True)
class CaseSteps:
    """The steps of a case, to be called one after the other or beside those of other cases.

    Attributes:
        predictor: with its networks; `segment` sets its image.
        output: folder to write to.
        auto_prompt: `plans` or a strategy's name; None asks by label names, or by `from_file`.
        from_file: prompts by case, see `read_case_prompts`; None when no file gives any.
    """

    predictor: Predictor
    output: Path
    auto_prompt: str | None = None
    from_file: Mapping[str, CasePrompts] | None = None

    def read(self, case: RawCase) -> ReadCase:
        """Read a case and find its prompts; safe to call in several threads.

        Raises:
            FileNotFoundError, ValueError: naming the files or the prompts that are wrong.
        """
        prepared, geometry = read_prepared(self.predictor, case.images)
        labels, prompts = list(self.predictor.plans.labels), {}
        if self.from_file is not None:
            prompts = prompts_of_case(self.from_file, case.case_id, geometry)
            labels = list(prompts)
        elif self.auto_prompt:
            prompts = self.predictor.proposer.propose(prepared, labels, self.auto_prompt)
        return ReadCase(image=prepared, geometry=geometry, labels=labels, prompts=prompts)

    def segment(self, case: RawCase, read: ReadCase) -> tuple[Prediction, Geometry]:
        """Segment a case; one at a time."""
        predictor, prompts = self.predictor, read.prompts
        predictor.set_prepared(read.image)
        if self.auto_prompt:
            own = predictor.proposer.ask_network(read.image, read.labels, self.auto_prompt, prompts)
            prompts = {**prompts, **own}
        return predictor.predict_prompts(prompts, labels=read.labels), read.geometry

    def write(self, case: RawCase, segmented: tuple[Prediction, Geometry]) -> dict[str, Any]:
        """Write all files of a case, each atomically; returns its entry of the report."""
        prediction, geometry = segmented
        file = target(case, self.output)
        if prediction.probabilities is not None:  # first: a segmentation says that a case is done
            write_probabilities(
                probabilities_file(self.output, case.case_id),
                prediction.probabilities,
                list(prediction.labels),
                prediction.segmentation.shape,
            )
        write_image(file, prediction.segmentation, geometry)
        return {
            "status": "done",
            "images": [str(path) for path in case.images],
            "prediction": str(file),
            "labels": {name: result.to_json() for name, result in prediction.labels.items()},
        }

    def all(self, case: RawCase) -> dict[str, Any]:
        """The three steps one after the other."""
        return self.write(case, self.segment(case, self.read(case)))


def prompts_of_case(
    from_file: Mapping[str, CasePrompts], case_id: str, geometry: Geometry
) -> dict[str, Prompts]:
    """Prompts by label that files have for a case, in the voxels of its image.

    Raises:
        ValueError: if there are none for this case, or if they are wrong.
    """
    if case_id not in from_file:
        raise ValueError(
            f"case {case_id!r}: no prompts were given for it, only for {some(from_file)}; "
            f"give some, or leave the case out"
        )
    return from_file[case_id].on(geometry)


def target(case: RawCase, output: Path) -> Path:
    """The file that a case's segmentation is written to."""
    ending = file_ending(case.images[0])
    return output / f"{case.case_id}{ending if ending in SEGMENTATION_ENDINGS else '.nii.gz'}"


def failure(case: RawCase, error: BaseException) -> dict[str, Any]:
    """The report's entry of a case that could not be done."""
    message = str(error) or type(error).__name__
    log.error("case %s failed: %s", case.case_id, message)
    return {"status": "failed", "images": [str(p) for p in case.images], "error": message}

"""A model for many cases, and the steps of each: read and prompt it, segment it, write it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from promptseg.inference.decoder import PreparedImage
from promptseg.inference.load import ModelFolders, load_predictor
from promptseg.inference.options import PredictionOptions
from promptseg.inference.predictor import Predictor
from promptseg.inference.results import (
    Prediction,
    postprocessed_prediction,
    probabilities_file,
    write_probabilities,
)
from promptseg.io.dataset import RawCase
from promptseg.io.images import SEGMENTATION_ENDINGS, Geometry, file_ending, write_image
from promptseg.prompts.given import CasePrompts
from promptseg.prompts.label_maps import mask_file, read_masks
from promptseg.prompts.names import object_number
from promptseg.prompts.types import Prompts, joined, make_prompts
from promptseg.words import some

log = logging.getLogger(__name__)

KEPT_ENCODINGS = 4  # of patches; an image is segmented once, mostly patch after patch

# Called with the outcome of a case: its report entry and None, or None and the exception.
Done = Callable[[RawCase, dict[str, Any] | None, Exception | None], None]


def load_for_files(model: ModelFolders, options: PredictionOptions) -> Predictor:
    """Load a model folder or zip file, or an ensemble of them, as options ask for."""
    return load_predictor(
        model,
        folds=options.folds,
        checkpoint=options.checkpoint,
        device=options.device,
        step_size=options.step_size,
        tta=options.tta,
        most_encodings=KEPT_ENCODINGS,
        n_perturbations=options.n_perturbations,
        keep_probabilities=options.save_probabilities,
    )


@dataclass(frozen=True, kw_only=True)
class ReadCase:
    """A case that is ready to be segmented.

    Attributes:
        image: of the case.
        geometry: of the image file, for the segmentation.
        labels: to segment.
        prompts: by label, in raw voxels; labels without an entry have none.
        automatic: those of the labels that a person gave nothing for, where automatic prompts
            were asked for.
    """

    image: PreparedImage
    geometry: Geometry
    labels: list[str]
    prompts: dict[str, Prompts]
    automatic: list[str]

    def is_prompted_by_person(self, label: str) -> bool:
        """Whether a person gave prompts for a label."""
        prompted = label in self.prompts and not self.prompts[label].is_empty
        return prompted and label not in self.automatic


@dataclass(frozen=True, kw_only=True)
class CaseSteps:
    """The steps of a case, to be called in turn or while other cases are at other steps.

    Attributes:
        predictor: with its networks; `segment` sets its image.
        output: folder to write to.
        options: of the run.
        from_file: prompts by case, see `read_case_prompts`; None without such a file.
    """

    predictor: Predictor
    output: Path
    options: PredictionOptions
    from_file: Mapping[str, CasePrompts] | None = None

    def read(self, case: RawCase) -> ReadCase:
        """Read a case and find its prompts; safe to call in several threads.

        Raises:
            FileNotFoundError, ValueError: naming the files or the prompts that are wrong.
        """
        prepared, geometry = self.predictor.prepare_files(case.images)
        prompts = self._given(case.case_id, geometry)
        labels, automatic = list(self.predictor.plans.labels), []
        if strategy := self.options.auto_prompt:
            automatic = [name for name in labels if name not in prompts or prompts[name].is_empty]
            labels += [name for name in prompts if name not in labels]
            prompts |= self.predictor.proposer.propose(prepared, automatic, strategy)
        elif prompts or self.from_file is not None:
            labels = list(prompts)
        return ReadCase(
            image=prepared, geometry=geometry, labels=labels, prompts=prompts, automatic=automatic
        )

    def segment(self, case: RawCase, read: ReadCase) -> tuple[Prediction, Geometry]:
        """Segment a case; one at a time."""
        predictor, prompts = self.predictor, read.prompts
        if read.image.unlike:
            log.warning(
                "case %s does not look like the training images: it has %s (in brackets theirs); "
                "look at the result",
                case.case_id,
                "; ".join(read.image.unlike),
            )
        predictor.set_prepared(read.image)
        if read.automatic:
            own = predictor.proposer.ask_network(
                read.image, read.automatic, self.options.auto_prompt, prompts
            )
            prompts = {**prompts, **own}
        prediction = predictor.predict_prompts(prompts, labels=read.labels)
        steps = {
            label: of_label
            for label, of_label in (self.options.postprocessing or {}).items()
            if label in read.labels and not read.is_prompted_by_person(label)
        }
        plans, geometry = predictor.plans, read.geometry
        return postprocessed_prediction(prediction, plans, geometry.spacing, steps), geometry

    def write(self, case: RawCase, segmented: tuple[Prediction, Geometry]) -> dict[str, Any]:
        """Write all files of a case, each atomically; returns its report entry."""
        prediction, geometry = segmented
        file = target(case, self.output)
        if prediction.probabilities is not None:  # first: a segmentation marks its case as done
            write_probabilities(
                probabilities_file(self.output, case.case_id),
                prediction.probabilities,
                list(prediction.labels),
                prediction.segmentation.shape,
            )
        write_image(file, prediction.segmentation, geometry, like=Path(case.images[0]))
        initial = {}
        if self.options.initial is not None:
            corrected = mask_file(Path(self.options.initial), case.case_id)
            initial = {"initial": None if corrected is None else str(corrected)}
        return {
            "status": "done",
            "images": [str(path) for path in case.images],
            **initial,
            **({"not_like_training": list(prediction.unlike)} if prediction.unlike else {}),
            "prediction": str(file),
            "labels": {name: result.to_json() for name, result in prediction.labels.items()},
        }

    def all(self, case: RawCase) -> dict[str, Any]:
        """The three steps one after the other."""
        return self.write(case, self.segment(case, self.read(case)))

    def _given(self, case_id: str, geometry: Geometry) -> dict[str, Prompts]:
        """What a person gave for a case, by label, in voxels of its image.

        Raises:
            ValueError: if it is wrong; or, without automatic prompts, if prompts were given for
                other cases only.
        """
        given, masks = {}, self._masks(case_id, geometry)
        if self.from_file is not None and case_id in self.from_file:
            given = self.from_file[case_id].on(geometry)
        if not given and self.from_file is not None and not masks and not self.options.auto_prompt:
            others = [name for name in self.from_file if name != case_id]
            raise ValueError(
                f"case {case_id!r}: no prompts were given for it"
                f"{', only for ' + some(others) if others else ''}; give some, add automatic "
                f"prompts (--auto-prompt), or leave the case out"
            )
        known = self.predictor.plans.labels
        for name, mask in masks.items():
            label = name if name in known else _same_object(name, set(given) - set(known))
            own = make_prompts(mask=mask, shape=geometry.shape, source="file")
            given[label] = joined([given[label], own]) if label in given else own
        return given

    def _masks(self, case_id: str, geometry: Geometry) -> dict[str, np.ndarray]:
        """The masks to correct of a case by label; none where the folder has none."""
        if self.options.initial is None:
            return {}
        folder = Path(self.options.initial)
        if (file := mask_file(folder, case_id)) is None:
            log.warning("case %s: no mask to correct in %s; predicted without", case_id, folder)
            return {}
        return read_masks(file, self.predictor.plans.labels, geometry, case_id)


def _same_object(name: str, given: Iterable[str]) -> str:
    """The one of the given unnamed objects that has the same number; else the name itself."""
    number = object_number(name)
    return next((label for label in sorted(given) if object_number(label) == number), name)


def target(case: RawCase, output: Path) -> Path:
    """The file that a case's segmentation is written to."""
    ending = file_ending(case.images[0])
    return output / f"{case.case_id}{ending if ending in SEGMENTATION_ENDINGS else '.nii.gz'}"


def failure(case: RawCase, error: BaseException) -> dict[str, Any]:
    """The report entry of a case that failed."""
    message = str(error) or type(error).__name__
    log.error("case %s failed: %s", case.case_id, message)
    return {"status": "failed", "images": [str(p) for p in case.images], "error": message}

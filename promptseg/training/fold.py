"""The cases of one fold of a planned dataset, with all that planning says about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from promptseg.files import read_json
from promptseg.plans import Plans, load_plans, locator_digest, locator_file
from promptseg.preprocessing.dataset import PreprocessedDataset
from promptseg.training.patches import AutoBoxes
from promptseg.training.splits import cases_of_fold


@dataclass(frozen=True, kw_only=True)
class Fold:
    """What a trainer is given of a dataset.

    Attributes:
        name: `0`, `1`, ..., or `all`.
        source: folder of the preprocessed dataset.
        plans: plans of the dataset.
        training_cases, validation_cases: case identifiers; no case validates in the fold `all`.
        auto_boxes: for each case the automatic boxes of fits that did not see it, in raw voxels.
        locator: file of the networks of that automatic prompt; None if planning trained none.
    """

    name: str
    source: Path
    plans: Plans
    training_cases: Sequence[str]
    validation_cases: Sequence[str]
    auto_boxes: AutoBoxes
    locator: Path | None = None

    @property
    def preprocessed(self) -> Path:
        """Folder of the cases as these plans preprocess them."""
        return self.source / self.plans.data_identifier

    @property
    def ground_truth(self) -> Path:
        """Folder of the cases' segmentations on their raw voxels."""
        return self.source / "gt_segmentations"


def load_fold(source: Path, plans_name: str, name: str, group_regex: str | None = None) -> Fold:
    """Read plans, cases and automatic boxes of a fold; `splits_final.json` is made if missing.

    Args:
        source: folder of a preprocessed dataset.
        plans_name: as given to `plan_dataset`.
        name: `0`, `1`, ..., or `all`: every case trains, none validates.
        group_regex: finds the patient in a case identifier, see `groups_by_regex`; takes the place
            of `groups` in dataset.json.

    Raises:
        FileNotFoundError: if the dataset was not planned under this name.
        ValueError: as `cases_of_fold` does, and for plans that cannot be read.
    """
    plans = load_plans(source / f"{plans_name}.json")
    case_ids = PreprocessedDataset(source / plans.data_identifier).case_ids
    training_cases, validation_cases = cases_of_fold(source, name, case_ids, group_regex)
    return Fold(
        name=name,
        source=source,
        plans=plans,
        training_cases=training_cases,
        validation_cases=validation_cases,
        auto_boxes=read_json(source / f"{plans_name}_auto_prompt_boxes.json"),
        locator=_locator(source, plans_name, plans),
    )


def _locator(source: Path, plans_name: str, plans: Plans) -> Path | None:
    if locator_digest(plans) is None:
        return None
    path = locator_file(source, plans_name)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file, which planning wrote beside the plans; copy it there, or run "
            f"promptseg_plan again"
        )
    return path

"""What tests of training share."""

from __future__ import annotations

import pytest

from promptseg.files import read_json
from promptseg.plans import load_plans


@pytest.fixture
def planned_case(planned):
    folder = planned.preprocessed / "Dataset007_Boxes"
    plans = load_plans(folder / "PromptSegPlans.json")
    auto_boxes = read_json(folder / "PromptSegPlans_auto_prompt_boxes.json")
    return folder / plans.data_identifier, plans, auto_boxes

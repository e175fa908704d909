"""Reason codes of a label, each by the value that just gives it and the one that just does not."""

from __future__ import annotations

import pytest

from promptseg.inference.results import label_result
from promptseg.prompts.types import make_prompts

SHAPE = (10, 4, 5)
BOX = [[0, 0, 0], [5, 4, 5]]


def flags(predicted_iou=0.9, voxels=7, prompt_consistency=None, **prompts):
    prompts = make_prompts(shape=SHAPE, **prompts)
    return label_result(prompts, predicted_iou, voxels, SHAPE, prompt_consistency).flags


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"boxes": BOX}, ()),
        ({"boxes": [[0, 0, 0], [9, 4, 5]]}, ("box_is_whole_volume",)),  # 0.9 of it
        ({"boxes": [[0, 0, 0], [8.9, 4, 5]]}, ()),
        ({"boxes": [BOX, [[0, 0, 0], SHAPE]]}, ("box_is_whole_volume",)),
        ({}, ("no_box",)),
        ({"reason": "nothing_found"}, ("nothing_found", "no_box")),
        ({"reason": "no_box"}, ("no_box",)),  # once
        ({"points": [[1, 2, 3]]}, ()),  # a person's points need no box
        ({"points": [[1, 2, 3]], "boxes": BOX}, ()),
        ({"boxes": BOX, "predicted_iou": 0.499}, ("low_predicted_quality",)),
        ({"boxes": BOX, "predicted_iou": 0.5}, ()),
        ({"boxes": BOX, "predicted_iou": None, "voxels": 0}, ("empty",)),
        ({"boxes": BOX, "prompt_consistency": 0.699}, ("disagreement",)),
        ({"boxes": BOX, "prompt_consistency": 0.7}, ()),
        ({"boxes": BOX, "voxels": 0}, ("empty",)),
        (
            {
                "predicted_iou": 0.1,
                "voxels": 0,
                "prompt_consistency": 0.0,
                "reason": "not_found_by_name",
            },
            ("not_found_by_name", "no_box", "low_predicted_quality", "disagreement", "empty"),
        ),
    ],
)
def test_each_code_has_its_reason(arguments, expected):
    assert flags(**arguments) == expected


def test_the_report_has_prompts_and_quality():
    prompts = make_prompts(shape=SHAPE, boxes=BOX, source="coarse", score=0.5)
    assert label_result(prompts, 0.75, 12, SHAPE, 0.875).to_json() == {
        "boxes": [BOX],
        "points": [],
        "point_labels": [],
        "source": "coarse",
        "score": 0.5,
        "reason": "ok",
        "predicted_iou": 0.75,
        "prompt_consistency": 0.875,
        "voxels": 12,
        "flags": [],
    }

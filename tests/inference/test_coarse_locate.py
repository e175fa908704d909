"""The regions of queries, with coarse answers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from promptseg.inference.coarse import boxes_in_whole, locate
from promptseg.networks.prompt_encoder import Query

SHAPE, PATCH_SIZE = (24, 48, 48), (8, 12, 16)  # a coarse voxel is 3x4x3 voxels


def answering(*boxes):
    """The coarse answer to each query: a box in coarse voxels, or None for an empty mask."""

    def in_whole(queries):
        logits = torch.full((len(queries), *PATCH_SIZE), -5.0)
        for answer, box in zip(logits, boxes, strict=True):
            if box is not None:
                (z0, y0, x0), (z1, y1, x1) = box
                answer[z0:z1, y0:y1, x0:x1] = 5.0
        return logits, torch.arange(float(len(queries)))

    return in_whole


def clicks(*points, kinds=None) -> Query:
    return Query(label=0, points=np.array(points, float), point_labels=kinds or [1] * len(points))


def test_a_coarse_box_becomes_the_prompt_and_a_coarse_voxel_more_the_region():
    boxed = Query(label=1, box=np.array([[1.0, 2, 3], [4, 6, 9]]))
    coarse = [[2, 3, 4], [4, 5, 6]]
    first, second, third = locate(
        [Query(label=0), boxed, Query(label=2)], SHAPE, PATCH_SIZE, answering(coarse, None)
    )
    np.testing.assert_array_equal(first[0].box, [[6, 12, 12], [12, 20, 18]])
    np.testing.assert_array_equal(first[1], [[3, 8, 9], [15, 24, 21]])
    assert second[0] is boxed and third is None


def test_a_click_where_the_coarse_answer_is_empty_is_looked_for_round_the_click():
    (query, region), nothing = locate(
        [clicks([20, 30, 47]), clicks([20, 30, 47], kinds=[0])],
        SHAPE,
        PATCH_SIZE,
        answering(None, None),
    )
    assert query.box is None and nothing is None  # a background point says nowhere
    np.testing.assert_array_equal(region, [[17, 26, 44], [24, 35, 48]])


@pytest.mark.parametrize(
    ("points", "kinds", "expected"),
    [
        ([[20, 30, 40]], [1], [[6, 12, 12], [21, 31, 41]]),
        ([[20, 30, 40]], [0], [[6, 12, 12], [12, 20, 18]]),
        ([[7, 13, 13]], [1], [[6, 12, 12], [12, 20, 18]]),
        ([[-0.3, 13, 13], [7, 13, 47.2]], [1, 1], [[0, 12, 12], [12, 20, 48]]),
    ],
)
def test_a_coarse_box_is_enlarged_to_the_clicked_voxels(points, kinds, expected):
    [(query, region)] = locate(
        [clicks(*points, kinds=kinds)], SHAPE, PATCH_SIZE, answering([[2, 3, 4], [4, 5, 6]])
    )
    np.testing.assert_array_equal(query.box, expected)
    assert (region[0] <= query.box[0]).all() and (query.box[1] <= region[1]).all()


def test_few_answers_about_the_whole_are_held_at_once():
    asked = []

    def in_whole(queries):
        asked.append(len(queries))
        logits = torch.full((len(queries), *PATCH_SIZE), -1.0)
        for answer, query in zip(logits, queries, strict=True):
            answer[query.label % 8, 3, 4] = 1.0 if query.label != 9 else -1.0
        return logits, torch.tensor([query.label / 100 for query in queries])

    found = boxes_in_whole([Query(label=label) for label in range(20)], in_whole)
    assert asked == [8, 8, 4]
    for label, (box, iou) in enumerate(found):
        assert iou == pytest.approx(label / 100)
        if label == 9:
            assert box is None
        else:
            assert box.tolist() == [[label % 8, 3, 4], [label % 8 + 1, 4, 5]]
    assert boxes_in_whole([], in_whole) == []


def test_nothing_is_asked_of_the_whole_when_it_fits_a_patch_or_every_query_has_a_box():
    boxed = Query(label=1, box=np.array([[1.0, 2, 3], [4, 6, 9]]))
    assert len(locate([boxed], SHAPE, PATCH_SIZE, in_whole=None)) == 1
    [(query, region)] = locate([clicks([1, 2, 3])], (5, 12, 9), PATCH_SIZE, in_whole=None)
    assert query.box is None
    np.testing.assert_array_equal(region, [[0, 0, 0], [5, 12, 9]])

import itertools

import numpy as np
import pytest

from promptseg.prompts.strategies.fitted import view_of
from promptseg.prompts.strategies.likelihood import LikelihoodPrompter, box_sums, densest_box
from tests.prompts.strategies.fitted_cases import SPACING, block_case, block_cases


def box_total(values, box):
    return values[tuple(slice(a, b) for a, b in np.transpose(box))].sum()


def every_interval(n):
    return [(a, b) for a in range(n) for b in range(a + 1, n + 1)]


def test_the_densest_box_is_the_best_of_all_boxes_round_a_block():
    rng = np.random.default_rng(3)
    values = rng.uniform(0, 0.3, (5, 6, 7))
    values[1:4, 2:5, 3:6] += 0.6
    box = densest_box(box_sums(values), 0.4)
    best = max(
        box_total(values - 0.4, np.transpose(axes))
        for axes in itertools.product(*(every_interval(n) for n in values.shape))
    )
    assert box_total(values - 0.4, box) == pytest.approx(best)


@pytest.mark.parametrize("seed", range(8))
def test_no_interval_along_one_axis_beats_the_densest_box(seed):
    values = np.random.default_rng(seed).normal(size=(6, 9, 5))
    box = densest_box(box_sums(values), 0.1, rounds=50)
    reached = box_total(values - 0.1, box)
    for axis in range(3):
        for interval in every_interval(values.shape[axis]):
            other = box.copy()
            other[:, axis] = interval
            assert box_total(values - 0.1, other) <= reached + 1e-9


def test_moving_a_bright_block_moves_the_box_with_it():
    samples = [case.sample("block") for case in block_cases(12)]
    prompter = LikelihoodPrompter(**LikelihoodPrompter.fit(samples))
    image = np.full((20, 36, 28), 60.0)
    boxes = []
    for shift in (0, 2):
        moved = image.copy()
        moved[6 + shift : 14 + shift, 14:26, 9:19] = 200
        boxes.append(prompter.propose(view_of(moved, SPACING)).box)
    np.testing.assert_allclose(boxes[1] - boxes[0], [[2, 0, 0], [2, 0, 0]], atol=1)


def test_dark_labels_are_found_as_well_as_bright_ones():
    samples = [case.sample("block") for case in block_cases(12, bright=5)]
    prompter = LikelihoodPrompter(**LikelihoodPrompter.fit(samples))
    unseen = block_case(70, bright=5)
    np.testing.assert_allclose(
        prompter.propose(unseen.view).box, unseen.truths["block"].box, atol=3
    )

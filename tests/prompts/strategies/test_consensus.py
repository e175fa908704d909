import numpy as np
import pytest

from promptseg.experiment_planning.auto_prompt_fit import fit_labels
from promptseg.prompts.automatic import propose_boxes
from promptseg.prompts.strategies import AUTO_PROMPTERS
from promptseg.prompts.strategies.consensus import ConsensusPrompter
from tests.prompts.strategies.fitted_cases import AS_IT_IS, SPACING, block_case, block_cases


def test_each_face_is_the_median_of_the_members():
    boxes = np.random.default_rng(6).uniform(0, 50, (3, 2, 3))
    np.testing.assert_array_equal(ConsensusPrompter.combine(list(boxes)), np.median(boxes, 0))


def test_members_that_find_nothing_are_left_out():
    box, larger = np.array([[1, 2, 3], [4, 5, 6]]), np.array([[2, 2, 2], [9, 9, 9]])
    np.testing.assert_array_equal(ConsensusPrompter.combine([None, box, None]), box)
    np.testing.assert_array_equal(
        ConsensusPrompter.combine([box, None, larger]), [[1, 2, 2], [4, 5, 6]]
    )
    assert ConsensusPrompter.combine([None, None, None]) is None


@pytest.mark.parametrize("found", [2, 3])
def test_the_median_is_the_same_before_and_after_rounding(found):
    boxes = np.random.default_rng(8).uniform(0, 50, (found, 2, 3))
    np.testing.assert_array_equal(
        np.rint(ConsensusPrompter.combine(list(boxes))),
        ConsensusPrompter.combine(list(np.rint(boxes))),
    )


def test_the_planner_combines_what_fitting_the_consensus_itself_gives():
    cases = block_cases(10, unfitted=("intensity",))
    planned = fit_labels(cases, ["block"]).labels["block"]
    parameters = ConsensusPrompter.fit([case.sample("block") for case in cases])
    assert planned["candidates"]["consensus"]["parameters"] == parameters
    view = block_case(77).view
    alone = [AUTO_PROMPTERS.get(n)(**p).propose(view).box for n, p in parameters["members"].items()]
    np.testing.assert_array_equal(
        ConsensusPrompter(**parameters).propose(view).box, np.median(alone, axis=0)
    )


def test_it_can_be_forced():
    plans = fit_labels(block_cases(10, unfitted=("intensity",)), ["block"]).labels
    image = np.random.default_rng(9).normal(60, 12, (1, 20, 36, 28)).clip(0, 255)
    image[0, 5:13, 15:27, 8:18] = 200
    proposals = propose_boxes(
        image, SPACING, auto_prompts=plans, normalizations=(AS_IT_IS,), strategy="consensus"
    )
    np.testing.assert_allclose(proposals["block"].box, [[5, 15, 8], [13, 27, 18]], atol=2)

import numpy as np
import pytest
from scipy import ndimage

from promptseg.prompts.strategies.fitted import view_of
from promptseg.prompts.strategies.fitted_intensity import (
    BANDS,
    RULES,
    FittedIntensityPrompter,
    component_boxes,
)
from tests.prompts.strategies.fitted_cases import SPACING, block_case, block_cases


@pytest.mark.parametrize("seed", range(6))
def test_component_boxes_agree_with_scipy(seed):
    rng = np.random.default_rng(seed)
    mask = ndimage.gaussian_filter(rng.normal(size=(13, 22, 17)), 1.2) > 0.12
    view = view_of(np.zeros(mask.shape, np.float32), SPACING)
    labels, n = ndimage.label(mask, np.ones((3, 3, 3)))
    sizes = np.bincount(labels.ravel())[1:]
    objects = ndimage.find_objects(labels)
    centres = np.array(ndimage.center_of_mass(mask, labels, range(1, n + 1)))
    near = np.exp(-0.5 * (((centres / mask.shape - 0.5) / 0.25) ** 2).sum(1))
    for rule, chosen in (("largest", sizes.argmax()), ("central", (sizes * near).argmax())):
        expected = np.array([[s.start, s.stop] for s in objects[chosen]]).T * SPACING
        found = component_boxes(mask, view)[RULES.index(rule)]
        np.testing.assert_allclose(found, expected)


def test_an_empty_band_has_no_box_and_a_reason():
    view = view_of(np.zeros((6, 8, 9), np.float32), SPACING)
    assert np.isnan(component_boxes(np.zeros((6, 8, 9), bool), view)).all()
    described = FittedIntensityPrompter.describe(view)
    assert described.shape == (len(BANDS), len(RULES), 2, 3)
    one = np.ones((2, 3)).tolist()
    prompter = FittedIntensityPrompter(
        band=["deviations", 5.0, None], rule="largest", usual=one, weight=one, shift_mm=one
    )
    assert prompter.propose(view).reason == "nothing_found"


@pytest.mark.parametrize("bright", [5.0, 200.0])
def test_bright_and_dark_blocks_are_met_face_by_face(bright):
    samples = [case.sample("block") for case in block_cases(12, bright=bright)]
    parameters = FittedIntensityPrompter.fit(samples)
    unseen = block_case(80, bright=bright)
    found = FittedIntensityPrompter(**parameters).propose(unseen.view).box
    np.testing.assert_allclose(found, unseen.truths["block"].box, atol=1)
    assert np.median(parameters["weight"]) >= 0.75


def test_where_intensity_says_nothing_the_faces_stay_at_the_usual_place():
    samples = [case.sample("block") for case in block_cases(16, bright=60, scatter=1)]
    prompter = FittedIntensityPrompter(**FittedIntensityPrompter.fit(samples))
    box = prompter.propose(block_case(90, bright=60, scatter=0).view).box
    np.testing.assert_allclose(box, [[6, 14, 9], [14, 26, 19]], atol=2)

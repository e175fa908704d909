import json

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from promptseg.boxes import box_iou
from promptseg.experiment_planning.auto_prompt_cases import fitted_strategies
from promptseg.preprocessing.normalize import rescale, rescale_part
from promptseg.prompts.strategies import AUTO_PROMPTERS, fitted
from promptseg.prompts.strategies.expected_iou import (
    PENALTY,
    evidence,
    expected_iou,
    fit_expected_iou,
)
from promptseg.prompts.strategies.fitted import (
    View,
    block_means,
    block_size,
    pack,
    unpack,
    view_of,
)
from tests.prompts.strategies.fitted_cases import SPACING, block_case, block_cases


@pytest.fixture(scope="module")
def samples():
    return [case.sample("block") for case in block_cases(12)]


@pytest.mark.parametrize("name", fitted_strategies())
def test_every_fitted_strategy_gives_plain_parameters_that_rebuild_it(name, samples):
    cls = AUTO_PROMPTERS.get(name)
    parameters = cls.fit(samples)
    again = json.loads(json.dumps(parameters, allow_nan=False))
    view = block_case(40).view

    assert again == parameters
    box = cls(**parameters).propose(view).box
    np.testing.assert_array_equal(box, cls(**again).propose(view).box)
    assert box.shape == (2, 3) and np.issubdtype(box.dtype, np.integer)
    assert (box[0] >= 0).all() and (box[1] <= view.shape).all() and (box[1] > box[0]).all()


@pytest.mark.parametrize("name", fitted_strategies())
def test_a_view_that_is_described_already_gives_the_same_box(name, samples):
    cls = AUTO_PROMPTERS.get(name)
    prompter = cls(**cls.fit(samples))
    for case in block_cases(5, first=50):
        described = case.described[name]
        np.testing.assert_array_equal(
            prompter.propose(case.view, described=described).box, prompter.propose(case.view).box
        )


def test_a_band_of_ones_own_is_looked_for_in_a_view_that_is_described(samples):
    cls = AUTO_PROMPTERS.get("fitted_intensity")
    parameters = cls.fit(samples) | {"band": ["deviations", 0.25, None], "weight": np.ones((2, 3))}
    prompter, case = cls(**parameters), block_case(50)
    described = case.described["fitted_intensity"]
    np.testing.assert_array_equal(
        prompter.propose(case.view, described=described).box, prompter.propose(case.view).box
    )


@pytest.mark.parametrize("name", fitted_strategies())
def test_fitting_twice_gives_the_same_parameters(name, samples):
    cls = AUTO_PROMPTERS.get(name)
    assert cls.fit(samples) == cls.fit(samples)


@pytest.mark.parametrize("name", fitted_strategies())
def test_every_fitted_strategy_finds_unseen_blocks(name, samples):
    # The blocks move by up to 3 voxels, so the atlas alone reaches about 0.4.
    cls = AUTO_PROMPTERS.get(name)
    prompter = cls(**cls.fit(samples))
    ious = [
        box_iou(prompter.propose(case.view).box, case.truths["block"].box)
        for case in block_cases(10, first=50)
    ]
    assert np.mean(ious) > (0.35 if name == "atlas" else 0.6)


@pytest.mark.parametrize("name", fitted_strategies())
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 30, 24), (20, 36, 1), (3, 2, 90)])
@pytest.mark.parametrize("value", [0, 255])
def test_constant_and_tiny_volumes_give_a_box_inside_or_a_reason(name, shape, value, samples):
    cls = AUTO_PROMPTERS.get(name)
    image = np.full(shape, value, np.float32)
    proposal = cls(**cls.fit(samples)).propose(image, SPACING)
    if proposal.box is None:
        assert proposal.reason == "nothing_found" and proposal.score == 0
    else:
        assert (proposal.box[0] >= 0).all() and (proposal.box[1] <= shape).all()


@pytest.mark.parametrize("name", fitted_strategies())
def test_one_training_case_is_enough_to_fit(name, samples):
    cls = AUTO_PROMPTERS.get(name)
    assert cls(**cls.fit(samples[:1])).propose(samples[0].view).box is not None


def test_block_means_are_means_and_short_blocks_count_what_they_have():
    array = np.arange(5 * 4 * 7, dtype=float).reshape(5, 4, 7)
    means = block_means(array, (2, 1, 3))
    assert means.shape == (3, 4, 3)
    assert means[0, 1, 0] == pytest.approx(array[0:2, 1, 0:3].mean())
    assert means[2, 3, 2] == pytest.approx(array[4, 3, 6])


def test_small_volumes_are_viewed_as_they_are_and_large_ones_become_isotropic():
    assert block_size((36, 50, 35), (1, 1, 1)) == (1, 1, 1)
    # 200x512x512 of 5x0.8x0.8 mm is 168 million mm3; 1e5 voxels of it have sides of 11.9 mm.
    assert block_size((200, 512, 512), (5.0, 0.8, 0.8)) == (2, 15, 15)
    assert block_size((1, 9, 9), (1000, 1e-3, 1e-3)) == (1, 9, 9)


def test_a_view_made_of_raw_slabs_is_that_of_the_whole_normalized_volume(monkeypatch):
    raw = np.random.default_rng(0).normal(50, 100, (37, 62, 58)).astype(np.int16)
    limits = (-160.0, 240.0)
    expected = view_of(rescale(raw, *limits), (2.0, 1.0, 1.2), 3000)
    assert expected.step[0] > 1
    for most in (1, 20_000, 10**9):
        monkeypatch.setattr(fitted, "SLAB_VOXELS", most)
        found = view_of(raw, (2.0, 1.0, 1.2), 3000, lambda part: rescale_part(part, *limits))
        np.testing.assert_array_equal(found.image, expected.image)
        assert (found.step, found.shape) == (expected.step, expected.shape)


def test_a_view_box_in_mm_is_found_again_in_voxels_of_the_volume():
    view = view_of(np.zeros((120, 250, 90), np.float32), (2.0, 0.7, 1.1), voxels=9000)
    assert view.step != (1, 1, 1)
    box = np.array([[11, 40, 7], [90, 211, 90]])
    np.testing.assert_array_equal(view.voxel_box(box * (2.0, 0.7, 1.1)), box)
    np.testing.assert_allclose(view.extent_mm, np.array([120, 250, 90]) * (2.0, 0.7, 1.1))


def test_a_box_outside_the_volume_is_no_box():
    view = View(
        image=np.zeros((4, 5, 6), np.uint8), spacing=(1, 2, 3), step=(1, 1, 1), shape=(4, 5, 6)
    )
    assert view.voxel_box(np.array([[9.0, 0, 0], [12, 5, 5]])) is None
    assert view.voxel_box(np.array([[3.0, 0, 0], [2, 5, 5]])) is None


def test_packed_numbers_come_back_to_float32():
    numbers = np.random.default_rng(2).normal(size=(5, 7)) * 1e3
    np.testing.assert_array_equal(unpack(pack(numbers)), numbers.astype(np.float32).ravel())


def test_expected_iou_follows_the_evidence_and_stays_in_range():
    rng = np.random.default_rng(5)
    rows = rng.normal(size=(60, 5))
    ious = (0.5 + 0.2 * rows[:, 0]).clip(0, 1)
    model = fit_expected_iou(rows, ious)
    predicted = [expected_iou(model, row) for row in rows]
    assert np.corrcoef(predicted, ious)[0, 1] > 0.95
    assert expected_iou(model, np.full(5, 1e3)) in (0.0, 1.0)


def test_expected_iou_is_scikit_learns_ridge_on_standardized_evidence():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(80, 5)) * [1, 2, 3, 0.1, 5] + [1, 0, 4, 2, 9]
    ious = rng.uniform(size=80)
    ridge = Ridge(alpha=PENALTY * 80).fit((rows - rows.mean(0)) / rows.std(0), ious)

    model = fit_expected_iou(list(rows), list(ious))

    np.testing.assert_allclose(model["weights"], ridge.coef_ / rows.std(0), rtol=1e-4)
    predicted = ridge.predict((rows - rows.mean(0)) / rows.std(0))
    np.testing.assert_allclose(
        [expected_iou(model, row) for row in rows], predicted.clip(0, 1), rtol=1e-4
    )


def test_evidence_says_whether_a_box_stands_out_and_where_it_ends():
    image = np.zeros((20, 30, 24), np.uint8)
    image[5:15, 10:20, 8:16] = 200
    view = view_of(image, (1, 1, 1))
    tight = np.array([[5, 10, 8], [15, 20, 16]])
    usual = tight / image.shape
    on = evidence(view, tight, usual)
    off = evidence(view, np.array([[0, 0, 0], [8, 8, 8]]), usual)
    assert on[0] == pytest.approx(1) and on[1] == pytest.approx(0) and on[4] == 0
    assert off[0] < 0.1 and off[2] < on[2] and off[4] == 3

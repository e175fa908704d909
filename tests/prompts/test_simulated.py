"""Prompts drawn from masks stay where they belong."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptseg.prompts.simulated import jitter_box, sample_points


@st.composite
def boxes_in_images(draw):
    shape = tuple(draw(st.integers(1, 40)) for _ in range(3))
    lower = [draw(st.integers(0, n - 1)) for n in shape]
    upper = [draw(st.integers(low + 1, n)) for low, n in zip(lower, shape, strict=True)]
    return shape, np.array([lower, upper])


@settings(deadline=None)
@given(boxes_in_images(), st.floats(0, 0.4), st.integers(0, 2**32 - 1))
def test_a_jittered_box_is_in_the_image_a_voxel_wide_and_no_face_moves_further(case, share, seed):
    shape, box = case
    moved = jitter_box(box, shape, np.random.default_rng(seed), share)
    assert moved.shape == (2, 3)
    assert (moved[0] >= 0).all() and (moved[1] <= shape).all()
    side = box[1] - box[0]
    assert (moved[1] - moved[0] >= 1 - 1e-9).all()
    # A face moves by a share of its side, or by a voxel where the box would become too thin.
    assert (
        np.abs(moved - box)
        <= np.maximum(share * side, np.where(side * (1 - 2 * share) < 1, 1, 0)) + 1e-9
    ).all()


def test_jitter_is_uniform_within_its_bound_for_every_face():
    box, shape = np.array([[10, 20, 30], [20, 60, 110]]), (100, 100, 200)
    rng = np.random.default_rng(0)
    moves = np.array([jitter_box(box, shape, rng) - box for _ in range(4000)])
    bound = 0.1 * np.array([10, 40, 80])
    assert (np.abs(moves) <= bound).all()
    # Uniform on [-b, b]: mean 0 and standard deviation b / sqrt(3), each within five errors.
    assert (np.abs(moves.mean(axis=0)) < 5 * bound / np.sqrt(3 * 4000)).all()
    np.testing.assert_allclose(
        moves.std(axis=0), np.broadcast_to(bound, (2, 3)) / 3**0.5, rtol=0.05
    )
    correlation = np.corrcoef(moves.reshape(4000, 6).T) - np.eye(6)
    assert np.abs(correlation).max() < 0.1


@pytest.mark.parametrize("box", [[[1, 2, 3], [1, 5, 6]], [[4, 2, 3], [1, 5, 6]]])
def test_an_empty_box_is_not_jittered(box):
    with pytest.raises(ValueError, match=r"box .* is empty along an axis \(zyx, upper exclusive\)"):
        jitter_box(np.array(box), (9, 9, 9), np.random.default_rng(0))


def test_points_lie_inside_and_outside_as_asked_and_cover_the_mask():
    mask = np.zeros((3, 5, 7), bool)
    mask[1:, 2:4, 1:6] = True  # 20 voxels
    points, labels = sample_points(mask, 400, 30, np.random.default_rng(0))
    assert points.shape == (430, 3) and labels.tolist() == [1] * 400 + [0] * 30
    np.testing.assert_array_equal(mask[tuple(points.T)], labels == 1)
    counts = np.unique(points[:400], axis=0, return_counts=True)[1]
    assert len(counts) == 20 and counts.max() < 45  # 20 each expected


@pytest.mark.parametrize(
    ("fill", "foreground", "background", "expected"),
    [(False, 3, 2, [0, 0]), (True, 3, 2, [1, 1, 1]), (True, 0, 2, []), (False, 0, 0, [])],
)
def test_what_a_mask_does_not_have_is_not_drawn(fill, foreground, background, expected):
    mask = np.full((2, 3, 4), fill)
    points, labels = sample_points(mask, foreground, background, np.random.default_rng(0))
    assert labels.tolist() == expected and points.shape == (len(expected), 3)


def test_the_same_seed_draws_the_same_prompts():
    mask = np.random.default_rng(1).random((4, 6, 5)) < 0.3
    first, second = (sample_points(mask, 4, 4, np.random.default_rng(7))[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)

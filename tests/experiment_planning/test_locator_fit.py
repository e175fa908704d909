from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from promptseg.boxes import box_iou
from promptseg.experiment_planning import locator_fit
from promptseg.experiment_planning.auto_prompt_fit import fit_labels
from promptseg.experiment_planning.auto_prompt_scores import off_centre
from promptseg.experiment_planning.locator_fit import (
    crop,
    fit_locator,
    fold_tasks,
    spacing_of,
    steps_after,
)
from promptseg.networks.locator import Locator
from tests.prompts.strategies.fitted_cases import block_cases

LABELS = ("block", "other")


def iou(proposal, case) -> float:
    if proposal.box is None:
        return 0.0
    return float(box_iou(proposal.box.astype(float), case.truths["block"].box))


@pytest.fixture
def few_steps(monkeypatch):
    monkeypatch.setattr(locator_fit, "STEPS", (3, 3))


def test_no_network_is_trained_on_what_it_is_judged_by(monkeypatch):
    monkeypatch.setattr(locator_fit, "FOLDS", 4)
    cases = [replace(c, group=f"patient_{i // 3}") for i, c in enumerate(block_cases(13))]
    tasks = fold_tasks(cases, LABELS, [], 6)
    assert [task.number for task in tasks] == [0, 1, 2, 3]
    held_out = [case.case_id for task in tasks for case in task.held_out]
    assert sorted(held_out) == [case.case_id for case in cases]
    for task in tasks:
        seen, unseen = ({c.group for c in part} for part in (task.trained_on, task.held_out))
        assert seen and unseen and not seen & unseen
        assert len(task.trained_on) + len(task.held_out) == len(cases)


@pytest.mark.parametrize(
    ("reached", "steps"), [(0.0, 1500), (0.5, 1500), (0.7, 540), (0.9, 300), (1.0, 300)]
)
def test_the_less_others_reach_the_longer_it_is_trained(reached, steps, monkeypatch):
    monkeypatch.setattr(locator_fit, "STEPS", (300, 1500))
    assert steps_after(reached) == steps


def test_large_views_are_seen_more_coarsely_but_not_across_thick_slices(monkeypatch):
    cases = block_cases(3)  # 20x36x28 voxels of 3x1x1.5 mm, each a view voxel of its own
    assert spacing_of(cases) == (3.0, 1.0, 1.5)
    monkeypatch.setattr(locator_fit, "VOXELS", 20 * 36 * 28 / 4)
    np.testing.assert_allclose(spacing_of(cases), (3.0, 2.0, 3.0))
    alike = [replace(c, view=replace(c.view, spacing=(1.5, 1.0, 1.5))) for c in cases]
    np.testing.assert_allclose(spacing_of(alike), np.array([1.5, 1.0, 1.5]) * 4 ** (1 / 3))


def test_cases_of_one_patient_are_refused():
    cases = [replace(case, group="patient") for case in block_cases(3)]
    with pytest.raises(ValueError, match="two groups"):
        fold_tasks(cases, LABELS, [], 6)


def test_unseen_blocks_are_found_wherever_the_volume_is_cropped(monkeypatch):
    monkeypatch.setattr(locator_fit, "STEPS", (60, 60))
    cases = block_cases(8)
    fit = fit_locator(cases, ["block"], [(case.case_id, "block") for case in cases])
    found = [iou(fit.found[case.case_id]["block"], case) for case in cases]
    moved = [iou(fit.moved[case.case_id]["block"], off_centre(case, "block")) for case in cases]
    assert np.mean(found) > 0.6 and np.mean(moved) > 0.6
    # all networks together, on a case that none has seen
    [other] = block_cases(1, first=40)
    assert iou(fit.locator.propose(other.view)["block"], other) > 0.6


def test_workers_change_nothing_and_a_case_gets_the_network_without_it(few_steps):
    cases = block_cases(6)
    alone, spread = (
        fit_locator(cases, LABELS, [("case_01", "block")], processes=n) for n in (0, 2)
    )
    assert set(alone.found) == {case.case_id for case in cases} and set(alone.moved) == {"case_01"}
    for one, other in zip(alone.locator.networks, spread.locator.networks, strict=True):
        for name, value in one.state_dict().items():
            assert torch.equal(value, other.state_dict()[name]), name
    for task, network in zip(fold_tasks(cases, LABELS, [], 6), alone.locator.networks, strict=True):
        single = Locator(labels=LABELS, spacing=task.spacing, networks=(network,))
        for case in task.held_out:
            expected = single.propose(case.view)
            for label in LABELS:
                for fit in (alone, spread):
                    np.testing.assert_array_equal(
                        fit.found[case.case_id][label].box, expected[label].box
                    )


def test_the_locator_is_a_candidate_with_figures_of_its_own(few_steps):
    cases = block_cases(6, unfitted=("intensity",))
    without = replace(cases[0], case_id="case_99", group="case_99", truths={})
    fit = fit_labels([*cases, without], ["block"], locator=True)
    entry = fit.labels["block"]["candidates"]["locator"]
    located = fit_locator([*cases, without], ["block"], [])
    expected = np.mean([iou(located.found[case.case_id]["block"], case) for case in cases])
    assert entry["iou_mean"] == pytest.approx(expected)
    assert entry["cases_without_label"] == 1
    assert entry["parameters"] == {"networks": fit.locator.digest}
    assert entry["iou_off_centre"] is not None
    assert "locator" in fit.table() and fit.locator.labels == ("block",)


@pytest.mark.parametrize("spacing", [(3.0, 1.0, 1.5), (4.0, 2.0, 2.0), (9.0, 1.5, 1.5)])
def test_a_crop_shows_the_view_turned_as_scipy_turns_it(spacing, monkeypatch):
    [case] = block_cases(1)
    monkeypatch.setattr(locator_fit, "_other_contrast", lambda image, rng: image)
    matrices, turned = [], locator_fit._turned
    monkeypatch.setattr(
        locator_fit, "_turned", lambda *a: matrices.append(turned(*a)) or matrices[-1]
    )
    size = np.array([9, 16, 13])
    case = replace(case, ignored=case.view.image)
    image, shares, ignored = crop(case, ("block",), size, spacing, np.random.default_rng(5))
    assert image.shape == (1, *size) and shares.shape == (1, *size)

    # the same random numbers, then mm from the middle of the part to mm in the volume
    rng, mm = np.random.default_rng(5), size * np.array(spacing)
    free, slack = case.view.extent_mm - mm, locator_fit.BEYOND * mm
    centre = rng.uniform(np.minimum(0, free) - slack, np.maximum(0, free) + slack) + mm / 2
    parts = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij")) + 0.5
    offsets = (parts - size.reshape(3, 1, 1, 1) / 2) * np.reshape(spacing, (3, 1, 1, 1))
    at = np.einsum("ij,j...->i...", matrices[0], offsets) + centre.reshape(3, 1, 1, 1)
    at = at / np.reshape(case.view.spacing, (3, 1, 1, 1)) - 0.5
    expected = ndimage.map_coordinates(case.view.image.astype(float), at, order=1, cval=0)
    shape = np.reshape(case.view.image.shape, (3, 1, 1, 1))
    well_inside = ((at >= 0) & (at <= shape - 1)).all(axis=0)
    assert well_inside.any()
    for found in (image[0], ignored[0] * 255):
        np.testing.assert_allclose(found.numpy()[well_inside], expected[well_inside], atol=0.05)
    outside = ((at < -0.5) | (at > shape - 0.5)).any(axis=0)
    assert (image[0].numpy()[outside] == 0).all() and (shares[0].numpy()[outside] == 0).all()
    scales = np.linalg.svd(matrices[0])[1]
    assert (abs(np.log(scales)) < locator_fit.ZOOM + locator_fit.STRETCH).all()


def test_thick_slices_are_turned_in_their_plane_alone():
    for seed in range(20):
        matrix = locator_fit._turned((9.0, 1.5, 1.5), np.random.default_rng(seed))
        np.testing.assert_allclose(matrix[0], [1, 0, 0], atol=1e-12)
        np.testing.assert_allclose(matrix[:, 0], [1, 0, 0], atol=1e-12)


def test_contrast_changes_and_the_range_stays():
    image = torch.linspace(0, 255, 60).reshape(1, 3, 4, 5)
    seen = [locator_fit._other_contrast(image, np.random.default_rng(n)) for n in range(30)]
    assert all(0 <= one.min() and one.max() <= 255 for one in seen)
    assert len({float(one.mean()) for one in seen}) == 30

import json
import os
import pickle
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import spearmanr

from promptseg.boxes import mask_box
from promptseg.experiment_planning.auto_prompt_candidates import FitTask
from promptseg.experiment_planning.auto_prompt_cases import (
    Reduction,
    fitted_strategies,
    read_fit_case,
    reduce_case,
)
from promptseg.experiment_planning.auto_prompt_fit import (
    choose,
    fit_auto_prompts,
    fit_labels,
)
from promptseg.experiment_planning.auto_prompt_scores import (
    assign_folds,
    figures,
    fit_score,
    folds_of,
    off_centre,
    out_of_fold,
    rank_correlation,
)
from promptseg.io.dataset import read_raw_dataset
from promptseg.preprocessing.normalize import percentile_clipping
from promptseg.prompts.auto_prompter import Proposal
from promptseg.prompts.strategies import AUTO_PROMPTERS
from promptseg.prompts.strategies.fitted import FittedPrompter, block_means, view_of
from tests.prompts.strategies.fitted_cases import AS_IT_IS, SPACING, block_case, block_cases
from tests.real_data import raw_folder


def proposal(box):
    box = None if box is None else np.array(box)
    return Proposal(box=box, score=0.0, reason="ok")


def reduced_for(labels):
    return Reduction(labels=labels, normalization=AS_IT_IS)


def test_below_ten_cases_each_is_left_out_alone_and_above_folds_are_even():
    np.testing.assert_array_equal(assign_folds(7), np.arange(7))
    assert sorted(np.bincount(assign_folds(23))) == [4, 4, 5, 5, 5]
    assert len(np.unique(assign_folds(23, folds=2))) == 5
    np.testing.assert_array_equal(assign_folds(40), assign_folds(40))


class Remembering(FittedPrompter):
    """Its parameters are the images that it was fitted on."""

    def __init__(self, *, seen):
        self.seen = seen

    @classmethod
    def fit(cls, samples):
        return {"seen": [sample.view.image.tobytes() for sample in samples]}

    def locate(self, view):
        return None


@pytest.mark.parametrize(("count", "left_out"), [(5, [1]), (12, [2, 3])])
def test_no_proposal_comes_from_a_fit_that_saw_its_case(count, left_out):
    cases = block_cases(count)
    prompters = out_of_fold(Remembering, cases, "block", assign_folds(count))
    assert len(prompters) == count
    for case, prompter in zip(cases, prompters, strict=True):
        assert case.view.image.tobytes() not in prompter.seen
        assert count - len(set(prompter.seen)) in left_out


def grouped(cases, groups):
    return [replace(case, group=group) for case, group in zip(cases, groups, strict=True)]


def test_cases_of_a_group_are_in_one_fold_and_without_groups_nothing_changes():
    cases = block_cases(12)
    np.testing.assert_array_equal(folds_of(cases), assign_folds(12))
    # Six groups are left out one by one; twelve share five folds.
    np.testing.assert_array_equal(
        folds_of(grouped(cases, "abcabcddeeff")), [0, 1, 2] * 2 + [3] * 2 + [4] * 2 + [5] * 2
    )
    np.testing.assert_array_equal(
        folds_of(grouped(cases * 2, list(range(12)) * 2)), list(assign_folds(12)) * 2
    )


@pytest.mark.parametrize("groups", ["aabbc", "abcab", "aabbccddeeffgghhiijjkkll"])
def test_no_proposal_comes_from_a_fit_that_saw_its_group(groups):
    cases = grouped(block_cases(len(groups)), groups)
    prompters = out_of_fold(Remembering, cases, "block", folds_of(cases))
    for case, prompter in zip(cases, prompters, strict=True):
        others = {c.view.image.tobytes() for c in cases if c.group == case.group}
        assert prompter.seen and not others & set(prompter.seen)


def test_figures_of_known_boxes():
    cases = block_cases(4, scatter=0)  # the truth is (6, 14, 9) to (14, 26, 19), 960 voxels
    truth = cases[0].truths["block"].box
    half = [[6, 14, 9], [10, 26, 19]]
    whole = [[0, 0, 0], [20, 36, 28]]
    found = figures([proposal(b) for b in (truth, half, None, whole)], cases, "block")
    ious = np.array([1, 0.5, 0, 960 / 20160])
    assert found["iou_mean"] == pytest.approx(ious.mean())
    assert found["iou_std"] == pytest.approx(ious.std())
    assert found["recall_mean"] == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    assert found["empty_fraction"] == 0.25 and found["whole_fraction"] == 0.25


def test_rank_correlation_of_known_orders():
    assert rank_correlation([1, 2, 3], [10, 20, 90]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [5, 4, -7]) == pytest.approx(-1)
    assert rank_correlation([1, 1, 1], [1, 2, 3]) is None
    # Ranks 1.5 1.5 3 and 1 2 3: covariance 0.5, variances 0.5 and 2/3.
    assert rank_correlation([1, 1, 2], [1, 2, 3]) == pytest.approx(0.5 / np.sqrt(0.5 * 2 / 3))


@pytest.mark.parametrize("number", range(5))
def test_rank_correlation_is_scipys(number):
    rng = np.random.default_rng(number)
    a, b = rng.integers(0, 20, 60) / 7, rng.normal(size=60).round(1)  # many ties
    assert rank_correlation(a, b) == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)


def test_the_highest_box_iou_wins_and_every_candidate_is_kept():
    fit = fit_labels(block_cases(12, unfitted=("intensity",)), ["block"])
    entry = fit.labels["block"]
    assert set(entry["candidates"]) == {"intensity", *fitted_strategies()}
    means = {name: c["iou_mean"] for name, c in entry["candidates"].items()}
    assert entry["strategy"] == max(means, key=means.get)
    assert max(means.values()) > 0.6
    assert json.loads(json.dumps(fit.labels, allow_nan=False)) == fit.labels
    assert f"* {entry['strategy']}" in fit.table() and "with the choice cross-val" in fit.table()
    for candidate in entry["candidates"].values():
        assert {
            "parameters",
            "iou_mean",
            "iou_std",
            "recall_mean",
            "empty_fraction",
            "whole_fraction",
            "score_correlation",
        } <= set(candidate)


def test_proposals_are_the_winners_out_of_fold_boxes():
    cases = block_cases(10, unfitted=("intensity",))
    fit = fit_labels(cases, ["block"])
    chosen = fit.labels["block"]["strategy"]
    again = out_of_fold(AUTO_PROMPTERS.get(chosen), cases, "block", assign_folds(10))
    for case, prompter in zip(cases, again, strict=True):
        found = prompter.propose(case.view)
        assert fit.proposals[case.case_id] == {"block": [found.box.tolist()]}


def test_the_boxes_of_a_patients_scans_come_from_fits_on_other_patients():
    # Each patient's block is somewhere else and on all of the patient's scans in one place: a fit
    # that has seen another scan of the patient would know it.
    cases = grouped(block_cases(4), "abcd") + grouped(block_cases(4), "abcd")
    for i, case in enumerate(cases):
        cases[i] = replace(case, case_id=f"{case.group}_{i // 4}", unfitted={"intensity": ()})
    fit = fit_labels(cases, ["block"])
    four = fit_labels([replace(case, case_id=case.group) for case in cases[:4]], ["block"])
    atlas = [f.labels["block"]["candidates"]["atlas"]["iou_mean"] for f in (fit, four)]
    assert atlas[0] == pytest.approx(atlas[1])
    chosen = fit.labels["block"]["strategy"]
    again = out_of_fold(AUTO_PROMPTERS.get(chosen), cases, "block", np.tile(range(4), 2))
    for case, prompter in zip(cases, again, strict=True):
        assert fit.proposals[case.case_id]["block"] == [prompter.propose(case.view).box.tolist()]


def test_worker_processes_change_nothing():
    cases = block_cases(6, unfitted=("intensity",))
    spread, alone = fit_labels(cases, ["block"], processes=2), fit_labels(cases, ["block"])
    assert spread.labels == alone.labels
    assert alone.locator is None and "locator" not in alone.labels["block"]["candidates"]


class Deadly(str):
    """A case's name that ends the process which unpickles it."""

    def __reduce__(self):
        return os._exit, (1,)


def test_a_dead_worker_is_told_with_what_was_fitted():
    cases = block_cases(12)
    cases[0] = replace(cases[0], case_id=Deadly(cases[0].case_id))
    with pytest.raises(RuntimeError, match="worker process died .* at one of: .* for 'block'"):
        fit_labels(cases, ["block"], processes=2)


def test_when_no_candidate_is_usable_the_plans_say_none_and_why():
    cases = block_cases(10)
    wrong = [proposal([[0, 0, 0], [2, 2, 2]])] * 10
    entry = choose({"atlas": ({}, wrong, [], [])}, cases, "block", assign_folds(10))
    assert entry["strategy"] == "none"
    assert "atlas is best with box IoU 0.00, below 0.30" in entry["reason"]


def test_the_choice_itself_is_cross_validated():
    # In the first half of the folds one candidate is right, in the rest the other; choosing
    # without a fold always picks the one that is wrong on it as soon as they are even.
    cases = block_cases(4, scatter=0)
    truth, nowhere = cases[0].truths["block"].box, [[0, 0, 0], [1, 1, 1]]
    a = [proposal(truth), proposal(truth), proposal(nowhere), proposal(nowhere)]
    b = a[::-1]
    entry = choose({"a": ({}, a, [], []), "b": ({}, b, [], [])}, cases, "block", np.arange(4))
    assert "0.500 (0.000 with the choice cross-validated)" in entry["reason"]


@pytest.mark.parametrize(
    ("steady", "off_centre", "chosen"),
    [
        (0.61, 0.45, "steady"),
        (0.59, 0.45, "placed"),
        (0.61, 0.35, "placed"),
        (0.61, None, "placed"),
    ],
)
def test_what_is_hardly_worse_and_much_steadier_is_preferred(steady, off_centre, chosen):
    cases = block_cases(4, scatter=0)
    box = cases[0].truths["block"].box

    def of(iou: float) -> list:
        return [proposal([box[0], box[0] + (8, 12, round(10 * iou, 2))])] * 4

    candidates = {
        "placed": ({"iou_mean": 0.65, "iou_off_centre": 0.2}, of(0.65), [], []),
        "steady": ({"iou_mean": steady, "iou_off_centre": off_centre}, of(steady), [], []),
    }
    entry = choose(candidates, cases, "block", np.arange(4))
    assert entry["strategy"] == chosen
    if chosen == "steady":
        assert entry["reason"] == (
            "box IoU 0.610, and 0.450 on the same volumes cropped off-centre; placed has 0.650 and "
            "0.200"
        )


def test_cases_without_the_label_are_left_out_and_counted():
    with_label = block_cases(6, unfitted=("intensity",))
    without = [block_case(90 + i, value=2, unfitted=("intensity",)) for i in range(2)]
    alone, mixed = fit_labels(with_label, ["block"]), fit_labels(with_label + without, ["block"])
    for name, candidate in mixed.labels["block"]["candidates"].items():
        assert candidate["iou_mean"] == alone.labels["block"]["candidates"][name]["iou_mean"]
        assert candidate["cases_without_label"] == 2
        assert candidate["proposed_without_label"] == 2
    assert mixed.proposals["case_90"] == {}


@pytest.mark.parametrize("count", [0, 1, 2])
def test_too_few_cases_with_a_label_are_named_in_the_reason(count):
    cases = block_cases(count) + [block_case(90, value=2)]
    entry = fit_labels(cases, ["block"]).labels["block"]
    assert entry["strategy"] == "none" and entry["candidates"] == {}
    assert f"only {count} training cases have the label; 3 are needed" in entry["reason"]


def test_too_few_patients_with_a_label_are_named_in_the_reason():
    cases = grouped(block_cases(6), "aabbab") + [block_case(90, value=2)]
    entry = fit_labels(cases, ["block"]).labels["block"]
    assert entry["strategy"] == "none" and entry["candidates"] == {}
    assert "only 2 groups of training cases have the label; 3 are needed" in entry["reason"]


def test_no_case_at_all_is_an_error():
    with pytest.raises(ValueError, match="fitted on training cases, but there are none"):
        fit_auto_prompts({}, ["a"], processes=0)


def test_image_and_label_of_different_shape_are_refused_by_name():
    with pytest.raises(ValueError, match=r"case 'x': the image has shape \(3, 4, 5\).*\(3, 4, 6\)"):
        reduce_case("x", np.zeros((3, 4, 5)), np.zeros((3, 4, 6), int), SPACING, reduced_for({}))


def test_the_score_of_unseen_cases_follows_their_iou():
    # Proposals that drift further from the usual place case by case: place alone tells the IoU.
    cases = block_cases(20, scatter=0)
    truth = cases[0].truths["block"].box
    found = [proposal(truth + [0, shift // 2, 0]) for shift in range(20)]
    model, correlation = fit_score(found, cases, "block", assign_folds(20))
    assert correlation > 0.9
    assert set(model) == {"weights", "constant", "usual"}


def test_a_truth_keeps_box_mask_and_share():
    case = block_case(3)
    truth = case.truths["block"]
    np.testing.assert_array_equal(truth.box[1] - truth.box[0], (8, 12, 10))
    assert truth.mask.shape == (8, 12, 10) and truth.mask.all()
    np.testing.assert_allclose(case.sample("block").box_mm, truth.box * SPACING)
    assert case.sample("block").mask.sum() == 255 * 960


@pytest.mark.parametrize("number", range(4))
def test_the_share_of_view_voxels_is_kept_where_the_label_is(number):
    rng = np.random.default_rng(number)
    shape = np.array((61, 90, 75)) + rng.integers(-5, 6, 3)  # no multiple of a step
    corner, sides = rng.integers(20, 30, 3), rng.integers(1, 20, 3)
    segmentation = np.full(shape, 3, np.uint8)
    segmentation[tuple(map(slice, corner, corner + sides))] = rng.integers(1, 3, sides)
    segmentation[-1, -1, -1] = 1 + number % 2
    case = reduce_case(
        "x", segmentation * 50.0, segmentation, (1.0, 1.0, 2.0), reduced_for({"a": 1, "b": 2})
    )
    assert max(case.view.step) > 1
    for label, value in (("a", 1), ("b", 2)):
        sample = case.sample(label)
        whole = np.zeros(case.view.image.shape, np.uint8)
        whole[tuple(map(slice, *sample.view_box))] = sample.mask
        expected = np.rint(block_means(segmentation == value, case.view.step) * 255)
        np.testing.assert_array_equal(whole, expected)
        np.testing.assert_array_equal(case.truths[label].box, mask_box(segmentation == value))


def test_a_task_carries_its_own_label_and_strategy_alone_and_little_of_many_labels():
    labels = {f"organ_{value}": value for value in range(1, 41)}
    rng = np.random.default_rng(0)
    segmentation = np.zeros((20, 36, 28), np.uint8)
    for value in labels.values():
        at = tuple(slice(a, a + 3) for a in rng.integers(0, (17, 33, 25)))
        segmentation[at] = value
    few, many = (
        reduce_case("x", segmentation * 5.0, segmentation, SPACING, reduced_for(some))
        for some in ({"organ_40": 40}, labels)
    )
    assert len(pickle.dumps(many)) < 2 * len(pickle.dumps(few))
    case = block_case(1, unfitted=("intensity",))
    both = replace(case, truths={**case.truths, "other": case.truths["block"]})
    reduced = both.for_fit("block", "regression")
    assert list(reduced.truths) == ["block"] and list(reduced.described) == ["regression"]
    assert reduced.unfitted == {} and reduced.view is both.view
    task = FitTask(label="block", strategy=AUTO_PROMPTERS.get("atlas"), cases=(both,))
    assert len(str(task)) < 200  # it is named when a worker dies


def test_real_pet_is_read_reduced_and_found():
    raw = read_raw_dataset(raw_folder() / "Dataset010_SarcomaPET")
    some = raw.cases[:12]
    reduction = Reduction.for_all_strategies(raw.labels, percentile_clipping())
    cases = {case.case_id: read_fit_case(case, reduction) for case in some}
    fit = fit_auto_prompts(cases, list(raw.labels), processes=0)
    (entry,) = fit.labels.values()
    assert entry["candidates"][entry["strategy"]]["iou_mean"] > 0.66
    assert entry["candidates"]["intensity"]["iou_mean"] < 0.3
    assert sorted(fit.proposals) == sorted(case.case_id for case in some)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    raw = read_raw_dataset(raw_folder() / "Dataset010_SarcomaPET")
    broken = tmp_path / "broken_0000.nii.gz"
    broken.write_bytes(b"no image")
    case = type(raw.cases[0])(case_id="broken", images=(broken,), label=raw.cases[0].label)
    with pytest.raises(ValueError, match="broken_0000.nii.gz"):
        read_fit_case(case, reduced_for(raw.labels))


@pytest.mark.parametrize("number", range(6))
def test_cropping_off_centre_keeps_the_label_and_its_surroundings(number):
    case = block_case(number)
    moved = off_centre(case, "block")
    box, before = moved.truths["block"].box, case.truths["block"].box
    assert (box[0] >= 0).all() and (box[1] <= moved.view.shape).all()
    assert moved.view.shape == moved.view.image.shape  # this view has a step of 1
    inside, original = (
        c.view.image[tuple(slice(a, b) for a, b in c.truths["block"].box.T)] for c in (moved, case)
    )
    np.testing.assert_array_equal(inside, original)
    np.testing.assert_array_equal(box[1] - box[0], before[1] - before[0])
    assert moved.view.image.size < case.view.image.size
    np.testing.assert_array_equal(off_centre(case, "block").view.image, moved.view.image)


def test_cropping_off_centre_counts_in_voxels_of_the_volume():
    case = block_case(2)
    coarse = replace(case, view=view_of(case.view.image, SPACING, voxels=900))
    assert coarse.view.step != (1, 1, 1)
    moved = off_centre(coarse, "block")
    cut = case.truths["block"].box[0] - moved.truths["block"].box[0]
    assert (cut % coarse.view.step == 0).all()
    blocks = -(-np.array(moved.view.shape) // coarse.view.step)
    np.testing.assert_array_equal(blocks, moved.view.image.shape)
    assert (moved.truths["block"].box[1] <= moved.view.shape).all()


def test_a_choice_that_hangs_on_the_crop_is_said_to():
    # Blocks at one place: the atlas is perfect, and worth little once the volumes are cropped.
    cases = block_cases(10, scatter=0, bright=60, unfitted=("intensity",))
    entry = fit_labels(cases, ["block"]).labels["block"]
    assert entry["strategy"] == "atlas"
    assert entry["candidates"]["atlas"]["iou_off_centre"] < 0.5
    assert entry["candidates"]["intensity"]["iou_off_centre"] is None
    assert "on the same volumes cropped off-centre" in entry["reason"]

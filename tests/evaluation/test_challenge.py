"""The challenge's protocol: its formulas by hand, and a literal evaluator that shares no code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.metrics import compute_surface_dice
from scipy import ndimage
from scipy.integrate import cumulative_trapezoid

from promptseg.evaluation.challenge import (
    Rounds,
    area_under_clicks,
    merged,
    score,
    segment_in_rounds,
)
from promptseg.inference.predictor import Predictor
from promptseg.prompts.simulated import middle_slice_box
from tests.inference.fakes import LEVELS, LevelNetwork
from tests.small_plans import small_plans

SPACING = (2.5, 1.0, 0.75)


def test_the_area_is_of_the_five_clicks_and_the_box_is_left_out():
    rising = (0.9, 0.5, 0.6, 0.7, 0.8, 0.9)
    assert area_under_clicks(rising) == pytest.approx(0.55 + 0.65 + 0.75 + 0.85)
    assert area_under_clicks((0.0, 1.0, 1.0, 1.0, 1.0, 1.0)) == 4.0
    assert area_under_clicks((1.0, 0.0, 0.0, 0.0, 0.0, 0.6)) == pytest.approx(0.3)


def test_a_case_has_the_challenges_columns():
    rounds = Rounds(
        dice=(0.9, 0.5, 0.6, 0.7, 0.8, 0.9),
        nsd=(0.1, 0.0, 0.2, 0.4, 0.4, 0.5),
        seconds=(3.0, 1.0, 1.0, 2.0, 1.0, 0.5),
        classes=2,
    )
    row = rounds.row("CT_case")
    assert list(row) == [
        "CaseName", "TotalRunningTime", *(f"RunningTime_{n}" for n in range(1, 7)),
        "DSC_AUC", "NSD_AUC", "DSC_Final", "NSD_Final",
        *(f"DSC_{n}" for n in range(1, 7)), *(f"NSD_{n}" for n in range(1, 7)),
        "num_class", "runtime_upperbound",
    ]  # fmt: skip
    assert row["TotalRunningTime"] == 8.5 and row["RunningTime_4"] == 2.0
    assert row["DSC_AUC"] == pytest.approx(2.8) and row["NSD_AUC"] == pytest.approx(1.25)
    assert (row["DSC_Final"], row["NSD_Final"], row["DSC_1"], row["NSD_2"]) == (0.9, 0.5, 0.9, 0.0)
    assert (row["num_class"], row["runtime_upperbound"]) == (2, 180.0)


def test_dice_is_the_mean_over_true_labels_and_nsd_counts_only_above_a_fifth():
    reference, prediction = np.zeros((2, 4, 6, 7), np.uint8)
    reference[0:2, 0:3, 0:4], reference[3, 4:6, 4:6] = 1, 5  # 24 voxels, and 4
    prediction[0:2, 0:3, 0:2] = 1  # 12, of which all are right
    prediction[3, 0, 0] = 9  # of a label that is not there: costs nothing
    dice, nsd = score(reference, prediction, SPACING)
    assert dice == pytest.approx((2 / 3 + 0) / 2)
    assert nsd == pytest.approx(surface_dice(reference == 1, prediction == 1) / 2)  # 0 for label 5
    prediction[0:2, 0:3, 1] = 0  # 6 of 24: 0.4 and 0
    dice, nsd = score(reference, prediction, SPACING)
    assert dice == pytest.approx(0.2) and nsd == 0.0
    prediction[3, 4, 4] = 5
    dice, nsd = score(reference, prediction, SPACING)
    assert dice == pytest.approx((0.4 + 0.4) / 2) and nsd > 0


def surface_dice(first: np.ndarray, second: np.ndarray) -> float:
    pair = [torch.from_numpy(mask[None, None]).float() for mask in (second, first)]
    options = {"include_background": True, "spacing": SPACING, "use_subvoxels": True}
    return compute_surface_dice(*pair, [2.0], **options).item()


def small_case(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """An image in which the fake finds labels 1 and 2 almost, and its ground truth."""
    rng = np.random.default_rng(seed)
    shape = rng.integers((8, 14, 16), (12, 20, 22))
    labels = np.zeros(shape, np.uint8)
    z, y, x = shape
    labels[1 : z // 2 + 2, 2 : y - 4, 1 : x // 2 - 1] = 1
    labels[2 : z - 1, 3 : y - 2, x // 2 : x - 2] = 2
    found = np.where(rng.random(shape) < 0.02, rng.integers(0, 3, shape), labels)
    hole = rng.integers(2, shape - 5)
    found[tuple(slice(h, h + 3) for h in hole)] = rng.integers(0, 2)
    return np.array([0, LEVELS[0], LEVELS[1]], np.float32)[found], labels


def literal_evaluation(answer, gts, boxes):
    """The challenge's loop, after the description of its script, with nothing of the package."""
    labels = np.unique(gts)[1:]
    segs = np.zeros_like(gts)
    clicks = [{"fg": [], "bg": []} for _ in labels]
    order = [[] for _ in labels]
    dscs, nsds = [], []
    for iteration in range(6):
        if iteration == 0 and boxes is None:
            dscs.append(0.0)
            nsds.append(0.0)
            continue
        if iteration:
            for i, label in enumerate(labels):
                error = (segs == label) != (gts == label)
                numbered, n = ndimage.label(error, np.ones((3, 3, 3)))
                if n == 0:
                    order[i].append(None)
                    continue
                largest = np.bincount(numbered.ravel())[1:].argmax() + 1
                component = np.pad(numbered == largest, 4)
                depth = ndimage.distance_transform_edt(component)
                place = np.argwhere(depth == depth.max())[0] - 4
                kind = "fg" if gts[tuple(place)] == label else "bg"
                clicks[i][kind].append(place.tolist())
                order[i].append(kind)
        segs = answer(boxes, clicks, order)
        dsc, nsd = [], []
        for label in labels:
            a, b = gts == label, segs == label
            dsc.append(2 * (a & b).sum() / (a.sum() + b.sum()))
            nsd.append(surface_dice(a, b) if b.any() else 0.0)
        dscs.append(np.mean(dsc))
        nsds.append(np.mean(nsd) if dscs[-1] > 0.2 else 0.0)
    areas = [cumulative_trapezoid(values[-5:], np.arange(5))[-1] for values in (dscs, nsds)]
    return dscs, nsds, areas


def replaying(predictor):
    """A container: knows nothing of earlier iterations, and is given all prompts so far."""

    def answer(boxes, clicks, order):
        masks = []
        for i, of_label in enumerate(clicks):
            session = predictor.new_object()
            if boxes is not None:
                session.add_box(boxes[i])
            left = {kind: list(places) for kind, places in of_label.items()}
            for kind in order[i]:
                if kind is not None:
                    session.add_point(left[kind].pop(0), foreground=kind == "fg")
            masks.append(session.mask)
        segs = np.zeros(masks[0].shape, np.uint8)
        for i in sorted(range(len(masks)), key=lambda i: -masks[i].sum()):
            segs[masks[i]] = i + 1
        return segs

    return answer


@pytest.mark.parametrize("seed", range(10))
def test_figures_are_those_of_a_literal_evaluator(seed):
    image, labels = small_case(seed)
    predictor = Predictor([LevelNetwork(click=1.6)], small_plans())
    predictor.set_image(image, SPACING)
    rng = np.random.default_rng(seed)
    boxes = {}
    if seed % 3:
        boxes = {value: middle_slice_box(labels == value, rng) for value in (1, 2)}
    rounds = segment_in_rounds(predictor, labels, boxes, SPACING)
    dscs, nsds, areas = literal_evaluation(
        replaying(predictor), labels, [*boxes.values()] if boxes else None
    )
    np.testing.assert_allclose(rounds.dice, dscs, rtol=1e-9)
    np.testing.assert_allclose(rounds.nsd, nsds, atol=1e-6)  # MONAI's are of float32
    np.testing.assert_allclose(
        [area_under_clicks(rounds.dice), area_under_clicks(rounds.nsd)], areas, atol=4e-6
    )
    assert rounds.dice[-1] > 0 and (rounds.nsd[-1] > 0) == (rounds.dice[-1] > 0.2)
    assert (rounds.seconds[0] == 0) == (not boxes) and min(rounds.seconds[1:]) > 0


def test_names_are_used_only_where_they_are_given():
    image, labels = small_case(1)
    predictor = Predictor([LevelNetwork(click=1.6)], small_plans())
    predictor.set_image(image, SPACING)
    whole = [[0, 0, 0], list(labels.shape)]
    boxes = {1: np.array(whole), 2: np.array(whole)}
    without = segment_in_rounds(predictor, labels, boxes, SPACING)
    named = segment_in_rounds(predictor, labels, boxes, SPACING, names={1: "liver", 2: "spleen"})
    assert named.dice[0] > 0.8 > without.dice[0]  # the box alone finds both labels as one


def test_where_masks_meet_the_smaller_lies_on_top_and_nothing_is_in_ignored_voxels():
    predictor = Predictor([LevelNetwork(click=1.6)], small_plans())
    predictor.set_image(small_case(0)[0], SPACING)
    sessions = {value: predictor.new_object() for value in (4, 7)}
    large, small = np.zeros((2, *small_case(0)[1].shape), bool)
    large[1:5, 2:9, 2:9], small[2:4, 3:12, 5:7] = True, True
    sessions[4].set_mask(large)
    sessions[7].set_mask(small)
    expected = np.where(small, 7, np.where(large, 4, 0))
    np.testing.assert_array_equal(merged(sessions), expected)
    np.testing.assert_array_equal(
        merged({7: sessions[7], 4: sessions[4]}, ignored=large), np.where(large, 0, expected)
    )


def test_what_is_ignored_is_not_clicked():
    image, labels = small_case(2)
    predictor = Predictor([LevelNetwork(click=1.6)], small_plans())
    predictor.set_image(image, SPACING)
    ignored = labels == 2
    reference = np.where(ignored, 0, labels)
    boxes = {1: np.array([[0, 0, 0], list(labels.shape)])}
    blind = segment_in_rounds(predictor, reference, boxes, SPACING)
    seeing = segment_in_rounds(predictor, reference, boxes, SPACING, ignored=ignored)
    assert seeing.dice[0] > blind.dice[0] and seeing.dice[-1] > blind.dice[-1]


def test_images_without_objects_and_boxes_for_a_part_of_them_are_refused():
    image, labels = small_case(3)
    predictor = Predictor([LevelNetwork()], small_plans())
    predictor.set_image(image, SPACING)
    with pytest.raises(ValueError, match="the ground truth has no object"):
        segment_in_rounds(predictor, labels * 0, {}, SPACING)
    with pytest.raises(ValueError, match=r"objects \[2\] have no box"):
        segment_in_rounds(predictor, labels, {1: np.array([[0, 0, 0], [2, 2, 2]])}, SPACING)

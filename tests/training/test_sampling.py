import dataclasses
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from promptseg.boxes import mask_box
from promptseg.files import read_json, write_json
from promptseg.preprocessing.dataset import PreprocessedDataset
from promptseg.training.sampling import (
    Sample,
    TrainingSteps,
    carry_box,
    cut_patch,
    draw_patch_start,
    label_boxes,
    mirrored,
    training_queries,
    zoom_in,
    zoom_out,
)
from promptseg.training.settings import TrainingSettings

LABELS = {"organ": 1, "lesion": 3}


@given(
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    patch_size=st.tuples(*[st.integers(1, 7)] * 3),
    start=st.tuples(*[st.integers(-6, 8)] * 3),
)
@settings(max_examples=150, deadline=None)
def test_a_cut_patch_equals_slicing_a_volume_padded_on_all_sides(shape, patch_size, start):
    volume = np.arange(1, 1 + 2 * np.prod(shape)).reshape(2, *shape)
    padded = np.pad(volume, [(0, 0)] + [(20, 20)] * 3)
    slices = tuple(slice(20 + s, 20 + s + w) for s, w in zip(start, patch_size, strict=True))

    cut = cut_patch(volume, shape, np.array(start), patch_size)

    np.testing.assert_array_equal(cut, padded[(slice(None), *slices)])


@given(
    shape=st.tuples(*[st.integers(1, 30)] * 3),
    patch_size=st.tuples(*[st.integers(2, 16)] * 3),
    seed=st.integers(0, 99),
    share=st.tuples(*[st.floats(0, 0.99)] * 3),
)
@settings(max_examples=150, deadline=None)
def test_a_drawn_patch_holds_its_voxel_and_leaves_the_volume_only_when_larger(
    shape, patch_size, seed, share
):
    rng = np.random.default_rng(seed)
    voxel = [int(s * n) for s, n in zip(share, shape, strict=True)]
    for locations in (None, [voxel]):
        start = draw_patch_start(shape, patch_size, locations, rng)
        for axis, (n, w) in enumerate(zip(shape, patch_size, strict=True)):
            low, high = min(0, n - w), max(0, n - w)
            assert low <= start[axis] <= high
            if locations is not None:
                assert start[axis] <= voxel[axis] < start[axis] + w


def test_a_box_is_carried_with_its_object():
    # The object moves from z 10..20 to z 30..45, from y 0..4 to 2..4 and not along x. The box
    # reached 2 beyond it in z, and began 1 after it; in y it was a voxel narrower on both sides.
    before = np.array([[10, 0, 0], [20, 4, 5.0]])
    after = np.array([[30, 2, 0], [45, 4, 5.0]])
    box = np.array([[11, 1, 0], [22, 3, 5.0]])
    moved = carry_box(box, before, after)
    np.testing.assert_allclose(moved, [[31, 2.5, 0], [47, 3.5, 5]])


def test_a_box_of_a_label_that_the_patch_cuts_keeps_its_size():
    # A label of z 38..98, of which the patch of 40 shows 2 voxels, and 9 after a rotation.
    before, after = np.array([[38, 9, 9], [40, 20, 20]]), np.array([[31, 9, 9], [40, 20, 20]])
    moved = carry_box(np.array([[38, 9, 9], [98, 20, 20]]), before, after)
    np.testing.assert_allclose(moved, [[31, 9, 9], [98, 20, 20]])


@given(st.lists(st.integers(0, 9), min_size=18, max_size=18))
@settings(max_examples=200, deadline=None)
def test_a_carried_box_is_never_empty(numbers):
    corners = np.array(numbers).reshape(2, 3, 3)
    box, before, after = np.stack([corners.min(axis=0), corners.max(axis=0) + 1], axis=1)
    moved = carry_box(box, before, after)
    assert (moved[0] < moved[1]).all()


def sample_with(organ: tuple | None, auto: dict | None = None) -> Sample:
    """A patch that shows the whole of an organ, or none of it."""
    segmentation = np.zeros((8, 10, 12), np.uint8)
    if organ:
        segmentation[organ] = 1
    boxes = label_boxes(segmentation, {"organ": 1})
    return Sample(
        image=np.zeros((1, 8, 10, 12), np.uint8),
        segmentation=segmentation,
        whole_boxes={name: box for name, box in boxes.items() if box is not None},
        auto_boxes=auto or {},
    )


def test_present_labels_are_asked_twice_and_absent_ones_by_name_alone():
    sample = sample_with(np.s_[2:5, 3:7, 4:9])
    rng = np.random.default_rng(0)
    asked = training_queries(sample, 1, LABELS, TrainingSettings(prompt_dropout=0.0), rng)

    assert [value for _, value in asked] == [1, 1, 3]
    (by_name, _), (prompted, _), (absent, _) = asked
    assert by_name.label == 0 and by_name.box is None and not len(by_name.points)
    assert absent.label == 1 and absent.box is None
    assert prompted.image == 1 and prompted.label == 0
    # a side of 3, 4, 5 voxels is off by at most a tenth on each face
    off = np.abs(prompted.box - [[2, 3, 4], [5, 7, 9]])
    assert (off <= np.array([0.3, 0.4, 0.5]) + 1e-9).all() and off.max() > 0


def test_prompt_dropout_leaves_out_one_type_and_never_all():
    sample = sample_with(np.s_[2:5, 3:7, 4:9])
    rng = np.random.default_rng(1)
    settings_ = TrainingSettings(prompt_dropout=1.0)
    left_out = {"label": 0, "box": 0, "points": 0}
    for _ in range(200):
        query = training_queries(sample, 0, {"organ": 1}, settings_, rng)[1][0]
        has = {"label": query.label == 0, "box": query.box is not None, "points": len(query.points)}
        assert has["box"] or has["points"]
        missing = [kind for kind in ("label", "box") if not has[kind]] or ["points"]
        assert len(missing) == 1
        assert not (missing == ["points"] and has["points"])
        left_out[missing[0]] += 1
    assert left_out["label"] > 60 and left_out["box"] > 10 and left_out["points"] > 10


def test_points_lie_inside_and_outside_as_their_labels_say():
    sample = sample_with(np.s_[2:5, 3:7, 4:9])
    mask = sample.segmentation == 1
    rng = np.random.default_rng(2)
    seen = 0
    for _ in range(50):
        query = training_queries(sample, 0, {"organ": 1}, TrainingSettings(), rng)[1][0]
        for point, label in zip(query.points, query.point_labels, strict=True):
            assert mask[tuple(point)] == bool(label)
            seen += 1
    assert seen > 30


def test_automatic_boxes_are_used_at_their_share():
    auto = np.array([[0, 0, 0], [8, 10, 12.0]])
    sample = sample_with(np.s_[2:5, 3:7, 4:9], {"organ": auto})
    rng = np.random.default_rng(3)
    for share, expected in ((0.0, 0), (1.0, 100)):
        chosen = TrainingSettings(auto_box_fraction=share, prompt_dropout=0.0)
        boxes = [
            training_queries(sample, 0, {"organ": 1}, chosen, rng)[1][0].box for _ in range(100)
        ]
        assert sum(np.array_equal(box, auto) for box in boxes) == expected


def test_zoom_in_cuts_image_segmentation_and_boxes_alike(planned_case):
    folder, plans, _ = planned_case
    dataset = PreprocessedDataset(folder)
    shape = dataset.properties("case_1")["shape"]
    segmentation = np.asarray(dataset.segmentation("case_1")[:])
    tight = mask_box(segmentation == 1)
    # raw and preprocessed grids are the same here, so a raw box is a preprocessed one
    assert list(shape) == dataset.properties("case_1")["raw"]["shape"]
    start = np.array([2, -3, 1])

    boxes = {"case_1": {"label_1": [tight.tolist()]}}
    sample = zoom_in(dataset, "case_1", plans, boxes, start)

    np.testing.assert_array_equal(
        sample.segmentation, cut_patch(segmentation, shape, start, plans.patch_size)
    )
    expected = np.clip(tight - start, 0, plans.patch_size)
    np.testing.assert_allclose(sample.auto_boxes["label_1"], expected)
    np.testing.assert_array_equal(mask_box(sample.segmentation == 1), expected)


def test_zoom_out_shows_the_whole_volume_in_one_patch(planned_case):
    folder, plans, _ = planned_case
    small = dataclasses.replace(plans, patch_size=(8, 8, 8))
    dataset = PreprocessedDataset(folder)
    segmentation = np.asarray(dataset.segmentation("case_0")[:])
    tight = mask_box(segmentation == 2)

    sample = zoom_out(dataset, "case_0", small, {"case_0": {"label_2": [tight.tolist()]}})

    assert sample.image.shape == (1, 8, 8, 8)
    scaled = tight * (8 / np.array(segmentation.shape))
    np.testing.assert_allclose(sample.auto_boxes["label_2"], scaled)
    # resampled labels lie in the scaled box, to within half a voxel of rounding
    found = mask_box(sample.segmentation == 2)
    assert np.abs(found - scaled).max() <= 0.75


def steps_of(planned_case, **changes) -> TrainingSteps:
    folder, plans, auto_boxes = planned_case
    case_ids = PreprocessedDataset(folder).case_ids
    return TrainingSteps(folder, case_ids, plans, TrainingSettings(**changes), auto_boxes)


def same(a, b) -> bool:
    return torch.equal(a.image, b.image) and torch.equal(a.prompts.boxes, b.prompts.boxes)


def test_a_step_depends_on_seed_and_number_alone(planned_case):
    first, second = steps_of(planned_case), steps_of(planned_case)
    state = np.random.get_state()[1].copy()
    late_first = second[5]
    assert same(first[3], second[3])
    assert same(first[5], late_first)
    assert not same(first[3], first[4])
    assert not same(first[3], steps_of(planned_case, seed=1)[3])
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # global state is put back


def test_every_case_comes_once_in_each_round(planned_case):
    steps = steps_of(planned_case)
    count = len(steps.case_ids)
    for round_ in range(3):
        cases = [steps._case(round_ * count + i) for i in range(count)]
        assert sorted(cases) == steps.case_ids


def test_targets_are_the_voxels_of_the_value_asked_for(planned_case):
    batch = steps_of(planned_case)[0]
    targets = batch.targets()
    for i, (image, value) in enumerate(
        zip(batch.prompts.image_index.tolist(), batch.values.tolist(), strict=True)
    ):
        assert torch.equal(targets[i], batch.segmentation[image] == value)
    assert targets.any()


def test_images_stay_in_range_and_labels_stay_labels_under_augmentation(planned_case):
    steps = steps_of(planned_case)
    for step in range(8):
        batch = steps[step]
        assert 0 <= batch.image.min() and batch.image.max() <= 255
        assert set(batch.segmentation.unique().tolist()) <= {0, 1, 2}
        assert batch.image.shape[2:] == steps.plans.patch_size


@pytest.mark.parametrize("dtype", [np.uint8, np.int16])
def test_label_boxes_are_those_of_each_labels_mask(dtype):
    segmentation = np.zeros((6, 9, 11), dtype)
    segmentation[1:3, 4, 2:9] = 3
    segmentation[5, 8, 10] = segmentation[0, 2, 1] = 40
    segmentation[3, 0, 5] = 77  # no label of these
    boxes = label_boxes(segmentation, {"b": 40, "absent": 2, "a": 3, "far": 100})
    assert list(boxes) == ["b", "absent", "a", "far"]
    assert boxes["absent"] is None and boxes["far"] is None
    for name, value in (("a", 3), ("b", 40)):
        np.testing.assert_array_equal(boxes[name], mask_box(segmentation == value))
    assert label_boxes(segmentation, {}) == {}


def test_a_box_is_drawn_round_the_whole_label_and_clipped_to_the_patch():
    # Of a label of z 2..42 the patch shows z 2..8: a box is off by up to 4 below, not by 0.6, and
    # reaches the patch's end.
    sample = sample_with(np.s_[2:8, 3:7, 4:9])
    sample.whole_boxes["organ"] = np.array([[2, 3, 4], [42, 7, 9.0]])
    rng = np.random.default_rng(4)
    chosen = TrainingSettings(prompt_dropout=0.0)
    boxes = np.array(
        [training_queries(sample, 0, {"organ": 1}, chosen, rng)[1][0].box for _ in range(200)]
    )
    assert (boxes[:, 1, 0] == 8).all()
    assert boxes[:, 0, 0].min() < 1 and 4 < boxes[:, 0, 0].max() <= 6
    assert np.abs(boxes[:, :, 1] - [3, 7]).max() <= 0.4 + 1e-9


def test_boxes_of_whole_labels_follow_the_patch(planned_case):
    folder, plans, _ = planned_case
    dataset = PreprocessedDataset(folder)
    segmentation = np.asarray(dataset.segmentation("case_1")[:])
    start = mask_box(segmentation == 1)[0] + 1  # cuts the label's lower faces off
    sample = zoom_in(dataset, "case_1", plans, {}, start)
    assert (mask_box(sample.segmentation == 1)[0] == 0).all()
    assert set(sample.whole_boxes) == set(plans.labels)
    for name, value in plans.labels.items():
        expected = mask_box(segmentation == value) - start
        np.testing.assert_array_equal(sample.whole_boxes[name], expected)

    small = dataclasses.replace(plans, patch_size=(8, 8, 8))
    whole = zoom_out(dataset, "case_1", small, {}).whole_boxes["label_2"]
    expected = mask_box(segmentation == 2) * (8 / np.array(segmentation.shape))
    np.testing.assert_allclose(whole, expected)


@pytest.mark.parametrize("augment", [False, True])
def test_the_label_that_a_patch_is_drawn_for_is_asked_for(planned_case, augment):
    # One label is asked for in each patch; the two stand in for many, of which some are small.
    folder, plans, auto_boxes = planned_case
    chosen = TrainingSettings(
        labels_per_image=1, foreground_fraction=1.0, zoom_out_fraction=0.0, augment=augment
    )
    dataset = PreprocessedDataset(folder)
    steps = TrainingSteps(folder, dataset.case_ids, plans, chosen, auto_boxes)
    asked = [int(value) for step in range(6) for value in steps[step].values.unique()]
    assert sorted(set(asked)) == sorted(plans.labels.values())

    scheduled = []
    steps._sought = lambda case_id, number, rng: (
        case_id,
        scheduled.append([1, 2][number % 2]) or scheduled[-1],
    )
    for step in range(8):
        batch = steps[step]
        for image, wanted in enumerate(scheduled[-2:]):
            if (batch.segmentation[image] == wanted).any():
                assert set(batch.values[batch.prompts.image_index == image].tolist()) == {wanted}


def test_absent_labels_are_asked_for_also_among_many():
    segmentation = np.zeros((8, 10, 12), np.uint8)
    for value in range(1, 6):
        segmentation[value] = value
    labels = {str(value): value for value in range(1, 9)}  # 6, 7 and 8 are not there
    boxes = label_boxes(segmentation, labels)
    sample = Sample(
        image=segmentation[None],
        segmentation=segmentation,
        whole_boxes={name: box for name, box in boxes.items() if box is not None},
        auto_boxes={},
    )
    rng = np.random.default_rng(5)
    chosen = TrainingSettings(labels_per_image=3)
    asked = [
        list(dict.fromkeys(v for _, v in training_queries(sample, 0, labels, chosen, rng, 5)))
        for _ in range(200)
    ]
    assert all(len(values) == 3 and values[0] == 5 and values[1] < 6 for values in asked)
    last = [values[2] for values in asked]
    assert 70 < sum(value > 5 for value in last) < 130
    assert set(last) == {1, 2, 3, 4, 6, 7, 8}


def test_a_mirrored_sample_is_mirrored_in_all_its_parts():
    sample = sample_with(np.s_[2:5, 3:7, 4:9], {"organ": np.array([[1, 2, 3], [9, 8, 12.0]])})
    sample.whole_boxes["organ"] = np.array([[2, 3, 4], [42, 7, 9.0]])
    sample.image[0] = 100 * sample.segmentation
    turned = mirrored(sample, [0, 2])
    np.testing.assert_array_equal(turned.image[0], 100 * turned.segmentation)
    # 8 slices: 2..5 is 3..6 from the other end; 12 columns: 4..9 is 3..8
    np.testing.assert_array_equal(mask_box(turned.segmentation == 1), [[3, 3, 3], [6, 7, 8]])
    np.testing.assert_array_equal(turned.whole_boxes["organ"], [[-34, 3, 3], [6, 7, 8]])
    np.testing.assert_array_equal(turned.auto_boxes["organ"], [[-1, 2, 0], [7, 8, 9]])
    again = mirrored(turned, [0, 2])
    np.testing.assert_array_equal(again.segmentation, sample.segmentation)
    np.testing.assert_array_equal(again.whole_boxes["organ"], sample.whole_boxes["organ"])


def test_training_mirrors_along_the_axes_that_it_was_told(planned_case):
    # Without anything else drawn at random, a batch's images are those of the volumes or mirrored.
    folder, plans, auto_boxes = planned_case
    chosen = TrainingSettings(mirror_axes=(1,), foreground_fraction=0.0, zoom_out_fraction=0.0)
    dataset = PreprocessedDataset(folder)
    steps = TrainingSteps(folder, dataset.case_ids, plans, chosen, auto_boxes)
    steps.transform = lambda data, seg: {"data": data, "seg": seg}
    plain = dataclasses.replace(chosen, augment=False)
    expected = TrainingSteps(folder, dataset.case_ids, plans, plain, auto_boxes)
    seen = []
    for step in range(8):
        made, given_ = steps[step], expected[step]
        for image, before in zip(made.segmentation, given_.segmentation, strict=True):
            turned = before.flip(1)
            assert torch.equal(image, before) or torch.equal(image, turned)
            seen.append(torch.equal(image, turned))
    assert 2 <= sum(seen) <= 14


@pytest.fixture
def steps_with(planned_case, tmp_path):
    """Makes steps of cases that are said to have some of the labels 1 to 4 only."""
    folder, plans, _ = planned_case
    plans = dataclasses.replace(plans, labels={f"label_{value}": value for value in (1, 2, 3, 4)})
    shutil.copytree(folder, tmp_path / "cases")

    def make(labels, **changes):
        for case_id, values in labels.items():
            path = tmp_path / "cases" / f"{case_id}.json"
            properties = read_json(folder / path.name)
            properties["labels"] = {str(value): properties["labels"]["2"] for value in values}
            write_json(path, properties)
        chosen = TrainingSettings(
            foreground_fraction=1.0, zoom_out_fraction=0.0, augment=False, **changes
        )
        return TrainingSteps(tmp_path / "cases", list(labels), plans, chosen, {})

    return make


def test_labels_have_their_turns_in_patches_of_cases_that_have_them(steps_with):
    cases = {"case_0": [1, 2, 3, 4], "case_1": [1, 3], "case_2": []}

    def drawn(share):
        steps = steps_with(cases, rare_label_fraction=share)
        samples = [steps._sample(n, np.random.default_rng(n)) for n in range(600)]
        for sample, value in samples:
            assert value is None or f"label_{value}" in sample.whole_boxes
        return {v: sum(value == v for _, value in samples) / 600 for v in (1, 2, 3, 4, None)}

    # case_1 has the turns of labels 2 and 4 too, which fall to either of its own
    shares = drawn(0.0)
    assert shares[None] == pytest.approx(1 / 3)
    del shares[None]
    assert shares == pytest.approx({1: 1 / 4, 2: 1 / 12, 3: 1 / 4, 4: 1 / 12}, abs=0.05)
    shares = drawn(1.0)  # every case gives way
    assert shares == pytest.approx({1: 0.25, 2: 0.25, 3: 0.25, 4: 0.25, None: 0})


def test_a_rare_label_is_looked_for_where_it_is(steps_with):
    cases = {f"case_{i}": [1, 2] if i == 3 else [1] for i in range(6)}
    steps = steps_with(cases, rare_label_fraction=0.25)
    scheduled = [steps._sample(n, np.random.default_rng(n))[1] for n in range(600)]
    # labels 2 to 4 have three of four turns; of label 2's, case_3 has a sixth, and a quarter of
    # the others gives way; a turn of 3 or 4 in case_3 is one of its two labels'
    expected = 0.25 * (1 / 6 + 5 / 6 / 4) + 0.5 / 6 / 2
    assert scheduled.count(2) / 600 == pytest.approx(expected, abs=0.05)
    assert scheduled.count(1) / 600 == pytest.approx(1 - expected, abs=0.05)

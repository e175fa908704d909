import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from promptseg.boxes import label_boxes
from promptseg.networks.prompt_encoder import NEW_OBJECT, NO_LABEL
from promptseg.training.patches import Sample
from promptseg.training.sampling import (
    NAMED,
    UNNAMED,
    draw_patch_start,
    prompted_query,
    training_queries,
)
from promptseg.training.settings import TrainingSettings
from tests.training.samples import sample_with

LABELS = {"organ": 1, "lesion": 3}


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


ORGAN = np.s_[2:5, 3:7, 4:9]  # of a patch of 8x10x12 voxels
BOX = np.array([[2, 3, 4], [5, 7, 9.0]])


def asked(kind, sample=None, auto=None, seed=0, label=0, **changes):
    """A query of one kind about the organ."""
    sample = sample or sample_with(ORGAN)
    mask = sample.segmentation == 1
    box = sample.whole_boxes["organ"]
    rng = seed if isinstance(seed, np.random.Generator) else np.random.default_rng(seed)
    return prompted_query(kind, mask, box, auto, 1, label, TrainingSettings(**changes), rng)


def test_chances_of_first_prompts_add_up():
    assert sum(NAMED.values()) == 1 and sum(UNNAMED.values()) == 1
    assert "name" not in UNNAMED


def test_a_name_is_no_more_than_that():
    query = asked("name", label=1)
    assert query.is_name and query.label == 1 and query.image == 1


def test_a_box_is_off_by_a_tenth_or_loose_by_a_quarter():
    rng, loose = np.random.default_rng(0), 0
    for _ in range(300):
        query = asked("box", seed=rng, prompt_dropout=0.0)
        off = (query.box - BOX) / np.array([3, 4, 5])
        if np.abs(off).max() > 0.1 + 1e-9 or (off * [[-1], [1]] >= 0).all():
            assert (off * [[-1], [1]] >= 0).all() and np.abs(off).max() <= 0.25 + 1e-9
            loose += 1
    assert 50 < loose < 130  # three tenths, and now and then a jittered one that lies outside


def test_prompt_dropout_leaves_out_the_box_of_those_with_points_and_never_all():
    for dropout, expected in ((0.0, 0), (0.5, 0.5), (1.0, 1)):
        rng = np.random.default_rng(1)
        queries = [asked("box", seed=rng, prompt_dropout=dropout) for _ in range(400)]
        with_points = [query for query in queries if len(query.points)]
        assert 80 < len(with_points) < 160  # three tenths
        assert all(query.box is not None for query in queries if not len(query.points))
        lost = np.mean([query.box is None for query in with_points])
        assert abs(lost - expected) < 0.15 and (0 < expected < 1 or lost == expected)


def test_points_lie_inside_and_outside_as_their_labels_say():
    sample = sample_with(ORGAN)
    mask = sample.segmentation == 1
    rng, seen = np.random.default_rng(2), {0: 0, 1: 0}
    for kind in ("box", "click", "scribble"):
        for _ in range(60):
            query = asked(kind, sample, seed=rng)
            for point, label in zip(query.points, query.point_labels, strict=True):
                assert mask[tuple(point)] == bool(label)
                seen[label] += 1
            if kind != "box":
                assert query.box is None and len(query.points)
                assert kind == "scribble" or len(query.points) == 1
    assert seen[0] > 10 and seen[1] > 150


def test_a_flat_box_surrounds_the_object_on_a_slice_that_shows_much_of_it():
    sample = sample_with(ORGAN)
    mask = sample.segmentation == 1
    rng, axes = np.random.default_rng(3), []
    for _ in range(60):
        query = asked("flat box", sample, seed=rng)
        assert query.box is None and not len(query.points)
        drawn = query.region != 0
        (axis,) = (a for a in range(3) if len(np.unique(np.nonzero(drawn)[a])) == 1)
        number = np.nonzero(drawn)[axis][0]
        assert np.take(drawn, number, axis).all()  # the whole slice is inside or outside
        assert np.take(mask, number, axis).any()
        shown = np.take(mask, number, axis) & (np.take(query.region, number, axis) == 1)
        assert shown.sum() >= 0.5 * np.take(mask, number, axis).sum()
        axes.append(axis)
    assert axes.count(0) > 30 and set(axes) == {0, 1, 2}  # mostly across the patch's short side


def test_automatic_boxes_are_used_at_their_fraction():
    auto = np.array([[0, 0, 0], [8, 10, 12.0]])
    for fraction, expected in ((0.0, 0), (1.0, 100)):
        rng = np.random.default_rng(3)
        boxes = [
            asked("box", auto=auto, seed=rng, auto_box_fraction=fraction, prompt_dropout=0.0).box
            for _ in range(100)
        ]
        assert sum(np.array_equal(box, auto) for box in boxes) == expected


def test_a_box_is_drawn_around_the_whole_label_and_clipped_to_the_patch():
    # Of a label of z 2..42 the patch shows z 2..8: a box is off by up to 4 below, not by 0.6, or
    # by 10 where it is loose, and reaches the patch's end.
    sample = sample_with(np.s_[2:8, 3:7, 4:9])
    sample.whole_boxes["organ"] = np.array([[2, 3, 4], [42, 7, 9.0]])
    rng = np.random.default_rng(4)
    boxes = np.array([asked("box", sample, seed=rng, prompt_dropout=0.0).box for _ in range(200)])
    assert (boxes[:, 1, 0] == 8).all()
    assert boxes[:, 0, 0].min() < 1 and 4 < boxes[:, 0, 0].max() <= 6
    assert np.abs(boxes[:, :, 1] - [3, 7]).max() <= 1 + 1e-9


def many_labels():
    """A patch with the labels 1 to 5 of 1 to 8."""
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
    return sample, labels


def test_the_scheduled_label_comes_first_and_others_after_it():
    sample, labels = many_labels()
    rng = np.random.default_rng(5)
    chosen, seen = TrainingSettings(unnamed_fraction=0.0), set()
    for _ in range(200):
        queries = training_queries(sample, 2, labels, chosen, rng, scheduled="5", count=3)
        assert len(queries) == 3 and all(query.image == 2 for query, _ in queries)
        first, mask = queries[0]
        assert first.label == 4 and (mask == (sample.segmentation == 5)).all()
        values = [query.label + 1 for query, _ in queries]
        assert len(set(values)) == 3
        for value, (_, target) in zip(values, queries, strict=True):
            assert (target == (sample.segmentation == value)).all()
        seen.update(values)
    assert seen == set(range(1, 9))


def test_absent_labels_are_asked_for_by_name_alone():
    sample, labels = many_labels()
    rng, absent = np.random.default_rng(6), 0
    chosen = TrainingSettings(unnamed_fraction=0.0)
    for _ in range(200):
        for query, target in training_queries(sample, 0, labels, chosen, rng, "1", 3):
            if query.label >= 5:
                assert query.is_name and not target.any()
                absent += 1
    assert 20 < absent < 65  # of 400 that are not the first, a tenth


def test_a_patch_without_labels_gets_one_by_its_name():
    sample = sample_with(None)
    rng = np.random.default_rng(7)
    chosen = TrainingSettings(unnamed_fraction=0.0)
    for _ in range(20):
        for query, target in training_queries(sample, 0, LABELS, chosen, rng, count=2):
            assert query.is_name and 0 <= query.label < 2 and not target.any()
    # an image of one intensity has no pieces either, which objects without a name could be
    always = TrainingSettings(unnamed_fraction=1.0)
    for query, target in training_queries(sample, 0, LABELS, always, rng, count=5):
        assert query.is_name and not target.any()


def test_objects_without_a_name_are_prompted_at_their_fraction_and_never_by_name():
    sample, labels = many_labels()
    for fraction in (0.0, 0.35, 1.0):
        rng, unnamed = np.random.default_rng(8), []
        chosen = TrainingSettings(unnamed_fraction=fraction)
        for _ in range(300):
            ((query, target),) = training_queries(sample, 0, labels, chosen, rng)
            if query.label < 0:
                assert not query.is_name and target.any()
                unnamed.append(query.label)
        assert abs(len(unnamed) / 300 - fraction) < 0.08
        assert not unnamed or set(unnamed) == {NO_LABEL, NEW_OBJECT}

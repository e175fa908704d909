import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from promptseg.boxes import label_boxes
from promptseg.training.patches import Sample
from promptseg.training.sampling import draw_patch_start, training_queries
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


def test_automatic_boxes_are_used_at_their_fraction():
    auto = np.array([[0, 0, 0], [8, 10, 12.0]])
    sample = sample_with(np.s_[2:5, 3:7, 4:9], {"organ": auto})
    rng = np.random.default_rng(3)
    for share, expected in ((0.0, 0), (1.0, 100)):
        chosen = TrainingSettings(auto_box_fraction=share, prompt_dropout=0.0)
        boxes = [
            training_queries(sample, 0, {"organ": 1}, chosen, rng)[1][0].box for _ in range(100)
        ]
        assert sum(np.array_equal(box, auto) for box in boxes) == expected


def test_a_box_is_drawn_around_the_whole_label_and_clipped_to_the_patch():
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

"""Sessions with a network that changes a mask exactly where a prompt is, so that all is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from promptseg.boxes import box_slices, mask_box
from promptseg.inference.predictor import Predictor
from promptseg.inference.session import Session
from tests.inference.fakes import LEVELS, LevelNetwork
from tests.saved_model import untrained
from tests.small_plans import small_plans

SPACING = (2.5, 1.0, 0.75)  # the plans'
OTHER_SPACING = (4.0, 1.3, 0.5)
SMALL, LARGE = (7, 11, 14), (11, 30, 41)  # patch 8x12x16
REACH = 2.5  # voxels of the preprocessed image that a click changes


def blocks(shape) -> tuple[np.ndarray, np.ndarray]:
    """An image of two blocks, and its labels 1 and 2."""
    labels = np.zeros(shape, np.uint8)
    z, y, x = shape
    labels[1 : z - 2, 2 : y - 3, 1 : x // 2 - 1] = 1
    labels[2 : z - 1, 1 : y - 2, x // 2 + 1 : x - 2] = 2
    return np.choose(labels, [0, LEVELS[0], LEVELS[1]]).astype(np.float32), labels


def predictor_of(shape=SMALL, spacing=SPACING, network=None, **options) -> Predictor:
    model = Predictor([network or LevelNetwork(click=REACH)], small_plans(), **options)
    model.set_image(blocks(shape)[0], spacing)
    return model


def session_of(label=None, shape=SMALL, spacing=SPACING, **options) -> Session:
    return predictor_of(shape, spacing, **options).new_object(label)


def ball(point, shape=SMALL) -> np.ndarray:
    """What a click changes where both grids are the same."""
    return np.sum((np.indices(shape).T - np.asarray(point)) ** 2, axis=-1).T < REACH**2


def box_mask(box, shape=SMALL) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[box_slices(np.asarray(box))] = True
    return mask


def step(change, *arguments, **named) -> tuple[np.ndarray, np.ndarray | None]:
    """Call a session's method; what it returned, after a check that the box is that of changes."""
    session = change.__self__
    before = session.mask.copy()
    mask, box = change(*arguments, **named)
    assert mask is session.mask and mask.dtype == bool and mask.shape == before.shape
    expected = mask_box(mask != before)
    if expected is None:
        assert box is None
    else:
        np.testing.assert_array_equal(box, expected)
    return mask, box


# what each prompt does


@pytest.mark.parametrize("shape", [SMALL, LARGE])
def test_a_session_starts_with_what_the_name_gives_or_with_nothing(shape):
    _, labels = blocks(shape)
    for label, value in (("liver", 1), ("spleen", 2), ("lesion", 5)):
        session = session_of(label, shape)
        np.testing.assert_array_equal(session.mask, labels == value)
        assert session.predicted_iou == pytest.approx(1 / (1 + np.exp(-2)))
        assert session.prompts.is_empty
    nothing = session_of(None, shape)
    assert not nothing.mask.any() and nothing.predicted_iou is None and nothing.prompts.is_empty


@pytest.mark.parametrize("shape", [SMALL, LARGE])
@pytest.mark.parametrize("label", ["liver", None])
def test_clicks_change_the_mask_where_they_are_and_nowhere_else(shape, label):
    session = session_of(label, shape)
    expected = blocks(shape)[1] == 1 if label else np.zeros(shape, bool)
    clicks = [((3, 5, 4), False), ((4, 6, 9), True), ((2, 2, 9), True), ((4, 7, 8), False)]
    for number, (point, foreground) in enumerate(clicks, 1):
        mask, box = step(session.add_point, point, foreground=foreground)
        # all clicks so far are prompts, and the fake lets the last of them count
        for earlier, kind in clicks[:number]:
            expected[ball(earlier, shape)] = kind
        np.testing.assert_array_equal(mask, expected)
        assert session.prompts.points.tolist() == [list(p) for p, _ in clicks[:number]]
        assert session.prompts.point_labels.tolist() == [int(k) for _, k in clicks[:number]]
        assert session.predicted_iou == pytest.approx(1 / (1 + np.exp(-2)))
    assert box is not None


@pytest.mark.parametrize("spacing", [OTHER_SPACING, (1.2, 2.1, 0.8)])
@pytest.mark.parametrize("shape", [SMALL, LARGE])
def test_on_another_grid_a_click_changes_its_surroundings_alone(shape, spacing):
    session = session_of("liver", shape, spacing)
    assert session._image.shape != shape
    before = session.mask.copy()
    point = np.array([3, 5, 9])
    mask, _ = step(session.add_point, point, foreground=not before[tuple(point)])
    assert mask[tuple(point)] != before[tuple(point)]
    reach = (REACH + 1) * np.divide(shape, session._image.shape) + 1
    far = (np.abs(np.indices(shape).T - point) > reach).any(axis=-1).T
    np.testing.assert_array_equal(mask[far], before[far])
    assert (mask != before).sum() > 3


def test_a_scribble_is_a_line_of_clicks():
    session = session_of()
    mask, _ = step(session.add_scribble, [[3, 5, 2], [3, 5, 10]])
    assert mask[3, 5, 1:12].all() and not mask[3, 5, 13:].any()
    reached = np.abs(np.indices(SMALL).T - (3, 5, 6)) > (REACH, REACH, 4 + REACH)
    assert not mask[reached.any(axis=-1).T].any()
    mask, _ = step(session.add_scribble, [[3, 5, 2]], foreground=False)
    np.testing.assert_array_equal(mask[ball((3, 5, 2))], False)
    assert [len(line) for line in session.prompts.scribbles] == [2, 1]
    assert session.prompts.scribble_labels.tolist() == [1, 0]


@pytest.mark.parametrize("label", ["liver", None])
def test_a_box_on_a_slice_holds_on_that_slice(label):
    session = session_of(label)
    before = session.mask.copy()
    mask, _ = step(session.add_box, [[3, 4, 2], [4, 8, 9]])
    np.testing.assert_array_equal(np.delete(mask, 3, axis=0), np.delete(before, 3, axis=0))
    np.testing.assert_array_equal(mask[3], box_mask([[0, 4, 2], [1, 8, 9]])[0])
    before = mask.copy()
    mask, _ = step(session.add_box, [[1, 5, 1], [5, 6, 12]])  # across y; both are kept
    np.testing.assert_array_equal(np.delete(mask, 5, axis=1), np.delete(before, 5, axis=1))
    assert (
        mask[1:5, 5, 1:12].all() and mask[:, 5].sum() == 4 * 11 and len(session.prompts.boxes) == 2
    )


def test_what_is_drawn_removes_the_rest_of_its_slice_in_every_patch():
    expected = blocks(LARGE)[1] == 1
    expected[:, 15:] |= blocks(LARGE)[1][:, 15:] == 2
    session = session_of(None, LARGE)
    step(session.set_mask, expected)
    mask, _ = step(session.add_box, [[5, 3, 2], [6, 9, 7]])  # a patch has 12x16 voxels there
    expected[5] = box_mask([[0, 3, 2], [1, 9, 7]], LARGE)[0]
    np.testing.assert_array_equal(mask, expected)
    mask, _ = step(session.add_lasso, [[0, 20, 30], [0, 20, 39], [9, 20, 39], [9, 20, 30]])
    np.testing.assert_array_equal(np.delete(mask, 20, axis=1), np.delete(expected, 20, axis=1))
    assert mask[1:9, 20, 31:39].all() and not mask[:, 20, :30].any()


def test_a_lasso_holds_on_its_slice():
    session = session_of("spleen")
    before = session.mask.copy()
    triangle = [[4, 1, 1], [4, 1, 9], [4, 9, 1]]
    mask, _ = step(session.add_lasso, triangle)
    np.testing.assert_array_equal(np.delete(mask, 4, axis=0), np.delete(before, 4, axis=0))
    y, x = np.indices(SMALL[1:])
    inside, outside = (y > 1) & (x > 1) & (y + x < 10), (y < 1) | (x < 1) | (y + x > 10)
    assert mask[4][inside].all() and not mask[4][outside].any()  # the border may be either
    np.testing.assert_array_equal(session.prompts.lassos[0], triangle)


def test_a_box_limits_the_mask_and_another_replaces_it():
    session = session_of("liver", LARGE)
    labels = blocks(LARGE)[1] == 1
    first, second = [[2, 4, 3], [7, 14, 12]], [[5, 10, 8], [10, 29, 20]]
    mask, _ = step(session.add_box, first)
    np.testing.assert_array_equal(mask, labels & box_mask(first, LARGE))
    mask, _ = step(session.add_box, second)
    np.testing.assert_array_equal(mask, labels & box_mask(second, LARGE))
    assert session.prompts.boxes.tolist() == [second]
    flat = [[6, 12, 9], [7, 15, 12]]
    step(session.add_box, flat)
    assert session.prompts.boxes.tolist() == [second, flat]
    mask, _ = step(session.add_box, first)
    assert session.prompts.boxes.tolist() == [flat, first]
    expected = labels & box_mask(first, LARGE)
    expected[6] = box_mask(flat, LARGE)[6] & box_mask(first, LARGE)[6]
    np.testing.assert_array_equal(mask, expected)


def test_a_box_after_clicks_corrects_what_they_gave_and_removes_what_lies_beyond():
    session = session_of(None, LARGE)
    step(session.add_point, (5, 8, 8))
    step(session.add_point, (5, 22, 33))  # in another patch
    mask, _ = step(session.add_box, [[2, 3, 4], [9, 14, 14]])
    # the click in the box stays, and so does what the fake adds at a click of any kind
    np.testing.assert_array_equal(mask[:, :14], ball((5, 8, 8), LARGE)[:, :14])
    assert not mask[:, 17:].any()


def test_a_box_of_an_object_without_a_name_finds_what_is_in_it():
    session = session_of(None, LARGE)
    box = [[1, 2, 3], [8, 20, 35]]  # of both blocks a part
    mask, _ = step(session.add_box, box)
    np.testing.assert_array_equal(mask, (blocks(LARGE)[1] > 0) & box_mask(box, LARGE))


def test_boxes_in_an_image_of_one_slice_replace_each_other():
    model = Predictor([LevelNetwork(click=REACH)], small_plans())
    image = np.full((1, 30, 41), LEVELS[0], np.float32)
    image[0, 0, 0] = 0
    model.set_image(image, SPACING)
    session = model.new_object("liver")
    for box in ([[0, 2, 3], [1, 9, 12]], [[0, 12, 20], [1, 25, 40]]):
        mask, _ = step(session.add_box, box)
        np.testing.assert_array_equal(mask, box_mask(box, (1, 30, 41)))
        assert session.prompts.boxes.tolist() == [box]
    mask, _ = step(session.add_box, [[0, 14, 0], [1, 15, 30]])  # a row of it
    assert (
        mask[0, 14, 20:30].all() and not mask[0, 14, 30:].any() and len(session.prompts.boxes) == 2
    )


# masks to correct


@pytest.mark.parametrize("shape", [SMALL, LARGE])
@pytest.mark.parametrize("label", ["liver", None])
def test_a_click_corrects_the_mask_that_was_given(shape, label):
    session = session_of(label, shape)
    wanted = np.random.default_rng(0).random(shape) < 0.4
    given = wanted.copy()
    mask, _ = step(session.set_mask, wanted)
    np.testing.assert_array_equal(mask, given)
    assert session.predicted_iou is None
    for point, foreground in (((3, 5, 4), True), ((5, 8, 10), False)):
        mask, _ = step(session.add_point, point, foreground=foreground)
        given[ball(point, shape)] = foreground
        np.testing.assert_array_equal(mask, given)
    assert wanted is not session.mask and session.prompts.mask.sum() == wanted.sum()


@pytest.mark.parametrize("spacing", [OTHER_SPACING, (1.0, 0.4, 0.3)])
def test_details_that_the_networks_grid_cannot_hold_stay_where_no_click_is(spacing):
    shape = (9, 40, 50)
    wanted = np.random.default_rng(1).random(shape) < 0.5  # single voxels
    session = session_of("liver", shape, spacing)
    assert np.prod(session._image.shape) < np.prod(shape) or spacing == OTHER_SPACING
    step(session.set_mask, wanted)
    point = np.array([4, 20, 25])
    mask, box = step(session.add_point, point)
    assert box is not None and mask[tuple(point)]
    reach = (REACH + 1) * np.divide(shape, session._image.shape) + 1
    far = (np.abs(np.indices(shape).T - point) > reach).any(axis=-1).T
    np.testing.assert_array_equal(mask[far], wanted[far])


def test_a_given_mask_makes_earlier_prompts_forgotten():
    session = session_of("liver")
    step(session.add_box, [[1, 2, 1], [4, 8, 5]])
    step(session.add_point, (2, 3, 2), foreground=False)
    wanted = box_mask([[2, 2, 6], [6, 10, 13]])
    step(session.set_mask, wanted)
    assert not len(session.prompts.boxes) and not len(session.prompts.points)
    mask, _ = step(session.add_point, (3, 4, 7), foreground=False)
    np.testing.assert_array_equal(mask, wanted & ~ball((3, 4, 7)))
    mask, _ = step(session.add_box, [[2, 2, 6], [6, 10, 10]])  # the mask is still corrected
    np.testing.assert_array_equal(
        mask, wanted & ~ball((3, 4, 7)) & box_mask([[2, 2, 6], [6, 10, 10]])
    )
    mask, _ = step(session.set_mask, np.zeros(SMALL, np.uint8))
    assert not mask.any() and session.prompts.is_empty
    mask, _ = step(session.add_point, (3, 4, 7))
    np.testing.assert_array_equal(mask, ball((3, 4, 7)))  # and not the liver


@pytest.mark.parametrize("shape", [SMALL, LARGE])
@pytest.mark.parametrize("label", ["spleen", None])
def test_predict_and_a_session_correct_a_mask_alike(shape, label):
    model = predictor_of(shape)
    mask = blocks(shape)[1] == 1
    points, kinds = [(3, 5, 4), (4, 6, 9)], [0, 1]
    session = model.new_object(label)
    session.set_mask(mask)
    for point, kind in zip(points, kinds, strict=True):
        session.add_point(point, foreground=bool(kind))
    name = label or "object"
    found = model.predict(masks={name: mask}, points={name: points}, point_labels={name: kinds})
    if shape == SMALL:
        np.testing.assert_array_equal(found.segmentation > 0, session.mask)
        assert found.labels[name].predicted_iou == pytest.approx(session.predicted_iou)
    else:  # patches that do not show a click say otherwise at its rim
        assert ((found.segmentation > 0) != session.mask).sum() < 0.1 * session.mask.sum()


def test_the_prompts_of_a_session_can_be_given_to_predict():
    model = predictor_of()
    session = model.new_object("spleen")
    session.add_box([[2, 1, 6], [6, 9, 13]])
    session.add_point((3, 4, 7), foreground=False)
    session.add_scribble([[4, 2, 8], [4, 7, 8]])
    found = model.predict_prompts({"spleen": session.prompts}, labels=["spleen"])
    np.testing.assert_array_equal(found.segmentation == 2, session.mask)


# undo and reset

FLAT, SOLID, LASSO = range(3)
positions = st.tuples(*(st.integers(0, n - 1) for n in SMALL))
steps = st.one_of(
    st.tuples(st.just("add_point"), positions, st.booleans()),
    st.tuples(st.just("add_scribble"), st.tuples(positions, positions), st.booleans()),
    st.tuples(st.just("add_box"), positions, st.sampled_from([FLAT, SOLID])),
    st.tuples(st.just("add_lasso"), st.integers(0, SMALL[0] - 1), st.integers(3, 9)),
    st.tuples(st.just("set_mask"), st.integers(0, 3), st.booleans()),
    st.tuples(st.just("undo"), st.none(), st.none()),
)


def apply(session: Session, kind: str, what, how) -> None:
    if kind in ("add_point", "add_scribble"):
        step(getattr(session, kind), what, foreground=how)
    elif kind == "add_box":
        size = (1, 4, 5) if how == FLAT else (3, 4, 5)
        step(session.add_box, [what, np.add(what, np.maximum(size, 1))])
    elif kind == "add_lasso":
        step(session.add_lasso, [[what, 1, 1], [what, 1, how], [what, how, how]])
    elif kind == "set_mask":
        step(session.set_mask, np.random.default_rng(what).random(SMALL) < 0.2 * what)
    else:
        step(session.undo)


def state(session: Session) -> tuple:
    prompts = session.prompts
    mask = None if prompts.mask is None else prompts.mask.tobytes()
    return session.mask.tobytes(), repr(prompts.to_json()), mask, session.predicted_iou


@pytest.mark.parametrize("spacing", [SPACING, OTHER_SPACING])
@pytest.mark.parametrize("label", ["liver", None])
@settings(deadline=None, max_examples=12)
@given(sequence=st.lists(steps, max_size=7))
def test_undo_restores_exactly_what_was_before(label, spacing, sequence):
    model = predictor_of(spacing=spacing)
    session, states, kept = model.new_object(label), [], []
    states.append(state(session))
    for kind, what, how in sequence:
        apply(session, kind, what, how)
        if kind == "undo":
            del states[1:][-1:], kept[-1:]
            states = states[: len(kept) + 1]
        else:
            kept.append((kind, what, how))
            states.append(state(session))
        assert state(session) == states[-1]
    again = model.new_object(label)  # only what was not undone
    for one in kept:
        apply(again, *one)
    assert state(again) == state(session)
    for expected in states[-2::-1]:
        step(session.undo)
        assert state(session) == expected
    step(session.undo)
    assert state(session) == states[0]


@pytest.mark.parametrize("label", ["liver", None])
def test_after_a_reset_a_session_is_as_new(label):
    session, new = session_of(label, LARGE), session_of(label, LARGE)
    start = state(new)
    step(session.add_box, [[2, 4, 3], [7, 14, 12]])
    step(session.add_point, (3, 22, 30))
    mask, _ = step(session.reset)
    assert state(session) == start
    assert session.undo()[1] is None and state(session) == start
    for one in (session, new):
        one.add_point((5, 5, 5))
    assert state(session) == state(new) != start


# what it costs, and what it leaves alone


def test_a_further_click_encodes_no_patch_again():
    network = LevelNetwork(click=REACH)
    session = session_of("liver", LARGE, network=network)
    first = network.encoded
    assert first == 2 * 4 * 5  # every patch, for the name
    decoded = network.decoded
    for point in ((3, 5, 4), (3, 6, 4), (10, 29, 40), (0, 0, 0), (5, 14, 20)):
        step(session.add_point, point)
    assert network.encoded == first and network.decoded == decoded + 5  # one patch each


def test_a_click_without_a_name_takes_one_patch_and_one_further_away_another():
    network = LevelNetwork(click=REACH)
    session = session_of(None, LARGE, network=network)
    assert network.encoded == 0
    for point, patches in (((5, 10, 10), 1), ((6, 12, 12), 1), ((5, 24, 33), 2), ((5, 9, 9), 2)):
        step(session.add_point, point)
        assert network.encoded == patches
    assert network.decoded == 4


def test_sessions_on_one_image_do_not_disturb_each_other():
    model = predictor_of(LARGE)
    alone = model.new_object("liver")
    first, second = model.new_object("liver"), model.new_object("spleen")
    for point in ((3, 5, 4), (5, 14, 20)):
        alone.add_point(point, foreground=False)
        first.add_point(point, foreground=False)
        before = state(first)
        step(second.add_point, point)
        step(second.undo)
        step(second.add_box, [[1, 2, 3], [9, 20, 30]])
        model.predict(boxes={"liver": [[1, 2, 3], [9, 20, 30]]})
        assert state(first) == before == state(alone)


def test_a_session_stays_with_its_image():
    model = predictor_of(LARGE)
    session, same = model.new_object("liver"), predictor_of(LARGE).new_object("liver")
    model.set_image(np.zeros(SMALL, np.float32), OTHER_SPACING)
    for one in (session, same):
        step(one.add_point, (8, 25, 30))
        step(one.add_box, [[2, 4, 3], [10, 28, 32]])
    assert state(session) == state(same) and session.mask.any()
    assert model.new_object("liver").mask.shape == SMALL


def test_mirrored_answers_and_several_networks_give_the_same():
    expected = session_of("liver", LARGE)
    model = Predictor(
        [LevelNetwork(click=REACH), LevelNetwork(click=REACH)], small_plans(), mirror_axes=(0, 2)
    )
    model.set_image(blocks(LARGE)[0], SPACING)
    session = model.new_object("liver")
    for one in (expected, session):
        one.add_point((5, 14, 20))
        one.add_lasso([[4, 3, 3], [4, 3, 9], [4, 9, 3]])
        one.set_mask(one.mask & (np.indices(LARGE)[0] < 7))
        one.add_box([[3, 2, 9], [4, 15, 12]])
    np.testing.assert_array_equal(session.mask, expected.mask)


@pytest.mark.parametrize("encoder", ["residual", "vit"])
@pytest.mark.parametrize("label", ["liver", None])
def test_a_real_network_answers_every_kind_of_prompt(encoder, label):
    network = untrained(encoder)
    generator = torch.Generator().manual_seed(0)
    # begins without effect; little of it, so that what clicks push is still there
    for parameter in network.prompt_head.on_voxels.parameters():
        parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    model = predictor_of(LARGE, OTHER_SPACING, network)
    session, states = model.new_object(label), []
    prompts = [
        ("add_point", [(5, 14, 20)]),
        ("add_box", [[[2, 4, 3], [9, 25, 32]]]),
        ("add_scribble", [[[4, 6, 6], [4, 20, 30]]]),
        ("add_box", [[[5, 6, 6], [6, 20, 28]]]),
        ("add_lasso", [[[3, 6, 6], [3, 20, 20], [3, 20, 6]]]),
        ("set_mask", [blocks(LARGE)[1] == 2]),
        ("add_point", [(6, 15, 30)]),
    ]
    for method, arguments in prompts:
        states.append(state(session))
        step(getattr(session, method), *arguments)
        assert method == "set_mask" or 0 <= session.predicted_iou <= 1
    assert len({mask for mask, *_ in states}) >= len(states) - 1
    found = model.predict_prompts({label or "object": session.prompts}, labels=[label or "object"])
    assert found.segmentation.shape == LARGE
    for expected in reversed(states):
        step(session.undo)
        assert state(session) == expected


# what is refused


def test_unknown_labels_and_no_image_are_refused():
    model = Predictor([LevelNetwork()], small_plans())
    with pytest.raises(RuntimeError, match="no image is set; call set_image first"):
        model.new_object("liver")
    model.set_image(blocks(SMALL)[0], SPACING)
    for label in ("heart", "", "object", "Liver"):
        message = f"unknown label '{label}'; the model knows liver, spleen, lesion; give none for"
        with pytest.raises(ValueError, match=message):
            model.new_object(label)


WRONG = [
    ("add_point", [[7, 1, 1]], "1 of 1 point prompts lie outside the image, first .7.0, 1.0, 1.0"),
    ("add_point", [[-1, 1, 1]], "lie outside the image"),
    ("add_point", [[1, np.nan, 1]], "points: must be finite"),
    ("add_point", [[1, 1]], r"points: expected shape \(n, 3\)"),
    ("add_point", [[[1, 1, 1], [2, 2, 2]]], "expected shape"),
    ("add_point", [[]], "expected"),
    ("add_point", ["here"], "expected"),
    ("add_box", [[[0, 0, 14], [2, 2, 20]]], "lies outside the image of shape"),
    ("add_box", [[[3, 3, 3], [3, 5, 5]]], "is empty"),
    ("add_box", [[[3, 3, 3], [5, 5, np.inf]]], "boxes: must be finite"),
    ("add_box", [[3, 3, 3]], "boxes: expected shape"),
    ("add_box", [[]], "expected"),
    ("add_scribble", [[[1, 1, 1], [1, 1, 14]]], "1 of 2 positions of scribble 1 lie outside"),
    ("add_scribble", [[[1, 1, np.inf]]], "scribble 1: must be finite"),
    ("add_scribble", [[]], "scribble 1 needs 1 position"),
    ("add_scribble", [[[1, 1]]], "scribble 1: expected shape"),
    ("add_lasso", [[[1, 1, 1], [1, 1, 5]]], "lasso 1 needs 3 position"),
    ("add_lasso", [[[1, 1, 1], [2, 1, 5], [3, 5, 5]]], "lasso 1 reaches over z 1 to 3"),
    ("add_lasso", [[[1, 1, 1], [1, 1, 5], [1, 1, 8]]], "lasso 1 encloses nothing"),
    ("add_lasso", [[[1, 1, 1], [1, 1, 5], [1, 12, 5]]], "vertices of lasso 1 lie outside"),
    ("set_mask", [np.ones((7, 11, 13), bool)], r"expected the shape of the image, \(7, 11, 14\)"),
    ("set_mask", [np.full(SMALL, 2)], "expected true and false, or 1 and 0"),
    ("set_mask", [np.full(SMALL, np.nan)], "expected true and false"),
    ("set_mask", [None], "expected"),
]


@pytest.mark.parametrize(("method", "arguments", "message"), WRONG)
def test_what_is_wrong_is_refused_and_changes_nothing(method, arguments, message):
    session = session_of("liver")
    session.add_point((3, 4, 7), foreground=False)
    before = state(session)
    with pytest.raises(ValueError, match=message):
        getattr(session, method)(*arguments)
    assert state(session) == before
    session.undo()  # the click, and not what was refused
    assert state(session) == state(session_of("liver"))


def test_a_box_on_one_slice_does_not_cut_off_what_hangs_together_elsewhere():
    image = np.zeros((7, 22, 33), np.float32)  # two arms that join where the box is not
    image[1:6, 2:8, 3:15] = image[1:6, 14:18, 3:15] = image[5, 2:18, 3:15] = LEVELS[0]
    masks = []
    for single in ((), ("liver",)):
        model = Predictor([LevelNetwork(inside_box=False)], small_plans(single_component=single))
        model.set_image(image, SPACING)
        session = model.new_object("liver")
        mask, _ = session.add_box([[2, 2, 3], [3, 8, 15]])
        masks.append(mask.copy())
        found = model.predict(boxes={"liver": [[[2, 2, 3], [3, 8, 15]]]})
        masks.append(found.segmentation == 1)
    np.testing.assert_array_equal(masks[0], masks[2])
    np.testing.assert_array_equal(masks[1], masks[3])


def two_pieces() -> np.ndarray:
    """An image on the plans' grid with a large and a small piece of the first label."""
    image = np.zeros((7, 22, 33), np.float32)
    image[1:5, 2:12, 3:15] = image[2:4, 17:20, 26:31] = LEVELS[0]
    return image


@pytest.mark.parametrize("is_single", [False, True])
def test_of_a_label_that_is_one_component_names_and_a_box_give_the_largest(is_single):
    plans = small_plans(single_component=("liver",) if is_single else ())
    model = Predictor([LevelNetwork(click=REACH, inside_box=False)], plans)
    image = two_pieces()
    model.set_image(image, SPACING)
    both, largest = image > 0, image > 0
    largest[:, :, 20:] = False
    expected = largest if is_single else both

    found = model.predict(labels=["liver", "spleen"])
    np.testing.assert_array_equal(found.segmentation == 1, expected)
    assert found.labels["liver"].voxels == expected.sum()
    boxed = model.predict(boxes={"liver": [mask_box(both)]})
    np.testing.assert_array_equal(boxed.segmentation == 1, expected)
    # two boxes are two objects, and a click says that there is something where it is
    several = model.predict(boxes={"liver": [mask_box(largest), mask_box(both & ~largest)]})
    np.testing.assert_array_equal(several.segmentation == 1, both)
    clicked = model.predict(points={"liver": [[3, 18, 28]]}, point_labels={"liver": [1]})
    assert (clicked.segmentation == 1)[both & ~largest].all()

    session = model.new_object("liver")
    np.testing.assert_array_equal(session.mask, expected)
    session.add_point((3, 18, 28))
    assert session.mask[3, 18, 28] and session.mask[largest].all()
    session.reset()
    np.testing.assert_array_equal(session.mask, expected)
    session.add_box(mask_box(both))
    np.testing.assert_array_equal(session.mask, expected)
    session.add_point((3, 18, 28))
    assert session.mask[3, 18, 28]
    assert not model.new_object().mask.any()

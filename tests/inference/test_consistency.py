"""Masks of moved prompts compared: by hand, and through the predictor."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from promptseg.inference import decoder as decoder_module
from promptseg.inference.consistency import PromptConsistency, perturbed_prompts
from promptseg.inference.decoder import answers_with_perturbed
from promptseg.inference.predictor import Predictor
from promptseg.networks.prompt_encoder import Query
from promptseg.prompts.types import make_prompts
from tests.inference.fakes import LEVELS, LevelNetwork
from tests.inference.test_predictor import SPACING, blocks
from tests.small_plans import small_plans

PATCH_SIZE = (8, 12, 16)
BOX = np.array([[2, 3, 4], [6, 9, 12]])


def liver(shape) -> np.ndarray:
    """All liver but for the first voxel: a constant image would have no intensities to scale."""
    image = np.full(shape, LEVELS[0], np.float32)
    image[0, 0, 0] = 0
    return image


@pytest.mark.parametrize(
    "box",
    [BOX, [[0, 0, 0], PATCH_SIZE], [[7, 11, 15], PATCH_SIZE], [[0.2, 11.5, 3.0], [0.4, 12, 16]]],
)
def test_moved_boxes_stay_close_and_inside_the_image(box):
    box = np.asarray(box, float)
    moved = [query.box for query in perturbed_prompts(Query(label=1, box=box), PATCH_SIZE, 200)]
    assert len(moved) == 200
    most = np.maximum(0.1 * (box[1] - box[0]), 1.0)  # thin boxes are made a voxel wide
    for found in moved:
        assert (found >= 0).all() and (found <= PATCH_SIZE).all() and (found[0] < found[1]).all()
        assert (np.abs(found - box) <= most + 1e-9).all()
    assert len({tuple(found.ravel()) for found in moved}) > 100  # they are not all one


def test_moved_points_stay_within_a_voxel_and_keep_their_kinds():
    query = Query(label=2, points=[[0, 0, 0], [7, 11, 15], [3, 4, 5]], point_labels=[1, 0, 1])
    for found in perturbed_prompts(query, PATCH_SIZE, 100):
        assert found.box is None and found.label == 2 and found.point_labels == [1, 0, 1]
        assert (found.points >= 0).all() and (found.points <= np.array(PATCH_SIZE) - 1).all()
        assert (np.abs(found.points - query.points) <= 1).all()


def test_moving_repeats_and_needs_something_to_move():
    query = Query(label=0, box=BOX, points=[[3, 4, 5]], point_labels=[1])
    first, second = (perturbed_prompts(query, PATCH_SIZE, 3) for _ in range(2))
    other = perturbed_prompts(query, PATCH_SIZE, 3, seed=1)
    for a, b, c in zip(first, second, other, strict=True):
        np.testing.assert_array_equal(a.box, b.box)
        np.testing.assert_array_equal(a.points, b.points)
        assert not np.array_equal(a.box, c.box)
    np.testing.assert_array_equal(query.box, [[2, 3, 4], [6, 9, 12]])  # itself as it was
    assert perturbed_prompts(Query(label=0), PATCH_SIZE, 3) == []
    assert perturbed_prompts(query, PATCH_SIZE, 0) == []


def logits(*rows: str) -> torch.Tensor:
    """(1, 1, x) logits, or one more axis for several rows: `#` is inside, anything else is not."""
    rows = [[[[3.0 if c == "#" else -3.0 for c in row]]] for row in rows]
    return torch.tensor(rows[0] if len(rows) == 1 else rows)


def test_agreement_is_the_mean_iou_of_the_masks():
    prompt_consistency = PromptConsistency(2)
    prompt_consistency.add(logits("##.."), logits("###.", "#..."))
    assert prompt_consistency.value() == pytest.approx((2 / 3 + 1 / 2) / 2)
    # a second patch, counted together with the first: 2 + 1 of 3 + 3, and 1 + 0 of 2 + 2
    prompt_consistency.add(logits(".#.."), logits(".###", "#..."))
    assert prompt_consistency.value() == pytest.approx((3 / 6 + 1 / 4) / 2)


def test_two_empty_masks_agree_and_an_empty_with_a_full_one_does_not():
    prompt_consistency = PromptConsistency(3)
    prompt_consistency.add(logits("...."), logits("....", "####", "...."))
    assert prompt_consistency.value() == pytest.approx(2 / 3)
    prompt_consistency.add(logits("...."), [None, logits("...."), logits("..#.")])
    assert prompt_consistency.value() == pytest.approx(1 / 3)
    assert PromptConsistency(0).value() is None


class StrictNetwork(LevelNetwork):
    """Refuses boxes that hold nothing, as training never makes them."""

    def decode(self, encoding, prompts):
        sides = prompts.boxes[:, 1] - prompts.boxes[:, 0]
        assert (sides[prompts.has_box] > 0).all()
        return super().decode(encoding, prompts)


def test_a_box_that_was_moved_out_of_a_patch_answers_nothing_there():
    model = Predictor([StrictNetwork()], small_plans())
    decoder = model.prepare(liver((8, 12, 40)), SPACING).decoder
    inside = Query(label=0, box=np.array([[1, 2, 10], [6, 9, 20.0]]))
    outside = Query(label=0, box=np.array([[1, 2, 16], [6, 9, 20.0]]))  # the patch ends at 16
    asked = answers_with_perturbed(
        decoder, (0, 0, 0), [inside, inside], [[outside, inside, outside], [outside]]
    )
    (answer, iou, (first, second, third)), (other, _, rest) = asked
    expected = np.zeros(PATCH_SIZE, bool)
    expected[1:6, 2:9, 10:16] = True
    for logits in (answer, second, other):
        np.testing.assert_array_equal(logits.numpy() > 0, expected)
    assert first is None and third is None and rest == [None]
    assert iou == pytest.approx(1 / (1 + np.exp(-2)))


def test_all_that_is_asked_of_a_patch_is_asked_together():
    image, _ = blocks(PATCH_SIZE)
    model = Predictor([network := LevelNetwork()], small_plans(), n_perturbations=2)
    model.set_image(image, SPACING)
    boxes = {label: [[1, 2, 1], [6, 9, 12]] for label in ("liver", "spleen", "lesion")}
    result = model.predict(boxes=boxes)
    assert network.encoded == 1 and network.decoded == 9 and network.calls == 2  # 8 at once
    with pytest.MonkeyPatch.context() as patch:  # room for one query and its moved ones
        patch.setattr(decoder_module, "ASKED_VOXELS", 3 * 8 * 12 * 16)
        again = model.predict(boxes=boxes)
    assert network.encoded == 1 and network.decoded == 18 and network.calls == 2 + 3
    np.testing.assert_array_equal(again.segmentation, result.segmentation)
    assert again.labels["spleen"].prompt_consistency == result.labels["spleen"].prompt_consistency


def test_voxels_outside_a_volume_smaller_than_the_patch_do_not_count():
    # The network answers 1 everywhere, so also where the patch lies outside the volume: masks
    # that differ by half of the volume agree by half, however large the patch is.
    class Halves(LevelNetwork):
        def decode(self, encoding, prompts):
            logits, iou = super().decode(encoding, prompts)
            logits = torch.ones_like(logits)
            moved = (prompts.boxes != prompts.boxes.round()).any(dim=2).any(dim=1)
            logits[moved, :, :, 8:] = -1.0  # the volume is at 4 to 12 of 16
            return logits, iou

    model = Predictor([Halves()], small_plans(), n_perturbations=2)
    model.set_image(liver((5, 9, 8)), SPACING)
    box = make_prompts(boxes=[[0, 1, 1], [4, 8, 7]], shape=(5, 9, 8), source="atlas")
    found = model.predict_prompts({"liver": box}, labels=["liver"]).labels["liver"]
    assert found.prompt_consistency == pytest.approx(1 / 2)


def inside(box) -> np.ndarray:
    """Voxels of a patch whose centres lie in a box."""
    centres = np.stack(np.meshgrid(*map(np.arange, PATCH_SIZE), indexing="ij"), axis=-1) + 0.5
    return ((centres > box[0]) & (centres < box[1])).all(axis=-1)


def test_a_prediction_tells_how_far_its_masks_agree():
    image = liver(PATCH_SIZE)  # so that the mask is the box
    model = Predictor([LevelNetwork()], small_plans(), n_perturbations=3)
    model.set_image(image, SPACING)
    result = model.predict(boxes={"liver": BOX}, labels=["liver", "spleen"]).labels
    truth, ious = inside(BOX), []
    for query in perturbed_prompts(Query(label=0, box=BOX), PATCH_SIZE, 3):
        moved = inside(query.box)
        ious.append((moved & truth).sum() / (moved | truth).sum())
    assert result["liver"].prompt_consistency == pytest.approx(np.mean(ious))
    assert result["liver"].to_json()["prompt_consistency"] == result["liver"].prompt_consistency
    assert result["spleen"].prompt_consistency is None  # nothing to move, in a volume of one patch
    assert Predictor([LevelNetwork()], small_plans()).n_perturbations == 0


class TouchyNetwork(LevelNetwork):
    """Answers nothing when a box is not where a person drew it: on whole voxels."""

    def decode(self, encoding, prompts):
        answers, iou = super().decode(encoding, prompts)
        whole = (prompts.boxes == prompts.boxes.round()).all(dim=2).all(dim=1)
        return torch.where(whole[:, None, None, None], answers, -5.0), iou


@pytest.mark.parametrize("shape", [PATCH_SIZE, (11, 30, 41)])
def test_masks_that_hang_on_the_exact_box_are_flagged(shape):
    model = Predictor([TouchyNetwork()], small_plans(), n_perturbations=3)
    model.set_image(liver(shape), SPACING)
    box = [[1, 2, 3], np.array(shape) - 1]
    found = model.predict(boxes={"liver": box}).labels["liver"]
    assert found.prompt_consistency == 0 and found.flags == ("disagreement",)
    assert found.voxels == np.prod(np.array(shape) - 1 - (1, 2, 3))  # the answer itself stays


@pytest.mark.parametrize("shape", [PATCH_SIZE, (11, 30, 41)])
def test_perturbed_prompts_cost_decodings_and_no_encodings(shape):
    image, _ = blocks(shape)
    work, found = {}, {}
    for n_perturbations in (0, 3):
        model = Predictor(
            [network := LevelNetwork()], small_plans(), n_perturbations=n_perturbations
        )
        model.set_image(image, SPACING)
        found[n_perturbations] = model.predict(boxes={"liver": [[1, 2, 1], np.array(shape) - 2]})
        work[n_perturbations] = (network.encoded, network.decoded)
    assert work[3] == (work[0][0], 4 * work[0][1])
    np.testing.assert_array_equal(found[0].segmentation, found[3].segmentation)
    assert 0 < found[3].labels["liver"].prompt_consistency <= 1
    again = model.predict(boxes={"liver": [[1, 2, 1], np.array(shape) - 2]})
    assert again.labels["liver"].prompt_consistency == found[3].labels["liver"].prompt_consistency


def test_the_worst_of_several_objects_counts():
    model = Predictor([TouchyNetwork()], small_plans(), n_perturbations=2)
    image = np.zeros(PATCH_SIZE, np.float32)
    image[:, :, :6] = LEVELS[0]
    model.set_image(image, SPACING)
    there, empty = [[1, 2, 1], [7, 9, 5]], [[1, 2, 9], [7, 9, 14]]
    assert model.predict(boxes={"liver": empty}).labels["liver"].prompt_consistency == 1
    assert model.predict(boxes={"liver": [empty, there]}).labels["liver"].prompt_consistency == 0

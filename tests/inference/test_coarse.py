"""Where the network itself finds a label, and which of two boxes it expects more of."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from promptseg.inference.predictor import Predictor
from promptseg.inference.prompting import own_prompts
from promptseg.prompts.types import make_prompts
from tests.inference.fakes import LEVELS, LevelNetwork
from tests.small_plans import small_plans

SHAPE, SPACING = (11, 30, 41), (2.0, 1.3, 0.9)  # the plans' spacing is 2.5, 1, 0.75
CUBE = np.array([[2, 6, 10], [9, 22, 30]])
INDICES = {"liver": 0, "spleen": 1, "lesion": 2}


def cube_image(box=CUBE, level: float = LEVELS[0], shape=SHAPE) -> np.ndarray:
    image = np.zeros(shape, np.float32)
    image[tuple(slice(a, b) for a, b in np.transpose(box))] = level
    return image


def proposal(boxes=None, source: str = "atlas"):
    return make_prompts(boxes=boxes, shape=SHAPE, source=source, score=0.25)


def prepared(network, **options):
    model = Predictor([network], small_plans(), **options)
    return model, model.prepare(cube_image(), SPACING)


@pytest.mark.parametrize("mirror_axes", [(), (0, 2)])
def test_what_the_network_finds_by_name_is_boxed_in_raw_voxels(mirror_axes):
    _, image = prepared(network := LevelNetwork(), mirror_axes=mirror_axes)
    found = own_prompts(image.decoder, {"liver": proposal(source="label name")}, INDICES, SHAPE)
    liver = found["liver"]
    assert liver.source == "coarse" and liver.reason == "ok" and liver.boxes.shape == (1, 2, 3)
    voxel = np.array(SHAPE) / (8, 12, 16)  # of the volume resized to one patch
    assert (np.abs(liver.boxes[0] - CUBE) <= voxel).all()
    assert liver.score == pytest.approx(1 / (1 + np.exp(-2)))  # what it expects of that mask
    assert network.encoded == 2 ** len(mirror_axes) and network.decoded == 2 ** len(mirror_axes)


def test_all_labels_are_asked_of_one_encoding_and_those_not_there_say_so():
    _, image = prepared(network := LevelNetwork())
    nothing = proposal(source="label name")
    found = own_prompts(image.decoder, {"liver": nothing, "lesion": nothing}, INDICES, SHAPE)
    assert network.encoded == 1 and list(found) == ["liver", "lesion"]
    lesion = found["lesion"]
    assert lesion.is_empty and lesion.reason == "not_found_by_name"
    assert lesion.score is None and lesion.source == "label name"
    assert own_prompts(image.decoder, {}, INDICES, SHAPE) == {} and network.encoded == 1


class SizeLover(LevelNetwork):
    """Expects the more of a mask the smaller, or the larger, its box is."""

    def __init__(self, sign: float):
        super().__init__()
        self.sign = sign

    def decode(self, encoding, prompts):
        logits, _ = super().decode(encoding, prompts)
        share = (prompts.boxes[:, 1] - prompts.boxes[:, 0]).prod(dim=1) / np.prod((8, 12, 16))
        return logits, torch.where(prompts.has_box, self.sign * share, 0.0)


def sigmoid(x: float) -> float:
    return 1 / (1 + np.exp(-x))


def test_the_box_is_taken_that_the_network_expects_more_of():
    large = [[0, 0, 0], [11, 15, 41]]  # half of the volume; the cube is a sixth
    for sign, source, share in ((1.0, "atlas", 0.5), (-1.0, "coarse", None)):
        _, image = prepared(network := SizeLover(sign))
        found = own_prompts(image.decoder, {"liver": proposal([large])}, INDICES, SHAPE)["liver"]
        assert found.source == source and network.encoded == 1
        if share:
            np.testing.assert_array_equal(found.boxes, [large])
            assert found.score == pytest.approx(sigmoid(share))


def test_a_proposal_of_several_boxes_is_as_good_as_their_mean():
    # Of the volume: the cube 0.165; a box of all and one of almost nothing 0.5 in the mean.
    boxes = [[[0, 0, 0], SHAPE], [[0, 0, 0], [1, 1, 1]]]
    _, image = prepared(SizeLover(1.0))
    found = own_prompts(image.decoder, {"liver": proposal(boxes)}, INDICES, SHAPE)["liver"]
    assert found.source == "atlas" and len(found.boxes) == 2
    assert found.score == pytest.approx((sigmoid(1) + sigmoid(0)) / 2, abs=1e-3)
    _, image = prepared(SizeLover(-1.0))
    found = own_prompts(image.decoder, {"liver": proposal(boxes)}, INDICES, SHAPE)["liver"]
    assert found.source == "coarse"


def test_of_one_box_and_none_the_box_is_taken():
    _, image = prepared(SizeLover(-1.0))
    there = proposal([CUBE])
    found = own_prompts(image.decoder, {"lesion": there}, INDICES, SHAPE)["lesion"]
    assert found is there  # not found by name: what else there is, as it is
    found = own_prompts(image.decoder, {"liver": proposal()}, INDICES, SHAPE)["liver"]
    assert found.source == "coarse"


def plans_with(strategy: str, iou: float | None = 0.4):
    """Plans for the liver with a box of all but a tenth on every side as their `atlas`."""
    parameters = {"share": [[0.1] * 3, [0.9] * 3], "offset_mm": [[0.0] * 3] * 2}
    candidates = {"atlas": {"parameters": parameters, "iou_mean": iou}}
    return small_plans(auto_prompts={"liver": {"strategy": strategy, "candidates": candidates}})


def test_a_predictor_uses_the_networks_own_prompts():
    model = Predictor([LevelNetwork()], small_plans())
    model.set_image(cube_image(), SPACING)
    found = model.predict(auto_prompt="coarse", labels=["liver", "spleen"])
    assert found.labels["liver"].prompts.source == "coarse" and found.labels["liver"].flags == ()
    spleen = found.labels["spleen"]
    assert spleen.flags == ("not_found_by_name", "no_box", "empty") and spleen.voxels == 0
    truth = cube_image() > 0
    mask = found.segmentation == 1
    assert (
        2 * (mask & truth).sum() / (mask.sum() + truth.sum()) > 0.8
    )  # the fake ends sharply at the box, which is off by a coarse voxel
    own = model.predict(auto_prompt="coarse", boxes={"spleen": CUBE})  # a person's is not replaced
    assert own.labels["spleen"].prompts.source == "user"


def test_hybrid_asks_for_the_plans_box_too():
    for sign, source in ((1.0, "atlas"), (-1.0, "coarse")):
        model = Predictor([SizeLover(sign)], plans_with("atlas"))
        model.set_image(cube_image(), SPACING)
        found = model.predict(auto_prompt="hybrid", labels=["liver"]).labels["liver"]
        assert found.prompts.source == source
    model = Predictor([LevelNetwork()], plans_with("none"))
    model.set_image(cube_image(), SPACING)
    found = model.predict(auto_prompt="hybrid", labels=["liver"]).labels["liver"]
    assert found.prompts.source == "coarse"

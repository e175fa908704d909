"""The predictor with a network that labels by intensity, so that the right answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from promptseg.inference import predictor as predictor_module
from promptseg.inference.load import load_predictor
from promptseg.inference.options import PredictionOptions
from promptseg.inference.predictor import Predictor
from promptseg.networks.promptable import build_network
from promptseg.preprocessing.patch import cut_patch
from promptseg.prompts.types import make_prompts
from promptseg.training.checkpoint import load_checkpoint, save_checkpoint
from promptseg.training.settings import TrainingSettings
from tests.inference.fakes import LEVELS, LevelNetwork
from tests.small_plans import small_plans

SPACING = (2.5, 1.0, 0.75)  # the plans'
SMALL, MIXED, LARGE = (5, 9, 11), (5, 30, 9), (11, 30, 41)  # patch 8x12x16


def predictor(network=None, **options) -> Predictor:
    return Predictor([network or LevelNetwork()], small_plans(), **options)


def blocks(shape) -> tuple[np.ndarray, np.ndarray]:
    """An image of three blocks with a margin round each, and its labels 1, 2, 5."""
    labels = np.zeros(shape, np.uint8)
    z, y, x = shape
    third = x // 3
    labels[1 : z - 1, 2 : y - 2, 1 : third - 1] = 1
    labels[1 : z - 1, 1 : y - 3, third + 1 : 2 * third] = 2
    labels[2 : z - 1, 3 : y - 1, 2 * third + 1 : x - 1] = 5
    return paint(labels), labels


def paint(labels: np.ndarray) -> np.ndarray:
    image = np.zeros(labels.shape, np.float32)
    for value, level in zip((1, 2, 5), LEVELS, strict=True):
        image[labels == value] = level
    return image


@pytest.mark.parametrize("shape", [SMALL, MIXED, LARGE, (8, 12, 16), (1, 40, 9)])
def test_label_names_alone_segment_what_is_there_on_the_same_grid(shape):
    image, labels = blocks(shape)
    if shape[0] == 1:
        image, labels = (np.moveaxis(a, 0, 1)[:1] for a in blocks((9, 40, 12)))
        labels = np.ascontiguousarray(labels)
        image[0, 4:30, 2:7], labels[0, 4:30, 2:7] = LEVELS[1], 2
    model = predictor(LevelNetwork(inside_box=False))
    model.set_image(image, SPACING)
    prediction = model.predict()
    np.testing.assert_array_equal(prediction.segmentation, labels)
    assert prediction.segmentation.dtype == np.uint8
    for name, value in (("liver", 1), ("spleen", 2), ("lesion", 5)):
        assert prediction.labels[name].voxels == (labels == value).sum()


@pytest.mark.parametrize("spacing", [(5.0, 1.4, 0.75), (1.3, 0.9, 1.1), (2.5, 0.5, 0.4)])
def test_another_spacing_changes_nothing_but_the_border(spacing):
    shape = (12, 34, 45)
    labels = np.zeros(shape, np.uint8)
    labels[3:9, 8:26, 10:33] = 5
    model = predictor(LevelNetwork(inside_box=False))
    model.set_image(paint(labels), spacing)
    box = [[3, 8, 10], [9, 26, 33]]
    found = model.predict(boxes={"lesion": box}).segmentation
    assert found.shape == shape
    # A voxel of the coarser of both grids on either side of the border.
    reach = [int(np.ceil(max(1, p / s))) for p, s in zip(SPACING, spacing, strict=True)]
    element = np.ones([2 * r + 1 for r in reach])
    mask = labels == 5
    assert (found[ndimage.binary_erosion(mask, element)] == 5).all()
    assert (found[~ndimage.binary_dilation(mask, element)] == 0).all()


def test_several_boxes_of_a_label_are_several_objects():
    labels = np.zeros(LARGE, np.uint8)
    boxes = np.array([[[1, 2, 2], [4, 8, 9]], [[6, 20, 30], [10, 28, 39]]])
    for (z0, y0, x0), (z1, y1, x1) in boxes:
        labels[z0:z1, y0:y1, x0:x1] = 1
    image = paint(labels)
    image[1:4, 20:28, 2:9] = LEVELS[0]  # alike, but in no box
    model = predictor()
    model.set_image(image, SPACING)
    np.testing.assert_array_equal(model.predict(boxes={"liver": boxes}).segmentation, labels)
    one = model.predict(boxes={"liver": boxes[1]})
    np.testing.assert_array_equal(one.segmentation[6:], labels[6:])
    assert not one.segmentation[:6].any() and list(one.labels) == ["liver"]


@pytest.mark.parametrize("mirror_axes", [(), (0, 2)])
def test_a_box_across_many_patches_is_filled_without_seams(mirror_axes):
    labels = np.full(LARGE, 2, np.uint8)
    labels[0, 0, 0] = 0  # a constant volume would be normalized to 0
    model = predictor(mirror_axes=mirror_axes)
    model.set_image(paint(labels), SPACING)
    found = model.predict(boxes={"spleen": [[1, 3, 2], [10, 27, 40]]}).segmentation
    expected = np.zeros(LARGE, np.uint8)
    expected[1:10, 3:27, 2:40] = 2
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("shape", [SMALL, LARGE])
def test_mirroring_moves_boxes_and_points_with_the_image(shape):
    rng = np.random.default_rng(0)
    image = rng.uniform(0, 255, shape).astype(np.float32)
    given = {
        "boxes": {"liver": [[1, 2, 1], [4, 8, 6]], "spleen": [[0, 1, 3], [5, 9, 10]]},
        "points": {"spleen": [[2, 3, 4], [3, 7.4, 8]], "lesion": [[1, 2, 9], [4, 8, 1]]},
        "point_labels": {"spleen": [1, 1], "lesion": [1, 0]},
    }
    plain, mirrored = LevelNetwork(radius=2.5), LevelNetwork(radius=2.5)
    results = []
    for network, axes in ((plain, ()), (mirrored, (0, 1, 2))):
        model = predictor(network, mirror_axes=axes)
        model.set_image(image, SPACING)
        results.append(model.predict(**given).segmentation)
    np.testing.assert_array_equal(results[1], results[0])
    assert set(np.unique(results[0])) == {0, 1, 2, 5}
    assert mirrored.encoded == 8 * plain.encoded


def test_points_are_spheres_round_their_voxels_on_the_raw_grid():
    model = predictor(LevelNetwork(radius=2.1))
    model.set_image(np.zeros(SMALL, np.float32), SPACING)
    found = model.predict(points={"liver": [2, 4, 6]}).segmentation
    z, y, x = np.indices(SMALL)
    expected = (z - 2) ** 2 + (y - 4) ** 2 + (x - 6) ** 2 < 2.1**2
    np.testing.assert_array_equal(found, expected)
    assert found[2, 4, 6] == 1 and found.sum() == expected.sum() > 30


def test_patches_are_encoded_once_for_all_labels_and_prompts():
    network = LevelNetwork()
    model = predictor(network)
    model.set_image(blocks(SMALL)[0], SPACING)
    model.predict()
    assert network.encoded == 1 and network.decoded == 3
    model.predict(boxes={"liver": [[0, 0, 0], [3, 3, 3]]})
    assert network.encoded == 1 and network.decoded == 4
    model.set_image(blocks(SMALL)[0], SPACING)
    model.predict(labels=["liver"])
    assert network.encoded == 2


def test_keeping_few_encodings_changes_the_work_and_not_the_answer():
    image, labels = blocks(LARGE)
    answers = []
    for most in (1, None):
        network = LevelNetwork()
        model = predictor(network, most_encodings=most)
        model.set_image(image, SPACING)
        box = [[0, 0, 0], LARGE]
        answers.append(model.predict(boxes={"liver": box, "lesion": box}).segmentation)
        first = network.encoded
        model.predict(boxes={"liver": box})
        assert network.encoded == (2 * first if most else first)
    np.testing.assert_array_equal(*answers)
    np.testing.assert_array_equal(answers[0], np.where(labels == 2, 0, labels))


@pytest.mark.parametrize(("folds", "mirror_axes"), [(5, ()), (1, (0, 1, 2)), (2, (2,))])
def test_patches_are_encoded_once_for_every_network_and_mirroring(monkeypatch, folds, mirror_axes):
    cuts = []
    monkeypatch.setattr(
        "promptseg.inference.decoder.cut_patch",
        lambda volume, start, patch_size: (
            cuts.append(tuple(start)) or cut_patch(volume, start, patch_size)
        ),
    )
    networks = [LevelNetwork() for _ in range(folds)]
    model = Predictor(networks, small_plans(), mirror_axes=mirror_axes, most_encodings=1)
    model.set_image(blocks(SMALL)[0], SPACING)
    for label in ("liver", "spleen", "lesion"):
        model.predict(labels=[label])
    assert [network.encoded for network in networks] == [2 ** len(mirror_axes)] * folds
    assert len(cuts) == 1  # not for each network and mirroring


@pytest.mark.parametrize(("most", "kept"), [(None, 4), (1, 1), (3, 3), (99, 4)])
def test_encodings_that_are_kept_are_counted_for_all_networks_and_mirrorings(
    monkeypatch, most, kept
):
    monkeypatch.setattr(predictor_module, "KEPT_VOXELS", 4 * (8 * 12 * 16) * 2 * 8)
    model = Predictor(
        [LevelNetwork()] * 2, small_plans(), mirror_axes=(0, 1, 2), most_encodings=most
    )
    assert model.most_encodings == kept
    monkeypatch.setattr(predictor_module, "KEPT_VOXELS", 1)  # a large patch: never none at all
    assert predictor(most_encodings=most).most_encodings == 1


def test_few_queries_are_decoded_at_once():
    labels = np.zeros(SMALL, np.uint8)
    boxes = [[[z, y, x], [z + 2, y + 2, x + 2]] for z in (0, 3) for y in (0, 3, 6) for x in (1, 5)]
    for (z0, y0, x0), (z1, y1, x1) in boxes:
        labels[z0:z1, y0:y1, x0:x1] = 1
    network = LevelNetwork()
    model = predictor(network)
    image = np.full(SMALL, LEVELS[0])
    image[1, 8, 10] = 0  # a constant volume would be normalized to 0
    model.set_image(image, SPACING)
    np.testing.assert_array_equal(model.predict(boxes={"liver": boxes}).segmentation, labels)
    assert network.decoded == len(boxes) == 12 and network.most_at_once == 8


def test_patches_that_do_not_meet_a_box_are_not_computed():
    network = LevelNetwork()
    model = predictor(network)
    model.set_image(np.zeros((40, 60, 80), np.float32), SPACING)
    model.predict(boxes={"liver": [[20, 20, 20], [26, 30, 34]]})  # fits into 8x12x16
    assert network.encoded == 1
    # Two far boxes that each fit into a patch: one patch each.
    corners = [[[0, 0, 0], [6, 8, 10]], [[34, 52, 70], [40, 60, 80]]]
    model.predict(boxes={"spleen": corners})
    assert network.encoded == 1 + 2
    # The answer of one label costs no decoding in the other's patches.
    decoded = network.decoded
    model.predict(boxes={"liver": corners[0], "lesion": corners[1]})
    assert network.decoded - decoded == 2
    assert network.encoded == 1 + 2


def test_names_are_answered_in_every_patch_of_a_large_volume():
    labels = np.zeros((24, 48, 64), np.uint8)
    labels[4:10, 8:20, 12:28] = 2
    labels[16:18, 30:32, 51:53] = 1  # far from the other, and small
    network = LevelNetwork(inside_box=False)
    model = predictor(network)
    model.set_image(paint(labels), SPACING)
    prediction = model.predict()
    np.testing.assert_array_equal(prediction.segmentation, labels)
    every_patch = 5 * 7 * 7  # steps of half a patch of 8x12x16
    assert network.encoded == every_patch and network.decoded == 3 * every_patch
    absent = prediction.labels["lesion"]
    assert absent.voxels == 0 and absent.predicted_iou == pytest.approx(1 / (1 + np.exp(-2)))
    assert absent.flags == ("no_box", "empty")
    assert prediction.labels["spleen"].flags == ("no_box",)


def test_points_in_a_large_volume_are_carried_into_the_patches():
    shape = (24, 48, 64)
    model = predictor(LevelNetwork(click=3.0))
    model.set_image(np.zeros(shape, np.float32), SPACING)
    z, y, x = np.indices(shape)
    sphere = (z - 17) ** 2 + (y - 40) ** 2 + (x - 50) ** 2 < 9
    for name in ("liver", "object"):
        network = model.networks[0] = LevelNetwork(click=3.0)
        model.set_image(np.zeros(shape, np.float32), SPACING)
        found = model.predict(points={name: [[17, 40, 50]]}).segmentation > 0
        # Patches without the point say background, so a little of the sphere's rim may be lost.
        assert not found[~sphere].any()
        assert found.sum() > 0.8 * sphere.sum() and found[17, 40, 50]
        assert network.encoded == (5 * 7 * 7 if name == "liver" else 1)


class StrictNetwork(LevelNetwork):
    """Refuses what training never shows: a box that is empty in its patch."""

    def decode(self, encoding, prompts):
        lower, upper = prompts.boxes[prompts.has_box].unbind(1)
        assert (lower < upper).all()
        return super().decode(encoding, prompts)


def test_no_patch_is_asked_about_a_box_that_it_does_not_meet():
    labels = np.zeros((11, 30, 260), np.uint8)
    labels[2:9, 5:20, 30:230] = 1  # a tenth of 200 voxels is more than a patch
    model = predictor(StrictNetwork())
    model.set_image(paint(labels), SPACING)
    found = model.predict(boxes={"liver": [[2, 5, 30], [9, 20, 230]]})
    np.testing.assert_array_equal(found.segmentation, labels)


def test_flags_and_quality_tell_what_to_look_at():
    image, _ = blocks(SMALL)
    model = predictor(LevelNetwork(iou=-1.0))
    model.set_image(image, SPACING)
    result = model.predict(boxes={"liver": [[0, 0, 0], SMALL], "lesion": [[0, 0, 0], [2, 2, 2]]})
    liver, lesion = result.labels["liver"], result.labels["lesion"]
    assert liver.flags == ("box_is_whole_volume", "low_predicted_quality")
    assert lesion.flags == ("low_predicted_quality", "empty")
    assert liver.predicted_iou == pytest.approx(1 / (1 + np.e))
    content = liver.to_json()
    assert content["boxes"] == [[[0, 0, 0], list(SMALL)]] and content["flags"] == list(liver.flags)


def test_background_alone_is_flagged():
    image, _ = blocks(SMALL)
    model = predictor(LevelNetwork())
    model.set_image(image, SPACING)
    away = {"points": {"liver": [[1, 2, 3]], "spleen": [[1, 2, 3], [2, 3, 4]]}}
    result = model.predict(**away, point_labels={"liver": [0], "spleen": [0, 1]})
    assert "only_background" in result.labels["liver"].flags
    assert "only_background" not in result.labels["spleen"].flags
    scribbled = model.predict(
        scribbles={"liver": [[[1, 2, 3]]], "spleen": [[[1, 2, 3]]]},
        scribble_labels={"liver": [0], "spleen": [0]},
        boxes={"spleen": [[0, 0, 0], [3, 4, 5]]},
    )
    assert "only_background" in scribbled.labels["liver"].flags
    assert "only_background" not in scribbled.labels["spleen"].flags


def test_automatic_prompts_are_used_where_no_prompt_is_given():
    candidates = {"atlas": {"parameters": {"box": [[0.2, 0.2, 0.3], [0.8, 0.9, 0.7]]}}}
    image, _ = blocks((8, 12, 16))
    plans = small_plans(auto_prompts={"liver": {"strategy": "none", "candidates": candidates}})
    model = Predictor([LevelNetwork()], plans)
    model.set_image(image, SPACING)
    result = model.predict(boxes={"spleen": [[0, 0, 0], [8, 12, 9]]}, auto_prompt="plans")
    assert list(result.labels) == ["liver", "spleen", "lesion"]
    assert result.labels["spleen"].prompts.source == "user"
    liver = result.labels["liver"]
    assert liver.prompts.source == "label name" and "no_usable_strategy" in liver.flags
    assert result.labels["lesion"].prompts.reason == "no_usable_strategy"  # plans say nothing

    forced = model.predict(auto_prompt="intensity", labels=["liver"]).labels["liver"].prompts
    assert forced.source == "intensity" and len(forced.boxes) == 1
    with pytest.raises(ValueError, match=r"unknown automatic prompt 'guess'; registered: .*atlas"):
        model.predict(auto_prompt="guess")


BOX = [[0, 0, 0], [2, 2, 2]]
BAD = [
    ({"boxes": {"heart": BOX}}, r"unknown label\(s\) heart; the model knows liver, spleen, lesion"),
    ({"labels": ["liver", "kidney"]}, r"unknown label\(s\) kidney"),
    ({"labels": "liver"}, r"unknown label\(s\) e, i, l, r, v"),
    ({"boxes": {"liver": BOX}, "labels": ["spleen"]}, "prompts for liver, which is not among"),
    ({"boxes": {"liver": [0, 0, 0, 2, 2, 2]}}, r"label 'liver': boxes: expected shape \(n, 2, 3\)"),
    ({"boxes": {"liver": [[2, 2, 2], [0, 0, 0]]}}, r"label 'liver': box .* is empty"),
    ({"boxes": {"liver": [[0, 0, 9], [2, 2, 2]]}}, "is empty"),
    (
        {"boxes": {"liver": [[9, 0, 0], [12, 2, 2]]}},
        r"lies outside the image of shape \(5, 9, 11\)",
    ),
    ({"boxes": {"liver": [[0, 0, 0], [2, 2, np.nan]]}}, "label 'liver': boxes: must be finite"),
    ({"boxes": {"liver": [BOX, [[0, 0], [1, 1]]]}}, "label 'liver': boxes: expected numbers"),
    ({"boxes": {"liver": "all"}}, "label 'liver': boxes: expected numbers"),
    ({"points": {"liver": [[0, 0]]}}, r"label 'liver': points: expected shape \(n, 3\)"),
    ({"points": {"liver": [[0, 0, 11]]}}, "1 of 1 point prompts lie outside the image"),
    ({"points": {"liver": [[1, 1, 1]]}, "point_labels": {"liver": [2]}}, "1 points need as many"),
    ({"points": {"liver": [[1, 1, 1]]}, "point_labels": {"liver": [1, 0]}}, "need as many labels"),
    ({"point_labels": {"liver": [1]}}, "0 points need as many labels"),
    ({"scribbles": {"liver": [[1, 1, 1], [5, 1, 1]]}}, "1 of 2 positions of scribble 1 lie outs"),
    ({"scribbles": {"liver": [[1, 1]]}}, r"label 'liver': scribble 1: expected shape \(n, 3\)"),
    ({"scribbles": {"liver": [[[1, 1, np.inf]]]}}, "scribble 1: must be finite"),
    ({"scribble_labels": {"liver": [1]}}, "0 scribbles need as many labels"),
    ({"lassos": {"liver": [[1, 1, 1], [1, 5, 1]]}}, "lasso 1 needs 3 position.s. or more"),
    ({"lassos": {"liver": [[1, 1, 1], [2, 5, 1], [3, 5, 5]]}}, "lasso 1 reaches over z 1 to 3"),
    ({"lassos": {"liver": [[1, 1, 1], [1, 9, 1], [1, 5, 5]]}}, "vertices of lasso 1 lie outside"),
    (
        {"masks": {"liver": np.ones((5, 9, 12), bool)}},
        r"the image, \(5, 9, 11\) .*found \(5, 9, 12",
    ),
    ({"masks": {"liver": np.full(SMALL, 2)}}, "label 'liver': mask: expected true and false, or"),
    ({"masks": {"kidney": np.ones(SMALL, bool)}}, r"unknown label\(s\) kidney"),
    ({"labels": ["object"]}, "object: an object without a name needs a prompt that says where"),
    ({"labels": ["liver", "object 3"], "auto_prompt": "coarse"}, "object 3: an object without a"),
    (
        {"points": {"object": [[1, 1, 1]]}, "point_labels": {"object": [0]}},
        "object: an object without a name needs a prompt that says where it is",
    ),
    ({"masks": {"object": np.zeros(SMALL)}}, "object: an object without a name needs a prompt"),
    ({"boxes": {"object 0": BOX}}, "object 0: objects have numbers from 1 to 9999"),
    ({"boxes": {"object 10000": BOX}}, "object 10000: objects have numbers from 1 to 9999"),
    ({"boxes": {"object": BOX, "Object_1": BOX}}, "'object' and 'Object_1' are the same object"),
]


@pytest.mark.parametrize(("prompts", "message"), BAD)
def test_wrong_prompts_are_refused(prompts, message):
    model = predictor()
    model.set_image(blocks(SMALL)[0], SPACING)
    with pytest.raises(ValueError, match=message):
        model.predict(**prompts)


@pytest.mark.parametrize(
    ("image", "spacing", "message"),
    [
        (np.zeros((9, 11)), SPACING, r"expected an image of 1 channel\(s\) \(CT\), .*\(9, 11\)"),
        (np.zeros((2, *SMALL)), SPACING, r"found \(2, 5, 9, 11\)"),
        (np.zeros((1, 1, *SMALL)), SPACING, r"found \(1, 1, 5, 9, 11\)"),
        (np.zeros((5, 0, 11)), SPACING, r"found \(1, 5, 0, 11\)"),
        (np.full(SMALL, np.nan), SPACING, "495 of 495 voxels are NaN or infinite"),
        (np.where(np.arange(11) == 3, np.inf, 0) * np.ones(SMALL), SPACING, "NaN or infinite"),
        (np.zeros(SMALL), (1.0, 0.0, 1.0), "spacing must be three positive lengths"),
        (np.zeros(SMALL), (1.0, 1.0), "spacing must be three positive lengths"),
        (np.zeros(SMALL), (1.0, -2.0, 1.0), "spacing must be three positive lengths"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_wrong_images_are_refused_and_leave_none_set(image, spacing, message):
    model = predictor()
    model.set_image(blocks(SMALL)[0], SPACING)
    with pytest.raises(ValueError, match=message):
        model.set_image(image, spacing)
    with pytest.raises(RuntimeError, match="no image is set; call set_image first"):
        model.predict()


def test_objects_without_a_name_have_the_values_after_the_last_label():
    image, labels = blocks(MIXED)
    model = predictor(LevelNetwork(click=2.0))
    model.set_image(image, SPACING)
    boxes = {"liver": [[0, 0, 0], [5, 30, 3]], "object 3": [[1, 1, 4], [4, 27, 6]]}
    found = model.predict(boxes=boxes, points={"object": [1, 4, 8], "object b": [4, 29, 0]})
    assert list(found.labels) == ["liver", "object 3", "object", "object b"]
    of_object_3 = np.zeros(MIXED, bool)
    of_object_3[1:4, 1:27, 4:6] = True
    np.testing.assert_array_equal(found.segmentation == 5 + 3, of_object_3 & (labels > 0))
    np.testing.assert_array_equal(found.segmentation == 1, labels == 1)
    z, y, x = np.indices(MIXED)
    for value, (z0, y0, x0) in ((5 + 1, (1, 4, 8)), (5 + 4, (4, 29, 0))):
        ball = (z - z0) ** 2 + (y - y0) ** 2 + (x - x0) ** 2 < 4
        np.testing.assert_array_equal(found.segmentation == value, ball)
    everything = model.predict(points={"object 9": [1, 4, 8]}, auto_prompt="coarse")
    assert list(everything.labels) == ["liver", "spleen", "lesion", "object 9"]
    assert everything.segmentation[1, 4, 8] == 14


@pytest.mark.parametrize("seed", range(4))
def test_prompts_for_one_label_change_no_other_labels_mask(seed):
    rng = np.random.default_rng(seed)
    image = rng.choice([0, *LEVELS], LARGE).astype(np.float32)
    names = ["liver", "spleen", "object 2"]
    prompts = {
        name: {
            "points": rng.integers(0, LARGE, (3, 3)),
            "point_labels": rng.integers(0, 2, 3),
            "masks": rng.random(LARGE) < 0.3 if rng.random() < 0.5 else None,
            "scribbles": [rng.integers(0, LARGE, (2, 3))],
        }
        for name in names
    }
    prompts["spleen"]["boxes"] = [[1, 2, 3], [9, 20, 38]]

    def predict(*names):
        model = predictor(LevelNetwork(click=2.5))
        model.set_image(image, SPACING)
        kinds = {kind for name in names for kind in prompts[name]}
        return model.predict(
            **{k: {n: prompts[n][k] for n in names if k in prompts[n]} for k in sorted(kinds)}
        )

    together = predict(*names)
    alone = {name: predict(name).segmentation for name in names}
    claims = np.sum([mask > 0 for mask in alone.values()], axis=0)
    assert (claims == 1).sum() > 300 and (claims > 1).any()
    for name, value in zip(names, (1, 2, 7), strict=True):
        mine = together.segmentation == value
        np.testing.assert_array_equal(mine[claims <= 1], (alone[name] == value)[claims <= 1])
        assert not (mine & (alone[name] != value)).any()
    np.testing.assert_array_equal(together.segmentation > 0, claims > 0)


def test_a_mask_is_corrected_where_a_click_is():
    labels = np.zeros(LARGE, bool)
    labels[2:9, 4:26, 5:33] = True
    model = predictor(LevelNetwork(click=2.5))
    model.set_image(np.zeros(LARGE, np.float32), SPACING)
    unchanged = model.predict(masks={"lesion": labels, "object": ~labels})
    np.testing.assert_array_equal(unchanged.segmentation, np.where(labels, 5, 6))
    point = (2, 4, 5)
    found = model.predict(
        masks={"lesion": labels}, points={"lesion": point}, point_labels={"lesion": [0]}
    )
    near = np.sum((np.indices(LARGE).T - point) ** 2, axis=-1).T < 2.5**2
    removed = labels & (found.segmentation == 0)
    assert (
        removed[point] and not removed[~near].any() and removed.sum() > 0.6 * (near & labels).sum()
    )
    np.testing.assert_array_equal(found.segmentation[~removed], np.where(labels, 5, 0)[~removed])


def test_a_mask_too_thin_for_the_plans_grid_is_still_answered():
    mask = np.zeros((24, 48, 64), bool)
    mask[3, 4, 5] = True
    model = predictor(LevelNetwork(click=2.0))
    model.set_image(np.zeros(mask.shape, np.float32), (0.9, 0.4, 0.3))
    for name in ("liver", "object"):
        found = model.predict(masks={name: mask}).labels[name]
        assert found.voxels == 0 and found.predicted_iou is not None
    assert model.predict(masks={"object": mask}, points={"object": (3, 4, 5)}).segmentation[3, 4, 5]


def test_what_is_drawn_on_a_slice_holds_there():
    labels = np.zeros((8, 12, 16), bool)
    labels[1:7, 2:10, 3:13] = True
    model = predictor()
    model.set_image(paint(labels.astype(np.uint8)), SPACING)
    found = model.predict(boxes={"liver": [[3, 4, 5], [4, 8, 9]]}).segmentation
    expected = labels.copy()
    expected[3] = False
    expected[3, 4:8, 5:9] = True
    np.testing.assert_array_equal(found == 1, expected)
    lasso = [[0, 4, 3], [7, 4, 3], [7, 4, 9], [0, 4, 9]]  # across y, on the slice 4
    found = model.predict(lassos={"liver": lasso}).segmentation
    np.testing.assert_array_equal(found[:, np.arange(12) != 4] == 1, labels[:, np.arange(12) != 4])
    assert (found[1:7, 4, 4:9] == 1).all() and not found[:, 4, 10:].any()
    assert not found[:, 4, :3].any()
    # a 3D box beside it limits both
    found = model.predict(boxes={"liver": [[[3, 4, 5], [4, 8, 9]], [[2, 3, 3], [6, 9, 8]]]})
    limited = np.zeros_like(labels)
    limited[2:6, 3:9, 3:8] = True
    np.testing.assert_array_equal(found.segmentation == 1, expected & limited)


def test_a_scribble_is_a_row_of_clicks():
    model = predictor(LevelNetwork(click=1.5))
    model.set_image(np.zeros((8, 12, 16), np.float32), SPACING)
    found = model.predict(
        scribbles={"spleen": [[[4, 6, 2], [4, 6, 14]], [[4, 6, 8], [4, 6, 10]]]},
        scribble_labels={"spleen": [1, 0]},
    ).segmentation
    expected = np.zeros((8, 12, 16), bool)
    expected[4, 6, 1:7] = True  # the second takes 8 to 10, and the voxels beside
    expected[4, 6, 12:16] = True
    assert not found[[0, 1, 7]].any() and not found[4, 6, 7:12].any()
    np.testing.assert_array_equal(found[4, 6] == 2, expected[4, 6])


def test_prompting_before_an_image_is_set_is_refused():
    with pytest.raises(RuntimeError, match="no image is set; call set_image first"):
        predictor().predict()


@pytest.mark.parametrize("step_size", [0, -0.5, 1.01])
def test_a_step_outside_0_to_1_is_refused(step_size):
    with pytest.raises(ValueError, match=r"step_size must be in \(0, 1\], got"):
        predictor(step_size=step_size)
    for call in (load_predictor, lambda folder, **how: PredictionOptions(**how)):
        with pytest.raises(ValueError, match=r"step_size must be in \(0, 1\], got"):
            call("nowhere", step_size=step_size)  # before anything is loaded


def save_fold(folder, fold, plans, seed=0):
    torch.manual_seed(seed)
    network = build_network(plans, "vit")
    settings = TrainingSettings(mirror_axes=(2,))
    content = {
        "plans": plans.to_json(),
        "encoder": "vit",
        "settings": settings.to_json(),
        "network": network.state_dict(),
    }
    save_checkpoint(folder / f"fold_{fold}" / "checkpoint_final.pth", content)


def test_a_model_folder_gives_all_its_folds_and_their_mean(tmp_path):
    plans = small_plans()
    for fold in ("0", "1"):
        (tmp_path / f"fold_{fold}").mkdir()
        save_fold(tmp_path, fold, plans, seed=int(fold))
    both = load_predictor(tmp_path)
    assert len(both.networks) == 2 and both.flips == [(), (2,)] and both.plans == plans
    assert load_predictor(tmp_path, tta=False).flips == [()]
    image = np.random.default_rng(0).uniform(0, 255, SMALL)
    ious = []
    for folds in (["0"], ["1"], None):
        model = load_predictor(tmp_path, folds=folds)
        model.set_image(image, SPACING)
        ious.append(model.predict(labels=["liver"]).labels["liver"].predicted_iou)
    assert ious[2] == pytest.approx((ious[0] + ious[1]) / 2, abs=1e-6) and ious[0] != ious[1]

    with pytest.raises(FileNotFoundError, match=r"fold_3.*folds with a .*: fold_0, fold_1"):
        load_predictor(tmp_path, folds=["3"])
    with pytest.raises(FileNotFoundError, match=r"no fold with a checkpoint_best.pth.*-chk"):
        load_predictor(tmp_path, checkpoint="checkpoint_best.pth")
    with pytest.raises(FileNotFoundError, match="nowhere: no such model folder"):
        load_predictor(tmp_path / "nowhere")
    (tmp_path / "fold_2").mkdir()
    save_fold(tmp_path, "2", plans)
    earlier = load_checkpoint(tmp_path / "fold_2" / "checkpoint_final.pth")
    earlier["plans"]["window"] = earlier["plans"].pop("patch_size")  # the former name
    torch.save(earlier, tmp_path / "fold_2" / "checkpoint_final.pth")
    assert load_predictor(tmp_path).plans == plans
    save_fold(tmp_path, "2", small_plans(spacing=(2.0, 1.0, 1.0)))
    with pytest.raises(ValueError, match=r"fold_2.* was trained with other plans than .*fold_0"):
        load_predictor(tmp_path)


@pytest.mark.parametrize("spacing", [SPACING, (5.0, 1.0, 1.5)])  # the second is resampled
def test_a_box_that_a_person_drew_holds_and_an_automatic_one_need_not(spacing):
    image, labels = blocks(LARGE)  # the liver: 1 to 10, 2 to 28, 1 to 12
    model = predictor(LevelNetwork(inside_box=False))
    model.set_image(image, spacing)
    box = [[1, 2, 1], [8, 22, 12]]
    found = model.predict(boxes={"liver": box}).segmentation == 1
    held = np.zeros(LARGE, bool)
    held[1:8, 1:23, 1:12] = True  # one voxel of a side of 20 is left to haste, and none of 7
    sure = (
        ndimage.binary_erosion(labels == 1, border_value=1) if spacing != SPACING else labels == 1
    )
    assert (found[sure & held]).all() and not found[~held].any()
    proposed = make_prompts(boxes=[box], shape=LARGE, source="atlas")
    found = model.predict_prompts({"liver": proposed}, labels=["liver"]).segmentation == 1
    assert found[sure & held].all() and (found & ~held & sure).any()

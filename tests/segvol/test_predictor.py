"""SegVol's zoom-out and zoom-in, with a network whose answer is known, against a literal one."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from promptseg.inference.predictor import Predictor
from promptseg.networks.prompt_encoder import NO_LABEL, NO_POINT
from promptseg.preprocessing.normalize import foreground_clipping
from promptseg.prompts.types import make_prompts
from promptseg.segvol.predictor import SegVolPredictor
from tests.segvol.literal import NO_POINTS, literal_segvol
from tests.small_plans import small_plans

PATCH_SIZE = (8, 24, 20)
SPACING = (3.0, 0.9, 1.1)
LABELS = {"liver": 1, "spleen": 2, "lesion": 5}


def answer(image, box, points, kinds) -> torch.Tensor:
    """Bright voxels, more so in the box and near foreground points, less far from background ones.

    Every number of the prompt moves the logits, so that a box or point off by a voxel is seen.
    """
    logits = 6 * image.reshape(image.shape[-3:]).double() - 2.5
    axes = torch.meshgrid(*(torch.arange(float(n)) for n in logits.shape), indexing="ij")
    places = torch.stack(axes, dim=-1).double()
    if box is not None:
        low, high = torch.as_tensor(np.asarray(box, float)).reshape(2, 3)
        logits = logits - 6.0 * ((places < low) | (places > high)).any(dim=-1)
        logits = logits + 0.01 * (box * np.arange(1, 7)).sum()
    for point, kind in zip(np.asarray(points, float), kinds, strict=True):
        distance = (places - torch.as_tensor(point)).norm(dim=-1)
        logits = logits + (1 if kind else -1) * 2 * torch.exp(-distance / 6)
    return logits.float()


class BrightNetwork(nn.Module):
    """`answer` behind the interface of a SegVol network; keeps what it was given."""

    def __init__(self, learned=(False, False, False)) -> None:
        super().__init__()
        self.label_text = SimpleNamespace(learned=torch.tensor(learned))
        self.images, self.asked = [], []

    def encode(self, image):
        self.images.append(image[0, 0].clone())
        return image

    def decode(self, encoding, prompts):
        logits = []
        for i in range(len(prompts)):
            box = None
            if prompts.has_box[i]:
                low, high = prompts.boxes[i].numpy()
                box = np.concatenate([low, high - 1])
            own = prompts.point_labels[i] != NO_POINT
            points, kinds = prompts.points[i][own].numpy(), prompts.point_labels[i][own].numpy()
            self.asked.append((int(prompts.labels[i]), box, points))
            logits.append(answer(encoding / 255, box, points, kinds))
        return torch.stack(logits), torch.full((len(prompts),), 2.0)


def plans(**changes):
    values = {
        "preset": "segvol",
        "normalizations": (foreground_clipping(),),
        "patch_size": PATCH_SIZE,
        "stride": (4, 8, 4),
        "labels": LABELS,
    }
    return small_plans(**{**values, **changes})


def predictor(network=None, **options) -> SegVolPredictor:
    return SegVolPredictor([network or BrightNetwork()], plans(), **options)


def volume(shape, seed=0) -> np.ndarray:
    """(z, y, x): dark border, noisy body, two bright blocks."""
    rng = np.random.default_rng(seed)
    z, y, x = shape
    image = rng.normal(-500, 5, shape)
    image[:, 2 : y - 1, 1 : x - 2] = rng.normal(0, 60, (z, y - 3, x - 3))
    image[z // 4 : z // 2 + 1, y // 4 : y // 2, x // 3 : 2 * x // 3] += 250
    image[z // 2 :, 3 * y // 5 : 4 * y // 5, 2 * x // 3 : x - 3] += 220
    return image.astype(np.float32)


def box_of(shape) -> np.ndarray:
    z, y, x = shape
    return np.array([[z // 4, y // 4 - 1, x // 3 - 1], [z // 2 + 1, y // 2 + 1, 2 * x // 3 + 1]])


def points_of(shape) -> tuple[np.ndarray, np.ndarray]:
    z, y, x = shape
    points = [[z // 3, y // 3, x // 2], [z // 2, 2 * y // 3, 3 * x // 4], [z // 3, y - 5, 3]]
    return np.array(points), np.array([1, 1, 0])


SHAPES = [
    (5, 19, 17),  # smaller than the patch everywhere
    (6, 61, 18),  # larger along one axis
    (8, 24, 20),  # about the patch
    (13, 40, 33),  # the region of the box fits, that of all that is bright does not
    (30, 70, 50),
]


@pytest.mark.parametrize("kind", ["box", "points", "both"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_segmentation_is_that_of_a_literal_walk(shape, kind):
    raw = volume(shape)
    given = {}
    if kind != "points":
        given["box"] = box_of(shape)
    if kind != "box":
        given["points"] = points_of(shape)
    expected = literal_segvol(raw, PATCH_SIZE, answer, **given)
    assert 20 < (expected > 0).sum() < 0.9 * raw.size

    model = predictor()
    model.set_image(raw, SPACING)
    points, kinds = given.get("points", NO_POINTS)
    prediction = model.predict(
        boxes={"lesion": given["box"]} if "box" in given else None,
        points={"lesion": points} if len(points) else None,
        point_labels={"lesion": kinds} if len(points) else None,
    )

    # voxels at the threshold may fall on either side by rounding
    sure = np.abs(expected) > 1e-3
    np.testing.assert_array_equal((prediction.segmentation == 5)[sure], (expected > 0)[sure])
    assert sure.mean() > 0.99 and set(np.unique(prediction.segmentation)) == {0, 5}
    result = prediction.labels["lesion"]
    assert result.voxels == (prediction.segmentation == 5).sum()
    assert result.prompts.reason == "ok" and result.predicted_iou is None


def test_segvols_bug_of_the_box_that_is_not_padded_would_be_seen():
    shape = SHAPES[0]
    raw, box = volume(shape), box_of(shape)
    right = literal_segvol(raw, PATCH_SIZE, answer, box=box)
    with_bug = literal_segvol(raw, PATCH_SIZE, answer, box=box, padded=False)
    assert ((right > 0) != (with_bug > 0)).sum() > 20


def test_the_second_look_is_at_native_voxels_where_the_first_found_something():
    shape = (30, 70, 50)
    network, raw = BrightNetwork(), volume(shape)
    model = predictor(network)
    model.set_image(raw, SPACING)
    box = np.array([[8, 20, 18], [13, 30, 30]])
    model.predict(boxes={"liver": box})
    first, second = network.images
    (_, _, _), (label, asked, _) = network.asked
    assert label == 0 and first.shape == second.shape == PATCH_SIZE
    # the box in the patch, and what is there in the image, belong together
    low, high = asked.reshape(2, 3).astype(int)
    inside = second.numpy()[tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))]
    model_image = model._current_image().decoder.image
    expected = model_image[:, 8:13, 20:30, 18:30][0]
    np.testing.assert_array_equal(inside, expected)


def test_each_patch_is_encoded_once_for_all_labels_and_for_all_calls():
    network = BrightNetwork()
    model = predictor(network)
    shape = (6, 61, 18)
    model.set_image(volume(shape), SPACING)
    box = box_of(shape)
    model.predict(boxes={"liver": box})
    count = len(network.images)
    model.predict(boxes={name: box for name in LABELS})
    assert len(network.images) == count and len(network.asked) == 4 * count
    assert [label for label, _, _ in network.asked[:2]] == [0, 0]


def test_several_boxes_of_a_label_are_several_objects():
    shape = (13, 40, 33)
    raw, first = volume(shape), box_of(shape)
    second = np.array([[6, 24, 22], [13, 32, 30]])
    expected = [literal_segvol(raw, PATCH_SIZE, answer, box=box) for box in (first, second)]
    model = predictor()
    model.set_image(raw, SPACING)
    found = model.predict(boxes={"spleen": [first, second]}).segmentation == 2
    best = np.maximum(*expected)
    sure = np.abs(best) > 1e-3
    np.testing.assert_array_equal(found[sure], (best > 0)[sure])


def test_nothing_found_is_an_empty_answer():
    model = predictor()
    raw = volume((13, 40, 33))
    raw[5, 20, 16] = 3000  # alone bright, and not in the box
    model.set_image(raw, SPACING)
    prediction = model.predict(boxes={"liver": [[0, 3, 2], [2, 5, 4]]})
    assert not prediction.segmentation.any()
    assert prediction.labels["liver"].flags == ("empty",)


def test_a_name_that_no_training_has_learned_is_no_prompt():
    network = BrightNetwork()
    model = predictor(network)
    model.set_image(volume((13, 40, 33)), SPACING)
    prediction = model.predict()
    assert not prediction.segmentation.any() and not network.asked
    for result in prediction.labels.values():
        assert result.flags == ("no_box", "empty") and result.prompts.reason == "no_box"
        assert result.prompts.source == "none" and result.predicted_iou is None


def test_a_learned_name_is_asked_for_alone_and_in_every_patch():
    network = BrightNetwork(learned=(True, False, True))
    model = predictor(network)
    raw = volume((6, 61, 18))
    model.set_image(raw, SPACING)
    prediction = model.predict()
    assert {label for label, _, _ in network.asked} == {0, 2}
    assert all(box is None and not len(points) for _, box, points in network.asked)
    expected = literal_segvol(raw, PATCH_SIZE, answer)
    sure = np.abs(expected) > 1e-3  # where logits of both are equal the lower value wins
    np.testing.assert_array_equal((prediction.segmentation == 1)[sure], (expected > 0)[sure])
    assert prediction.labels["liver"].predicted_iou == pytest.approx(1 / (1 + np.exp(-2)))
    assert prediction.labels["spleen"].flags == ("no_box", "empty")


def test_prompts_in_the_dark_surround_are_reported():
    model = predictor()
    model.set_image(volume((13, 40, 33)), SPACING)
    prediction = model.predict(
        boxes={"liver": [[0, 0, 0], [13, 2, 33]]}, points={"spleen": [[4, 39, 20]]}
    )
    assert not prediction.segmentation.any()
    assert prediction.labels["liver"].flags == ("outside_foreground", "empty")
    assert prediction.labels["spleen"].prompts.reason == "outside_foreground"


def test_the_intensity_prompt_looks_at_the_image_as_segvol_normalizes_it():
    raw = volume((13, 40, 33))
    model = predictor()
    model.set_image(raw, SPACING)
    prediction = model.predict(labels=["liver"], auto_prompt="intensity")
    prompts = prediction.labels["liver"].prompts
    assert prompts.source == "intensity" and len(prompts.boxes) == 1
    expected = literal_segvol(raw, PATCH_SIZE, answer, box=prompts.boxes[0].astype(int))
    sure = np.abs(expected) > 1e-3
    np.testing.assert_array_equal((prediction.segmentation == 1)[sure], (expected > 0)[sure])
    # nothing to propose: the proposal's own reason is kept
    model.set_image(np.full((5, 9, 7), 3.0), SPACING)
    empty = model.predict(labels=["liver"], auto_prompt="intensity").labels["liver"]
    assert empty.prompts.reason == "constant_image" and "no_box" in empty.flags


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 40, 3), (2, 3, 90)])
def test_thin_volumes_go_through(shape):
    rng = np.random.default_rng(4)
    model = predictor()
    model.set_image(rng.normal(0, 1, shape), SPACING)
    prediction = model.predict(boxes={"liver": [(0, 0, 0), shape]})
    assert prediction.segmentation.shape == shape


def test_answers_of_two_networks_are_averaged():
    networks = [BrightNetwork(), BrightNetwork()]
    model = SegVolPredictor(networks, plans())
    shape = (13, 40, 33)
    raw = volume(shape)
    model.set_image(raw, SPACING)
    found = model.predict(boxes={"liver": box_of(shape)}).segmentation
    single = predictor()
    single.set_image(raw, SPACING)
    np.testing.assert_array_equal(
        found, single.predict(boxes={"liver": box_of(shape)}).segmentation
    )
    assert len(networks[0].images) == len(networks[1].images) > 0
    assert NO_LABEL not in {label for label, _, _ in networks[0].asked}


def test_images_that_do_not_fit_are_refused():
    model = predictor()
    with pytest.raises(ValueError, match=r"1 channel\(s\)"):
        model.set_image(np.zeros((2, 5, 6, 7)), SPACING)
    with pytest.raises(ValueError, match="1 of 210 voxels are NaN"):
        bad = np.zeros((5, 6, 7))
        bad[1, 2, 3] = np.nan
        model.set_image(bad, SPACING)
    assert isinstance(model, Predictor)


def test_perturbed_prompts_tell_how_far_answers_agree_at_no_further_encoding():
    shape = (13, 40, 33)
    networks = [BrightNetwork(), BrightNetwork()]
    for network, n_perturbations in zip(networks, (0, 4), strict=True):
        model = predictor(network, n_perturbations=n_perturbations)
        model.set_image(volume(shape), SPACING)
        prediction = model.predict(boxes={"liver": box_of(shape)}, labels=["liver", "spleen"])
        prompt_consistency = prediction.labels["liver"].prompt_consistency
        assert prompt_consistency is None if n_perturbations == 0 else 0 < prompt_consistency < 1
        assert prediction.labels["spleen"].prompt_consistency is None
    assert len(networks[0].images) == len(networks[1].images)
    assert len(networks[1].asked) == len(networks[0].asked) + 4


def test_probabilities_are_those_of_the_second_look_on_the_raw_grid():
    shape = (30, 70, 50)
    raw = volume(shape)
    expected = literal_segvol(raw, PATCH_SIZE, answer, box=box_of(shape))
    model = predictor(keep_probabilities=True)
    model.set_image(raw, SPACING)
    prediction = model.predict(boxes={"spleen": box_of(shape)})
    lower, region = prediction.probabilities.region("spleen")
    here = tuple(slice(a, a + n) for a, n in zip(lower, region.shape, strict=True))
    np.testing.assert_allclose(region, 1 / (1 + np.exp(-expected[here])), rtol=0, atol=2e-3)
    outside = expected.copy()
    outside[here] = -np.inf
    assert not (outside > 0).any()


def test_what_training_measured_of_the_first_look_changes_no_prompt():
    model = SegVolPredictor([BrightNetwork()], plans(), measured_dice={"liver": {"coarse": 1.0}})
    model.set_image(volume((13, 40, 33)), SPACING)
    result = model.predict(labels=["liver"], auto_prompt="plans").labels["liver"]
    assert result.prompts.reason == "no_usable_strategy"


def test_many_queries_about_a_tall_region_take_one_pass_and_answer_as_each_does_alone(monkeypatch):
    image = volume((40, 30, 33))
    box = np.array([[1, 0, 0], [39, 29, 31]])  # all that is bright is in each
    asked = np.stack([box + [[0, number % 3, 0], [0, 0, 0]] for number in range(10)])
    network = BrightNetwork()
    model = predictor(network, keep_probabilities=True)
    model.most_encodings = 1
    model.set_image(image, SPACING)
    looks = model._image.decoder.first_looks
    regions = set()
    monkeypatch.setattr(
        model._image.decoder,
        "first_looks",
        lambda *rest: [
            regions.add(tuple(look.region.ravel().tolist())) or look for look in looks(*rest)
        ],
    )
    together = model.predict(boxes={"lesion": asked})
    encoded = len(network.images)
    assert len(regions) == 1 and encoded > 4  # the whole, and the patches of the region, once

    single = predictor(BrightNetwork(), keep_probabilities=True)
    single.set_image(image, SPACING)
    found, best = np.zeros(image.shape, bool), np.zeros(image.shape, np.float16)
    for one in asked[:3]:
        prediction = single.predict(boxes={"lesion": one})
        found |= prediction.segmentation == 5
        lower, region = prediction.probabilities.region("lesion")
        here = tuple(slice(a, a + n) for a, n in zip(lower, region.shape, strict=True))
        best[here] = np.maximum(best[here], region)
    assert encoded == len(single._image.decoder.networks[0].images)
    np.testing.assert_array_equal(together.segmentation == 5, found)
    lower, region = together.probabilities.region("lesion")
    here = tuple(slice(a, a + n) for a, n in zip(lower, region.shape, strict=True))
    np.testing.assert_array_equal(region, best[here])


NO_MASK = np.zeros((13, 40, 33), bool)
SOME_MASK = np.ones((13, 40, 33), bool)
UNUSABLE = [
    ({"masks": {"liver": SOME_MASK}}, "label 'liver': SegVol's weights cannot use a mask to corr"),
    ({"lassos": {"liver": [[3, 1, 1], [3, 1, 9], [3, 9, 1]]}}, "cannot use a lasso; give 3D box"),
    ({"boxes": {"spleen": [[3, 1, 1], [4, 9, 9]]}}, "label 'spleen': .*a box on a single slice"),
    (
        {"boxes": {"liver": [[3, 1, 1], [8, 9, 9]]}, "masks": {"object": SOME_MASK}},
        "label 'object': .* a mask to correct; .*without the preset segvol",
    ),
]


@pytest.mark.parametrize(("prompts", "message"), UNUSABLE)
def test_masks_and_what_is_drawn_on_slices_are_refused(prompts, message):
    network = BrightNetwork()
    model = predictor(network)
    model.set_image(volume((13, 40, 33)), SPACING)
    with pytest.raises(ValueError, match=message):
        model.predict(**prompts)
    assert not network.images
    model.predict(masks={"liver": NO_MASK})  # none: the name alone, which was not learned


def test_there_are_no_sessions():
    model = predictor()
    model.set_image(volume((13, 40, 33)), SPACING)
    for label in ("liver", None):
        with pytest.raises(ValueError, match="cannot correct a mask, so there are no sessions"):
            model.new_object(label)


def test_scribbles_are_points():
    shape = (13, 40, 33)
    raw, box = volume(shape), box_of(shape)
    line = [[6, 12, 12], [6, 12, 20]]
    points = [[6, 12, x] for x in (12, 14, 16, 18, 20)]  # every second voxel
    expected = literal_segvol(
        raw, PATCH_SIZE, answer, box=box, points=(np.array(points), np.ones(5, int))
    )
    network = BrightNetwork()
    model = predictor(network)
    model.set_image(raw, SPACING)
    found = model.predict(boxes={"lesion": box}, scribbles={"lesion": line})
    assert len(network.asked[0][2]) == 5 and found.labels["lesion"].voxels > 20
    sure = np.abs(expected) > 1e-3
    np.testing.assert_array_equal((found.segmentation == 5)[sure], (expected > 0)[sure])


def test_objects_without_a_name_are_found_by_their_box():
    shape = (13, 40, 33)
    raw, box = volume(shape), box_of(shape)
    expected = literal_segvol(raw, PATCH_SIZE, answer, box=box)
    network = BrightNetwork()
    model = predictor(network)
    model.set_image(raw, SPACING)
    found = model.predict(boxes={"object 2": box})
    sure = np.abs(expected) > 1e-3
    np.testing.assert_array_equal((found.segmentation == 7)[sure], (expected > 0)[sure])
    assert {label for label, _, _ in network.asked} == {NO_LABEL}


def test_a_thin_box_of_an_automatic_prompt_is_a_box(monkeypatch):
    model = predictor()
    model.set_image(volume((13, 40, 33)), SPACING)
    thin = make_prompts(boxes=[[4, 8, 9], [5, 22, 23]], shape=(13, 40, 33), source="atlas")
    monkeypatch.setattr(model.proposer, "propose", lambda *rest: {"liver": thin})
    model.predict(labels=["liver"], auto_prompt="plans")
    _, box, points = model.networks[0].asked[0]
    assert box is not None and not len(points)

"""Many images through one predictor, in their order."""

from __future__ import annotations

import re

import numpy as np
import pytest

from promptseg.inference.batch.predict_files import predict_iterator
from promptseg.inference.predictor import Predictor
from promptseg.io.images import Geometry, write_image
from tests.inference.fakes import LevelNetwork
from tests.inference.test_predictor import LARGE, MIXED, SMALL, SPACING, blocks
from tests.small_plans import small_plans


def predictor() -> Predictor:
    return Predictor([LevelNetwork(inside_box=False)], small_plans())


def geometry(shape) -> Geometry:
    direction = tuple(np.eye(3).ravel())
    return Geometry(shape=shape, spacing=SPACING, origin=(0, 0, 0), direction=direction)


def test_arrays_and_files_come_back_in_their_order(tmp_path):
    images = {shape: blocks(shape) for shape in (SMALL, MIXED, LARGE)}
    write_image(tmp_path / "a.nii.gz", images[MIXED][0], geometry(MIXED))
    write_image(tmp_path / "b.nrrd", images[LARGE][0], geometry(LARGE))
    items = [
        (images[SMALL][0], SPACING),
        tmp_path / "a.nii.gz",
        [str(tmp_path / "b.nrrd")],
        str(tmp_path / "a.nii.gz"),
        [images[SMALL][0][None], SPACING],
    ]
    found = list(predict_iterator(predictor(), iter(items)))
    for shape, prediction in zip((SMALL, MIXED, LARGE, MIXED, SMALL), found, strict=True):
        np.testing.assert_array_equal(prediction.segmentation, images[shape][1])
    assert list(predict_iterator(predictor(), [])) == []


def test_prompts_are_for_all_images():
    image, labels = blocks(SMALL)
    items = [(image, SPACING), (image[::-1], SPACING)]
    for result in predict_iterator(predictor(), items, labels=["spleen"]):
        assert list(result.labels) == ["spleen"]
        assert result.labels["spleen"].voxels == (labels == 2).sum()


def test_every_kind_of_prompt_can_be_given():
    image, labels = blocks(SMALL)
    model = Predictor([LevelNetwork(click=1.1)], small_plans())
    prompts = {
        "points": {"object": [2, 4, 10]},
        "scribbles": {"liver": [[1, 2, 1]]},
        "scribble_labels": {"liver": [0]},
        "lassos": {"object 2": [[3, 0, 0], [3, 0, 4], [3, 4, 4], [3, 4, 0]]},
        "masks": {"spleen": labels == 5},
    }
    for found in predict_iterator(model, [(image, SPACING)] * 2, **prompts):
        assert list(found.labels) == ["object", "liver", "object 2", "spleen"]
        near = np.sum((np.indices(SMALL).T - (2, 4, 10)) ** 2, axis=-1).T < 1.1**2
        np.testing.assert_array_equal(found.segmentation == 6, near)
        assert found.segmentation[1, 2, 1] == 0 and found.segmentation[1, 4, 1] == 1
        assert found.segmentation[3, 2, 2] == 7 and found.segmentation[3, 3, 1] == 7
        np.testing.assert_array_equal(found.segmentation == 2, (labels == 5) & ~near)


def test_an_endless_stream_is_read_one_image_ahead_and_can_be_left():
    taken = []

    def stream():
        while True:
            taken.append(len(taken))
            yield blocks(SMALL)[0], SPACING

    coming = predict_iterator(predictor(), stream())
    assert taken == []  # nothing before it is asked for
    next(coming), next(coming)
    coming.close()
    assert len(taken) <= 3


@pytest.mark.parametrize(
    ("item", "error", "message"),
    [
        ("nowhere.nii.gz", FileNotFoundError, "nowhere.nii.gz"),
        (
            blocks(SMALL)[0],
            ValueError,
            "expected an image file, a list of one file per channel, or",
        ),
        ("two channels", ValueError, "a_0001.nii.gz: expected an image of 1 channel(s)"),
        ([], ValueError, "(array, spacing), found list"),
        (7, ValueError, "(array, spacing), found int"),
        ([7], ValueError, "(array, spacing), found list"),
        ((blocks(SMALL)[0][0], SPACING), ValueError, "expected an image of 1 channel(s)"),
        ((blocks(SMALL)[0], (1.0, 0.0, 1.0)), ValueError, "spacing"),
    ],
)
def test_a_wrong_image_is_raised_in_its_place(item, error, message, tmp_path):
    if isinstance(item, str) and item == "two channels":
        item = [tmp_path / "a_0000.nii.gz", tmp_path / "a_0001.nii.gz"]
        for file in item:
            write_image(file, blocks(SMALL)[0], geometry(SMALL))
    coming = predict_iterator(predictor(), [(blocks(SMALL)[0], SPACING), item])
    next(coming)
    with pytest.raises(error, match=re.escape(message)):
        next(coming)

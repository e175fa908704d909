"""A folder of the challenge's npz files to npz segmentations of the same names."""

from __future__ import annotations

import logging
import re

import numpy as np
import pytest

from promptseg.files import read_json
from promptseg.inference.batch.predict_files import predict_cases, predict_iterator
from promptseg.inference.predictor import Predictor
from promptseg.io.dataset import cases_in_folder
from promptseg.io.images import Geometry, write_image
from promptseg.preprocessing.normalize import ct_window
from tests.inference.fakes import LevelNetwork
from tests.inference.test_predictor import SMALL, SPACING, blocks
from tests.small_plans import small_plans

HU = small_plans(normalizations=(ct_window("lung"),))


def predict(folder, output, plans):
    predictor = Predictor([LevelNetwork(inside_box=False)], plans)
    cases, notes, problems = cases_in_folder(folder, 1)
    assert not notes and not problems
    return predict_cases(predictor, cases, output)


def warnings_in(caplog) -> list[str]:
    """The window in each warning that a window was assumed."""
    messages = [record.getMessage() for record in caplog.records]
    found = [re.search(r"windowed to \[0, 255\] already.*do \((.*?)\)\.", m) for m in messages]
    return [match[1] for match in found if match]


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("CT_A_0000.npz", "CT_A_0018.npz"):
        image = blocks(SMALL)[0].astype(np.uint8)
        np.savez_compressed(folder / name, imgs=image, spacing=SPACING[::-1], allow_pickle=True)
    return folder


@pytest.mark.parametrize("plans", [small_plans(), HU], ids=["windowed", "hu"])
def test_segmentations_have_the_names_and_the_layout_of_the_challenge(
    images, tmp_path, plans, caplog
):
    (images / "CT_bad.npz").write_bytes(b"PK no")

    with caplog.at_level(logging.WARNING, logger="promptseg"):
        report = predict(images, tmp_path / "out", plans)

    assert {path.name for path in (tmp_path / "out").glob("*.npz")} == {
        "CT_A_0000.npz",
        "CT_A_0018.npz",
    }
    for path in (tmp_path / "out").glob("*.npz"):
        with np.load(path) as content:
            np.testing.assert_array_equal(content["segs"], blocks(SMALL)[1])
            assert content["segs"].dtype == np.uint8
    assert report["failed"] == 1
    assert "CT_bad.npz cannot be read as .npz" in report["cases"]["CT_bad"]["error"]
    assert read_json(tmp_path / "out" / "predict_report.json") == report
    # Windowing the windowed image once more would have moved every level; once is said, not twice.
    assert warnings_in(caplog) == (["-910 to 590 HU"] if plans is HU else [])
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="promptseg"):
        predict(images, tmp_path / "again", plans)
    assert len(warnings_in(caplog)) == (plans is HU)  # in every run


@pytest.mark.parametrize("plans", [small_plans(), HU], ids=["windowed", "hu"])
def test_one_image_after_the_other_is_read_alike(images, tmp_path, plans, caplog):
    files = sorted(images.iterdir())
    predictor = Predictor([LevelNetwork(inside_box=False)], plans)
    with caplog.at_level(logging.WARNING, logger="promptseg"):
        found = list(predict_iterator(predictor, [files[0], [files[1]], str(files[0])]))
    for prediction in found:
        np.testing.assert_array_equal(prediction.segmentation, blocks(SMALL)[1])
    assert warnings_in(caplog) == (["-910 to 590 HU"] if plans is HU else [])


def test_an_image_in_hu_is_refused_by_a_model_of_windowed_images(tmp_path):
    geometry = Geometry(shape=SMALL, spacing=SPACING)
    write_image(tmp_path / "images" / "a.nii.gz", blocks(SMALL)[0] * 5 - 1000, geometry)
    model = Predictor([LevelNetwork()], small_plans())
    with pytest.raises(ValueError, match=r"channel 0: found intensities -1000 to 200, expected 0"):
        model.set_image(blocks(SMALL)[0] * 5 - 1000, SPACING)
    cases, _, _ = cases_in_folder(tmp_path / "images", 1)
    report = predict_cases(model, cases, tmp_path / "out")
    assert "a.nii.gz: channel 0: found intensities" in report["cases"]["a"]["error"]

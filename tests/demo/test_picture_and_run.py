"""The demo's picture, read back from files, and what the demo refuses."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from promptseg.boxes import mask_box
from promptseg.demo.phantom import LABELS, make_phantom, write_phantom_dataset
from promptseg.demo.picture import PictureRow, draw_cases, telling_slice
from promptseg.demo.run import picture_rows, run_demo
from promptseg.evaluation.evaluate import evaluate_folders
from promptseg.files import write_json


def row(**changes) -> PictureRow:
    phantom = make_phantom("US", np.random.default_rng(0))
    values = {
        "case_id": "case_1",
        "image": phantom.image,
        "reference": phantom.segmentation,
        "prediction": np.zeros_like(phantom.segmentation),
        "spacing": phantom.spacing,
        "labels": LABELS,
    }
    return PictureRow(**(values | changes))


def pixels(path) -> np.ndarray:
    from matplotlib.image import imread

    return imread(path)[..., :3]


def near(picture: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((np.abs(picture * 255 - colour).max(axis=-1) < 30).sum())


def test_a_box_is_drawn_in_its_labels_colour_unless_it_misses_the_slice(tmp_path):
    lesion_colour = (0xFF, 0x4D, 0x6D)
    reference = row().reference
    box = mask_box(reference == LABELS["lesion"])
    z = telling_slice(reference)
    counts = {}
    for name, boxes in {
        "none": {},
        "here": {"lesion": [box]},
        "elsewhere": {"lesion": [np.array([[z + 1, *box[0, 1:]], [z + 3, *box[1, 1:]]])]},
    }.items():
        draw_cases([row(boxes=boxes)], tmp_path / f"{name}.png", "title")
        counts[name] = near(pixels(tmp_path / f"{name}.png"), lesion_colour)
    assert counts["none"] == counts["elsewhere"] < counts["here"]


def test_cases_without_labels_dice_or_contrast_are_drawn(tmp_path):
    empty = np.zeros((4, 20, 30), np.uint8)
    plain = row(image=empty, reference=empty, prediction=empty, spacing=(3.0, 1.0, 2.0))
    undefined = row(dice={"liver": float("nan"), "lesion": None})
    draw_cases([plain, undefined], tmp_path / "picture.png", "title")
    assert pixels(tmp_path / "picture.png").std() > 0.02
    assert [p.name for p in tmp_path.iterdir()] == ["picture.png"]


def test_a_picture_of_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one case"):
        draw_cases([], tmp_path / "picture.png", "title")


def test_the_telling_slice_counts_a_small_label_as_much_as_a_large_one():
    segmentation = np.zeros((7, 10, 12), np.uint8)
    segmentation[1:6] = 1
    segmentation[1, :2] = 0
    segmentation[4, 3, 4:6] = 2  # takes two of 120 voxels away from label 1
    segmentation[5, 3, 4] = 2
    assert telling_slice(segmentation) == 4
    assert telling_slice(np.zeros((7, 3, 4), np.uint8)) == 3


def test_rows_read_back_from_files_hold_images_boxes_and_dice(tmp_path):
    dataset = write_phantom_dataset(tmp_path, "US", 1, 2, seed=1)
    predictions = tmp_path / "predictions"
    shutil.copytree(dataset / "labelsTs", predictions)
    box = [[1, 2, 3], [20, 30, 40]]
    cases = {"phantom_002": {"lesion": {"boxes": [box], "source": "atlas"}}}
    prompts = {"format_version": 1, "frame": "voxel", "axes": "zyx", "cases": cases}
    write_json(predictions / "prompts_used.json", prompts)
    evaluation = evaluate_folders(dataset / "labelsTs", predictions)

    first, second = picture_rows(dataset, predictions, evaluation, "US")

    assert (first.case_id, second.case_id) == ("phantom_001", "phantom_002")
    assert second.dice == {"liver": 1.0, "kidney": 1.0, "lesion": 1.0}
    assert first.boxes["lesion"] == [] and second.boxes["lesion"] == [box]
    np.testing.assert_array_equal(first.prediction, first.reference)
    draw_cases([first, second], tmp_path / "demo.png", "title")
    assert (tmp_path / "demo.png").stat().st_size > 50_000


def test_a_folder_that_is_no_demo_is_refused_and_left_alone(tmp_path):
    precious = tmp_path / "raw" / "precious.txt"
    precious.parent.mkdir()
    precious.touch()
    with pytest.raises(ValueError, match="was not made by the demo .*nothing was changed"):
        run_demo(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["raw"] and precious.exists()
    with pytest.raises(ValueError, match="is a file; name a folder"):
        run_demo(precious)


def test_an_unknown_modality_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="unknown modality 'XR'; there are CT, MRI, PET, US"):
        run_demo(tmp_path / "demo", modality="XR")
    assert not (tmp_path / "demo").exists()

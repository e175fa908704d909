"""Probabilities of labels: their regions, their file, and what prediction keeps."""

from __future__ import annotations

import io
import pickle
import zipfile

import numpy as np
import pytest
import torch

from promptseg.inference.predictor import Predictor
from promptseg.inference.results import (
    RegionProbabilities,
    probabilities_file,
    read_probabilities,
    write_probabilities,
)
from tests.inference.fakes import LEVELS, WIDTH, LevelNetwork
from tests.inference.test_predictor import SPACING, blocks
from tests.small_plans import small_plans

SHAPE = (5, 9, 11)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def test_slabs_of_a_region_are_put_together():
    logits = np.random.default_rng(0).normal(0, 3, (4, 3, 5)).astype(np.float32)
    kept = RegionProbabilities()
    for first, last in ((1, 3), (0, 1), (3, 4), (4, 4)):  # in any order; the last has nothing
        kept.add("liver", torch.from_numpy(logits[first:last]), np.array([1 + first, 4, 6]))
    lower, region = kept.region("liver")
    assert lower.tolist() == [1, 4, 6] and region.dtype == np.float16
    np.testing.assert_allclose(region, sigmoid(logits), atol=5e-4)
    lower, nothing = kept.region("spleen")
    assert lower.tolist() == [0, 0, 0] and nothing.shape == (0, 0, 0)


def test_objects_share_a_region_and_the_larger_probability_stays():
    kept = RegionProbabilities()
    kept.add("liver", torch.full((2, 2, 3), 1.0), (0, 0, 0))
    kept.add("liver", torch.full((2, 2, 3), -1.0), (0, 0, 2))  # meets the first at x = 2
    kept.add("liver", torch.full((1, 1, 1), 9.0), (3, 4, 6))  # far away
    lower, region = kept.region("liver")
    assert lower.tolist() == [0, 0, 0] and region.shape == (4, 5, 7)
    expected = np.zeros((4, 5, 7))
    expected[:2, :2, 3:5], expected[:2, :2, :3] = sigmoid(-1.0), sigmoid(1.0)
    expected[3, 4, 6] = sigmoid(9.0)
    np.testing.assert_allclose(region, expected, atol=5e-4)


def test_the_file_gives_the_whole_grid_back(tmp_path):
    logits = np.random.default_rng(1).normal(0, 3, (2, 3, 4)).astype(np.float32)
    kept = RegionProbabilities()
    kept.add("left kidney/ö", torch.from_numpy(logits), (3, 6, 7))  # up to the last voxel
    file = tmp_path / "new" / "case.npz"
    write_probabilities(file, kept, ["liver", "left kidney/ö"], SHAPE)
    found = read_probabilities(file)
    assert list(found) == ["liver", "left kidney/ö"]
    expected = np.zeros(SHAPE)
    expected[3:5, 6:9, 7:11] = sigmoid(logits)
    np.testing.assert_allclose(found["left kidney/ö"], expected, atol=5e-4)
    assert found["liver"].shape == SHAPE and not found["liver"].any()
    assert all(values.dtype == np.float16 for values in found.values())
    with np.load(file, allow_pickle=False) as content:  # as the documentation says
        assert content["labels"].tolist() == ["liver", "left kidney/ö"]
        assert content["shape"].tolist() == list(SHAPE)
        assert content["lower_1"].tolist() == [3, 6, 7]
        assert content["probabilities_1"].shape == (2, 3, 4)
    write_probabilities(file, RegionProbabilities(), [], SHAPE)
    assert read_probabilities(file) == {}


def test_a_label_is_forgotten_once_it_is_written_and_the_file_is_what_numpy_writes(
    tmp_path, monkeypatch
):
    kept = RegionProbabilities()
    for number, label in enumerate(("a", "b", "c")):
        kept.add(label, torch.full((2, 3, 4), float(number)), (number, 1, 2))
    regions = {label: kept.region(label) for label in ("a", "b", "c")}
    left = []
    original = RegionProbabilities.region
    monkeypatch.setattr(
        RegionProbabilities,
        "region",
        lambda self, label: left.append(sorted(self._slabs)) or original(self, label),
    )
    file = tmp_path / "case.npz"
    write_probabilities(file, kept, ["a", "b", "c"], SHAPE)
    assert left == [["a", "b", "c"], ["b", "c"], ["c"]] and not kept._slabs
    arrays = {"shape": np.array(SHAPE), "labels": np.array(["a", "b", "c"])}
    for number, (lower, region) in enumerate(regions.values()):
        arrays |= {f"lower_{number}": lower, f"probabilities_{number}": region}
    np.savez_compressed(tmp_path / "numpy.npz", **arrays)
    with zipfile.ZipFile(file) as ours, zipfile.ZipFile(tmp_path / "numpy.npz") as numpys:
        assert ours.namelist() == numpys.namelist()
        assert all(ours.read(name) == numpys.read(name) for name in ours.namelist())


def npz(**arrays) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


GOOD = {
    "shape": np.array(SHAPE),
    "labels": np.array(["liver"]),
    "lower_0": np.array([1, 2, 3]),
    "probabilities_0": np.ones((2, 3, 4), np.float16),
}


def without(key: str) -> bytes:
    return npz(**{name: value for name, value in GOOD.items() if name != key})


def flipped_bits() -> bytes:
    content = bytearray(npz(**GOOD))
    at = content.index(b"probabilities_0.npy") + 60
    content[at : at + 8] = bytes(255 - value for value in content[at : at + 8])
    return bytes(content)


DAMAGED = {
    "empty": (b"", "no probabilities as promptseg_predict"),
    "text": (b"case,label\n", "no probabilities as"),
    "cut": (npz(**GOOD)[:-70], "no probabilities as"),
    "bits": (flipped_bits(), "no probabilities as"),
    "pickle": (pickle.dumps(GOOD), "no probabilities as"),
    "other": (npz(imgs=np.zeros(SHAPE)), "it has no 'shape'"),
    "no labels": (without("labels"), "it has no 'labels'"),
    "no lower": (without("lower_0"), "it has no 'lower_0'"),
    "no region": (without("probabilities_0"), "it has no 'probabilities_0'"),
    "behind": (npz(**{**GOOD, "lower_0": np.array([4, 2, 3])}), r"from \[4, 2, 3\] to \[6, 5, 7\]"),
    "before": (npz(**{**GOOD, "lower_0": np.array([-1, 2, 3])}), "leaves the image of shape"),
    "far": (npz(**{**GOOD, "lower_0": np.array([50, 2, 3])}), "leaves the image of shape"),
    "flat": (npz(**{**GOOD, "probabilities_0": np.ones((3, 4))}), "no probabilities as"),
    "two axes": (npz(**{**GOOD, "shape": np.array([5, 9])}), "no probabilities as"),
    "one label": (npz(**{**GOOD, "labels": np.array("liver")}), "no probabilities as"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_are_refused_by_name(tmp_path, name):
    content, message = DAMAGED[name]
    (tmp_path / "case.npz").write_bytes(content)
    with pytest.raises(ValueError, match=rf"case\.npz(?s:.*){message}"):
        read_probabilities(tmp_path / "case.npz")


def test_a_missing_file_and_one_of_objects_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.npz"):
        read_probabilities(tmp_path / "nowhere.npz")
    objects = np.array([print, None], dtype=object)  # a pickle that is not unpickled
    (tmp_path / "case.npz").write_bytes(npz(**{**GOOD, "probabilities_0": objects}))
    with pytest.raises(ValueError, match=r"case\.npz: no probabilities as"):
        read_probabilities(tmp_path / "case.npz")
    with zipfile.ZipFile(tmp_path / "zip.npz", "w") as archive:
        archive.writestr("shape.npy", b"")
    with pytest.raises(ValueError, match=r"zip\.npz: no probabilities as"):
        read_probabilities(tmp_path / "zip.npz")


@pytest.mark.parametrize("shape", [(5, 9, 11), (11, 30, 41)])
def test_predictions_keep_the_sigmoid_of_the_logits(shape):
    # The fake's logits are (30 - |intensity - level|) / 10 in the box and -10 outside it.
    image, _ = blocks(shape)
    model = Predictor([LevelNetwork()], small_plans(), keep_probabilities=True)
    model.set_image(image, SPACING)
    box = np.array([[1, 2, 1], np.array(shape) - 1])
    found = model.predict(boxes={"spleen": box}, labels=["spleen", "liver"])
    inside = tuple(slice(a, b) for a, b in box.T)
    logits = np.full(shape, -10.0)
    logits[inside] = ((WIDTH - np.abs(image - LEVELS[1])) / 10)[inside]
    lower, region = found.probabilities.region("spleen")
    here = tuple(slice(a, a + n) for a, n in zip(lower, region.shape, strict=True))
    np.testing.assert_allclose(region, sigmoid(logits)[here], atol=1e-3)
    assert (lower <= box[0]).all() and (lower + region.shape >= box[1]).all()
    np.testing.assert_array_equal(found.segmentation == 2, sigmoid(logits) > 0.5)
    assert Predictor([LevelNetwork()], small_plans()).keep_probabilities is False


def test_their_file_lies_apart_from_the_segmentations(tmp_path):
    assert probabilities_file(tmp_path, "a.b") == tmp_path / "probabilities" / "a.b.npz"

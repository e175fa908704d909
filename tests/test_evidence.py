import numpy as np
import pytest

from promptseg import evidence
from promptseg.evidence import evidence_by_label, mask_evidence
from promptseg.plans import Normalization
from promptseg.preprocessing.lazy import LazyImage

SPACING = (3.0, 0.8, 1.1)
BOX = np.array([[5, 6, 7], [9, 16, 13]])  # 4 x 10 x 6 voxels


def blank(box=BOX, shape=(14, 25, 22)):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, b) for a, b in np.transpose(box))] = True
    return mask


def lazy(image):
    image = LazyImage(
        image,
        SPACING,
        normalizations=[Normalization(kind="window", lower=0.0, upper=510.0)] * len(image),
        target_spacing=(1.0, 1.0, 1.0),
    )
    return image.rescaled


def test_a_box_of_two_intensities_is_described_as_by_hand():
    mask = blank()
    values = np.stack([np.where(mask, 200.0, 40.0), np.full(mask.shape, 7.0)])
    values[0, 5:7, 6:16, 7:13] = 180.0  # the lower half
    found = mask_evidence(mask, values, SPACING)
    assert found["log_mm3"] == pytest.approx(np.log10(240 * 3.0 * 0.8 * 1.1))
    assert found["largest"] == 1.0
    assert found["surface"] == pytest.approx((240 - 2 * 8 * 4) / 240 ** (2 / 3))
    assert found["mean_0"] == pytest.approx(190.0) and found["deviation_0"] == pytest.approx(10.0)
    assert found["step_0"] == pytest.approx(150.0)  # two voxels within all of the box's middle
    assert (found["mean_1"], found["deviation_1"], found["step_1"]) == (7.0, 0.0, 0.0)


def test_the_largest_of_several_pieces_counts():
    mask = blank() | blank([[0, 0, 0], [2, 3, 10]])
    found = mask_evidence(mask, np.zeros((1, *mask.shape)), SPACING)
    assert found["largest"] == pytest.approx(240 / 300)


def test_a_mask_that_fills_its_volume_has_no_step():
    mask = np.ones((3, 4, 5), bool)
    found = mask_evidence(mask, np.full((1, 3, 4, 5), 9.0), SPACING)
    assert found["step_0"] == 0.0 and found["surface"] == 0.0


def test_every_label_is_described_in_its_image():
    first, second = blank(), blank([[0, 20, 18], [3, 25, 20]])
    segmentation = (first + 2 * second).astype(np.uint8)
    image = lazy(np.where(first, 400.0, 80.0)[None].astype(np.float32))
    found = evidence_by_label(segmentation, {"a": 1, "b": 2, "not there": 3}, image, SPACING)
    assert set(found) == {"a", "b"}
    alone = mask_evidence(first, np.where(first, 200.0, 40.0)[None], SPACING)
    assert alone.items() <= found["a"].items()
    assert found["a"]["place_z"] == pytest.approx(7 / 14)
    assert found["a"]["place_y"] == pytest.approx(11 / 25)
    assert found["a"]["place_x"] == pytest.approx(10 / 22)
    assert (found["a"]["faces_at_border"], found["b"]["faces_at_border"]) == (0.0, 2.0)


def test_regions_are_described_whole():
    first, second = blank(), blank([[5, 6, 13], [9, 16, 17]])
    segmentation = (first + 2 * second).astype(np.uint8)
    found = evidence_by_label(
        segmentation, {"both": (1, 2)}, lazy(np.zeros((1, *first.shape), np.float32)), SPACING
    )
    assert found["both"]["log_mm3"] == pytest.approx(np.log10(400 * 3.0 * 0.8 * 1.1))


def test_large_masks_are_thinned_and_described_alike(monkeypatch):
    rng = np.random.default_rng(0)
    mask = blank([[4, 6, 8], [44, 56, 60]], (50, 64, 70))
    image = lazy((np.where(mask, 300.0, 60.0) + rng.normal(0, 9, mask.shape))[None])
    whole = evidence_by_label(mask.astype(np.uint8), {"a": 1}, image, SPACING)["a"]
    monkeypatch.setattr(evidence, "MOST_VOXELS", 20_000)
    thinned = evidence_by_label(mask.astype(np.uint8), {"a": 1}, image, SPACING)["a"]
    assert thinned != whole
    for name in ("log_mm3", "mean_0", "step_0", "place_z", "place_x"):
        assert thinned[name] == pytest.approx(whole[name], rel=0.05), name

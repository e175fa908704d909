"""Random grids in the world: files in, files out, on the same grid and in the right place.

A network that thresholds the intensities it is shown must give what thresholding the raw voxels
gives, except within a voxel of the coarser grid of a border.
"""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy import ndimage

from promptseg.inference.batch.predict_files import predict_cases
from promptseg.inference.predictor import Predictor
from promptseg.io.dataset import RawCase
from promptseg.prompts.given import case_from_json
from tests.inference.fakes import LevelNetwork
from tests.small_plans import small_plans

PLANS = small_plans(labels={"bright": 3})  # patch 8x12x16, spacing 2.5x1x0.75 mm
DARK, BRIGHT = 40, 200
ENDINGS = (".nii.gz", ".nrrd", ".mha", ".nii")
SHAPES = [  # zyx
    *[(1, 40, 55), (30, 1, 41), (33, 28, 1)],  # a single slice
    *[(3, 7, 9), (8, 12, 16), (2, 5, 31)],  # smaller than a patch, as large, and both
    *[(17, 26, 40), (33, 18, 20), (9, 50, 17)],  # larger than several
]


class ThresholdNetwork(LevelNetwork):
    """Answers what is brighter than halfway, inside the box if there is one."""

    def _answer(self, encoding, prompts, i):
        image = encoding[prompts.image_index[i], 0]
        logits = (image - (DARK + BRIGHT) / 2) / 10
        if prompts.has_box[i]:
            centres = torch.meshgrid(
                *(torch.arange(float(n)) + 0.5 for n in image.shape), indexing="ij"
            )
            for place, lower, upper in zip(centres, *prompts.boxes[i], strict=True):
                logits = torch.where((place > lower) & (place < upper), logits, -10.0)
        return logits


def random_direction(rng, kind: int) -> np.ndarray:
    """Oblique; axes swapped and flipped; or nearly straight, as scanners have it."""
    if kind == 0:
        return np.linalg.qr(rng.normal(size=(3, 3)))[0]  # a mirrored one half of the time
    if kind == 1:
        return np.eye(3)[rng.permutation(3)] * rng.choice([-1, 1], 3)
    return np.linalg.qr(np.eye(3) + 0.02 * rng.normal(size=(3, 3)))[0]


def write_case(folder, number: int) -> tuple[RawCase, sitk.Image, np.ndarray]:
    """A random image with blobs in it; returns the case, the image and where it is bright, zyx."""
    rng = np.random.default_rng(number)
    shape = SHAPES[number % len(SHAPES)]
    blobs = ndimage.gaussian_filter(rng.normal(size=shape), 0.12 * np.array(shape) + 0.5)
    bright = blobs > np.percentile(blobs, 60)
    values = np.where(bright, BRIGHT, DARK) + rng.integers(-15, 16, shape)
    image = sitk.GetImageFromArray(values.astype([np.int16, np.float32, np.uint8][number % 3]))
    plans_mm = np.array(PLANS.spacing)
    image.SetSpacing((plans_mm * rng.uniform(0.45, 2.2, 3))[::-1].tolist())
    image.SetOrigin(rng.uniform(-500, 500, 3).tolist())
    image.SetDirection(random_direction(rng, number // 3 % 3).ravel().tolist())
    path = folder / f"case_{number:02d}{ENDINGS[number % len(ENDINGS)]}"
    sitk.WriteImage(image, str(path))
    read = sitk.ReadImage(str(path))  # NIfTI rounds its header to float32
    return RawCase(case_id=f"case_{number:02d}", images=(path,), label=None), read, bright


def borders(mask: np.ndarray, spacing_zyx) -> tuple[np.ndarray, np.ndarray]:
    """Voxels that are surely in the mask and surely outside, whatever the resampling."""
    reach = [int(np.ceil(max(1, p / s))) for p, s in zip(PLANS.spacing, spacing_zyx, strict=True)]
    element = np.ones([2 * r + 1 for r in reach])
    inside = ndimage.binary_erosion(mask, element, border_value=1)
    return inside, ~ndimage.binary_dilation(mask, element)


def assert_same_header(written: sitk.Image, image: sitk.Image) -> None:
    assert written.GetSize() == image.GetSize()
    for field in ("GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(
            getattr(written, field)(), getattr(image, field)(), rtol=1e-6, atol=1e-6
        )


@pytest.mark.parametrize("prompt", ["name", "box"])
def test_thirty_random_grids(tmp_path, prompt):
    network, sure = ThresholdNetwork(), []
    predictor = Predictor([network], PLANS)
    (tmp_path / "in").mkdir()
    made = [write_case(tmp_path / "in", number) for number in range(30)]
    from_file, boxes = None, {}
    if prompt == "box":
        for case, _, bright in made:
            shape = np.array(bright.shape)
            boxes[case.case_id] = np.stack([shape // 5, shape - shape // 4])
        from_file = {
            name: case_from_json({"bright": {"boxes": [box.tolist()]}})
            for name, box in boxes.items()
        }

    cases = [case for case, _, _ in made]
    report = predict_cases(predictor, cases, tmp_path / "out", from_file=from_file)

    assert report["failed"] == 0 and len(report["cases"]) == 30
    for case, image, bright in made:
        written = sitk.ReadImage(report["cases"][case.case_id]["prediction"])
        assert_same_header(written, image)
        found = sitk.GetArrayFromImage(written)
        asked = np.ones(bright.shape, bool)
        if boxes:
            lower, upper = boxes[case.case_id]
            asked = np.zeros(bright.shape, bool)
            asked[tuple(map(slice, lower, upper))] = True
        inside, outside = borders(bright & asked, image.GetSpacing()[::-1])
        assert set(np.unique(found)) <= {0, 3}
        assert (found[inside] == 3).all() and not found[outside].any(), case
        sure.append((inside.sum() + outside.sum()) / bright.size)
        reported = report["cases"][case.case_id]["labels"]["bright"]["voxels"]
        assert reported == np.count_nonzero(found)
    assert np.mean(sure) > 0.5  # most voxels are far from a border: much is tested


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("direction", [np.eye(3), np.diag([-1, 1, -1]), np.eye(3)[[2, 0, 1]]])
def test_on_the_plans_own_grid_every_voxel_is_right(tmp_path, shape, direction):
    rng = np.random.default_rng(0)
    bright = rng.random(shape) < 0.5  # no voxel is like its neighbours
    values = np.where(bright, BRIGHT, DARK).astype(np.int16)
    image = sitk.GetImageFromArray(values)
    image.SetSpacing(PLANS.spacing[::-1])
    image.SetOrigin((-7.5, 120.25, 33.0))
    image.SetDirection(direction.ravel().tolist())
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "a.nrrd"
    sitk.WriteImage(image, str(path))
    box = {"bright": {"boxes": [[[0, 0, 0], list(shape)]]}}
    report = predict_cases(
        Predictor([ThresholdNetwork()], PLANS),
        [RawCase(case_id="a", images=(path,), label=None)],
        tmp_path / "out",
        from_file={"a": case_from_json(box)},
    )
    written = sitk.ReadImage(report["cases"]["a"]["prediction"])
    assert_same_header(written, image)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written), np.where(bright, 3, 0))

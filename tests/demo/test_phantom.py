"""Phantoms: labels from the analytic shapes, physics against textbook numbers, files."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.ndimage import binary_erosion

from promptseg.demo import phantom as module
from promptseg.demo.phantom import (
    LABELS,
    MODALITIES,
    SHAPE,
    make_phantom,
    ultrasound_field_of_view,
    write_phantom_dataset,
)
from promptseg.demo.shapes import Ellipsoid, Structure, grid_points, paint
from promptseg.io.images import read_image, read_segmentation


@pytest.fixture(scope="module", params=MODALITIES)
def drawn(request):
    return request.param, make_phantom(request.param, np.random.default_rng(4))


def turned(ellipsoid: Ellipsoid) -> np.ndarray:
    """The ellipsoid's rotation written out with sines and cosines, for x, y, z vectors."""
    (cz, cy, cx), (sz, sy, sx) = (f(np.radians(ellipsoid.degrees)) for f in (np.cos, np.sin))
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    return about_x @ about_y @ about_z


def contains(ellipsoid: Ellipsoid, point_zyx: np.ndarray) -> bool:
    own = turned(ellipsoid).T @ (point_zyx - np.array(ellipsoid.center))[::-1]
    return bool(np.sum((own / np.array(ellipsoid.radii)[::-1]) ** 2) < 1)


def label_at(structures: tuple[Structure, ...], point_zyx: np.ndarray) -> int:
    label = 0
    for structure in structures:
        inside = any(contains(part, point_zyx) for part in structure.parts)
        if inside and (structure.within is None or contains(structure.within, point_zyx)):
            label = LABELS.get(structure.label, 0)
    return label


def test_labels_are_exactly_where_the_shapes_are(drawn):
    modality, phantom = drawn
    rng = np.random.default_rng(1)
    visible = np.ones(SHAPE, bool)
    if modality == "US":
        visible = ultrasound_field_of_view(SHAPE, phantom.spacing)
    border = (phantom.segmentation > 0) ^ binary_erosion(phantom.segmentation > 0)
    voxels = np.concatenate(
        [rng.permutation(np.argwhere(mask))[:150] for mask in (border, visible)]
    )
    for voxel in voxels:
        point = (voxel - (np.array(SHAPE) - 1) / 2) * phantom.spacing
        expected = label_at(phantom.structures, point) if visible[tuple(voxel)] else 0
        assert phantom.segmentation[tuple(voxel)] == expected, voxel


def test_every_label_is_there_and_the_lesion_is_8_to_15_voxels_across():
    for modality in ("CT", "US"):  # MRI and PET have the anatomy of CT
        for seed in range(5):
            segmentation = make_phantom(modality, np.random.default_rng(seed)).segmentation
            assert set(np.unique(segmentation)) == {0, *LABELS.values()}
            lesion = np.argwhere(segmentation == LABELS["lesion"])
            assert ((np.ptp(lesion[:, 1:], axis=0) + 1) >= 8).all()
            assert ((np.ptp(lesion, axis=0) + 1) <= 16).all()


def test_same_seed_same_phantom_other_seed_other_phantom(drawn):
    modality, phantom = drawn
    again = make_phantom(modality, np.random.default_rng(4))
    other = make_phantom(modality, np.random.default_rng(5))

    np.testing.assert_array_equal(again.image, phantom.image)
    np.testing.assert_array_equal(again.segmentation, phantom.segmentation)
    assert (other.segmentation != phantom.segmentation).mean() > 0.01
    assert phantom.image.shape == phantom.segmentation.shape == SHAPE


def interior(phantom, name: str) -> np.ndarray:
    mask = binary_erosion(phantom.segmentation == LABELS[name], iterations=2)
    return phantom.image[mask].astype(float)


def test_ct_has_hounsfield_units():
    image = (phantom := make_phantom("CT", np.random.default_rng(2))).image
    assert image.dtype == np.int16
    assert np.median(image[:, :3]) == pytest.approx(-1000, abs=3)
    assert 90 < np.median(interior(phantom, "liver")) < 135
    assert 110 < np.median(interior(phantom, "kidney")) < 220
    assert 30 < np.median(interior(phantom, "lesion")) < 75
    assert 400 < image.max() < 1200  # cortical bone
    assert ((image > -130) & (image < -70)).mean() > 0.05  # fat
    assert 9 < interior(phantom, "lesion").std() < 18  # noise


def test_mri_noise_is_rician_and_its_units_differ_from_scan_to_scan():
    scans = [make_phantom("MRI", np.random.default_rng(seed)).image for seed in range(5)]
    for scan in scans:
        air = scan[:, :4, :8].astype(float)
        # Without signal Rician is Rayleigh: mean / sd = sqrt(pi / (4 - pi)) = 1.913.
        assert air.mean() / air.std() == pytest.approx(1.913, rel=0.08)
    brightest = [np.percentile(scan, 99) for scan in scans]
    assert max(brightest) > 2 * min(brightest)


def test_mri_field_shades_one_tissue_by_a_tenth_or_more_across_the_body():
    flat = np.full(SHAPE, 0.5)
    image = module._mri(flat, (4.0, 3.0, 3.0), np.random.default_rng(0)).astype(float)
    corners = [image[:8, :8, :8].mean(), image[-8:, -8:, -8:].mean(), image[:8, -8:, :8].mean()]
    assert max(corners) / min(corners) > 1.1


def test_pet_resolution_is_6_mm_and_counts_keep_the_activity():
    spacing = (4.0, 3.0, 3.0)
    scene = np.zeros(SHAPE)
    scene[16, 36, 40] = 1e5  # SUV; a point so hot that Poisson noise hardly matters
    image = module._pet(scene, spacing, np.random.default_rng(0)).astype(float)
    near = image[8:25, 24:49, 28:53]
    for axis, mm in enumerate(spacing):
        profile = near.sum(axis=tuple(a for a in range(3) if a != axis))
        x = (np.arange(len(profile)) - (len(profile) - 1) / 2) * mm
        fwhm_mm = 2.355 * np.sqrt((profile * x**2).sum() / profile.sum())
        # A voxel's own width comes on top: hence a little below 6 mm for the coarse z axis.
        assert fwhm_mm == pytest.approx(6.0, abs=0.6)
    assert near.sum() == pytest.approx(1e5, rel=0.02)


def test_pet_lesion_is_hotter_than_liver_and_noise_grows_with_activity():
    phantom = make_phantom("PET", np.random.default_rng(2))
    assert phantom.image.dtype == np.float32 and phantom.image.min() >= 0
    assert 1.7 < np.median(interior(phantom, "liver")) < 2.9
    assert 4 < np.median(interior(phantom, "lesion")) < 14
    assert 2 < np.median(interior(phantom, "kidney")) < 6
    assert phantom.image[:, :3].std() < 0.25 * interior(phantom, "liver").std()


def test_ultrasound_speckle_is_rayleigh_and_fades_with_depth():
    spacing = (2.0, 1.5, 1.5)
    uniform = np.zeros(SHAPE)
    image = module._ultrasound(uniform, spacing, np.random.default_rng(3)).astype(float)
    decibel = image / 255 * 55

    # The logarithm of a Rayleigh variable has a standard deviation of 5.57 dB.
    assert decibel[:, 32:36, 36:44].std() == pytest.approx(5.57, abs=0.7)
    shallow, deep = decibel[:, 20:26, 36:44].mean(), decibel[:, 60:66, 36:44].mean()
    assert shallow - deep == pytest.approx(1.2 * 40 * 1.5 / 10, abs=1.2)
    assert (image[~ultrasound_field_of_view(SHAPE, spacing)] == 0).all()


def test_ultrasound_casts_a_shadow_behind_a_rib():
    phantom = make_phantom("US", np.random.default_rng(2))
    column_means = phantom.image[:, 24:40].mean(axis=(0, 1))
    inside = column_means[8:-8]
    assert inside.min() < 0.5 * np.median(inside)


def test_an_ellipsoid_has_its_textbook_volume_and_a_quarter_turn_swaps_two_radii():
    spacing, shape = (1.0, 0.9, 0.8), (40, 60, 70)
    points = grid_points(shape, spacing)
    upright = Ellipsoid(center=(1.0, -2.0, 3.0), radii=(8.0, 20.0, 12.0))
    lying = Ellipsoid(center=(1.0, -2.0, 3.0), radii=(8.0, 12.0, 20.0), degrees=(90.0, 0.0, 0.0))
    inside = upright.signed_distance(points) < 0

    volume = inside.sum() * np.prod(spacing)
    assert volume == pytest.approx(4 / 3 * np.pi * 8 * 20 * 12, rel=0.01)
    np.testing.assert_allclose(
        lying.signed_distance(points), upright.signed_distance(points), atol=1e-6
    )


def test_bounds_touch_a_turned_ellipsoid_on_every_side():
    spacing = (0.5, 0.4, 0.6)
    points = grid_points((60, 100, 70), spacing)
    part = Ellipsoid(center=(1.0, 2.0, -1.0), radii=(4.0, 14.0, 8.0), degrees=(35.0, 20.0, -15.0))
    inside = points[part.signed_distance(points) < 0]
    bounds = Structure(tissue="fat", parts=(part,)).bounds()
    assert (bounds[0] <= inside.min(axis=0)).all() and (inside.max(axis=0) <= bounds[1]).all()
    np.testing.assert_allclose(bounds, [inside.min(axis=0), inside.max(axis=0)], atol=1.0)


def test_signed_distance_of_a_sphere_is_exact():
    sphere = Ellipsoid(center=(0.0, 0.0, 0.0), radii=(5.0, 5.0, 5.0), degrees=(20.0, 30.0, 40.0))
    points = np.array([[0.0, 0.0, 9.0], [3.0, 0.0, 0.0], [0.0, 5.0, 0.0]])
    np.testing.assert_allclose(sphere.signed_distance(points), [4.0, -2.0, 0.0], atol=1e-9)


def test_voxels_on_a_surface_mix_both_tissues_by_their_share():
    # A half space ending at x = 0.5 mm, 1 mm voxels: the voxel at 0.5 mm is half full.
    half = Structure(
        tissue="fat", parts=(Ellipsoid(center=(0, 0, -1e4 + 0.5), radii=(1e4, 1e4, 1e4)),)
    )
    points = grid_points((3, 5, 8), (1.0, 1.0, 1.0))
    image, _ = paint((half,), {"air": 0.0, "fat": 10.0}, {}, points, edge_mm=1.0)
    np.testing.assert_allclose(image[1, 2], [10, 10, 10, 10, 5, 0, 0, 0], atol=0.01)


@pytest.mark.parametrize("modality", ["", "ct", "XRAY", None])
def test_an_unknown_modality_lists_the_known_ones(modality):
    with pytest.raises(ValueError, match="unknown modality .*CT, MRI, PET, US"):
        make_phantom(modality, np.random.default_rng(0))


def test_dataset_is_nnunets_raw_format_and_files_hold_the_phantoms(tmp_path):
    folder = write_phantom_dataset(tmp_path, "US", 3, 2, seed=6, dataset_id=42)

    assert folder == tmp_path / "Dataset042_PhantomUS"
    content = json.loads((folder / "dataset.json").read_text())
    assert content["channel_names"] == {"0": "US"} and content["numTraining"] == 3
    assert content["labels"] == {"background": 0, "liver": 1, "kidney": 2, "lesion": 3}
    names = {part.name: sorted(f.name for f in part.iterdir()) for part in folder.iterdir()
             if part.is_dir()}  # fmt: skip
    assert names == {
        "imagesTr": [f"phantom_00{i}_0000.nii.gz" for i in range(3)],
        "labelsTr": [f"phantom_00{i}.nii.gz" for i in range(3)],
        "imagesTs": [f"phantom_00{i}_0000.nii.gz" for i in (3, 4)],
        "labelsTs": [f"phantom_00{i}.nii.gz" for i in (3, 4)],
    }
    for i, stream in enumerate(np.random.default_rng(6).spawn(5)):
        part = "Tr" if i < 3 else "Ts"
        phantom = make_phantom("US", stream)
        image, geometry = read_image(folder / f"images{part}" / f"phantom_00{i}_0000.nii.gz")
        labels, label_geometry = read_segmentation(folder / f"labels{part}/phantom_00{i}.nii.gz")
        np.testing.assert_array_equal(image[0], phantom.image)
        np.testing.assert_array_equal(labels, phantom.segmentation)
        np.testing.assert_allclose(geometry.spacing, phantom.spacing, rtol=1e-6)
        assert geometry.difference_from(label_geometry) is None
        direction = np.array(geometry.direction).reshape(3, 3)
        np.testing.assert_allclose(direction @ direction.T, np.eye(3), atol=1e-5)
        assert not np.allclose(direction, np.eye(3), atol=0.01) and any(geometry.origin)


def test_writing_again_replaces_the_dataset_and_leaves_nothing_else(tmp_path):
    first = write_phantom_dataset(tmp_path, "US", 2, 1)
    (first / "imagesTr" / "old.txt").touch()
    write_phantom_dataset(tmp_path, "US", 1, 1)
    assert [p.name for p in tmp_path.iterdir()] == ["Dataset900_PhantomUS"]
    assert len(list((first / "imagesTr").iterdir())) == 1


def test_a_failed_write_leaves_the_old_dataset_and_no_rest(tmp_path):
    write_phantom_dataset(tmp_path, "US", 1, 1, dataset_id=7)
    with pytest.raises(ValueError, match="unknown modality"):
        write_phantom_dataset(tmp_path, "XR", 1, 1, dataset_id=7)
    assert [p.name for p in tmp_path.iterdir()] == ["Dataset007_PhantomUS"]

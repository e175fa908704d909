"""CT, MRI, PET and ultrasound phantoms with exactly known labels, and raw datasets of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from promptseg.demo.anatomy import abdomen, liver_under_a_probe
from promptseg.demo.shapes import Structure, grid_points, paint
from promptseg.files import replacing_folder, write_json
from promptseg.io.images import Geometry, write_image

MODALITIES = ("CT", "MRI", "PET", "US")
LABELS = {"liver": 1, "kidney": 2, "lesion": 3}
SHAPE = (32, 72, 80)
_FWHM = 2.0 * np.sqrt(2.0 * np.log(2.0))  # full width at half maximum of a Gaussian, in sigmas

_HU = {  # portal venous phase; mean and standard deviation over patients
    "air": (-1000, 0), "fat": (-100, 5), "muscle": (58, 4), "fluid": (12, 4), "bowel": (38, 8),
    "liver": (112, 6), "spleen": (124, 6), "kidney": (182, 10), "sinus": (120, 10),
    "vessel": (158, 8), "lesion": (52, 7), "bone": (620, 60), "marrow": (210, 25),
    "disc": (85, 8), "canal": (32, 4),
}  # fmt: skip
_T2_SIGNAL = {  # without fat suppression, relative to fluid
    "air": (0.0, 0.0), "fat": (0.78, 0.03), "muscle": (0.2, 0.02), "fluid": (1.0, 0.03),
    "bowel": (0.5, 0.06), "liver": (0.36, 0.02), "spleen": (0.56, 0.03), "kidney": (0.66, 0.03),
    "sinus": (0.85, 0.03), "vessel": (0.08, 0.02), "lesion": (0.74, 0.05), "bone": (0.06, 0.01),
    "marrow": (0.46, 0.04), "disc": (0.3, 0.05), "canal": (0.95, 0.03),
}  # fmt: skip
_SUV = {  # FDG, one hour after injection
    "air": (0.0, 0.0), "fat": (0.35, 0.04), "muscle": (0.7, 0.06), "fluid": (0.4, 0.1),
    "bowel": (1.3, 0.4), "liver": (2.3, 0.2), "spleen": (1.8, 0.15), "kidney": (3.4, 0.5),
    "sinus": (7.0, 1.5), "vessel": (1.7, 0.1), "lesion": (8.5, 1.8), "bone": (0.6, 0.1),
    "marrow": (1.3, 0.2), "disc": (0.6, 0.1), "canal": (1.2, 0.1),
}  # fmt: skip
_ECHO_DB = {  # backscatter, relative to liver
    "air": (-60, 0), "fat": (-3, 1), "muscle": (-9, 1.5), "fluid": (-45, 2), "liver": (0, 1),
    "kidney": (-8, 1), "sinus": (9, 1.5), "vessel": (-28, 3), "lesion": (-14, 1.5),
    "diaphragm": (13, 1.5),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Phantom:
    """One case.

    Attributes:
        image: (z, y, x) HU as int16 (CT), scanner units as int16 (MRI), SUV as float32 (PET), or
            grey values as uint8 (US).
        segmentation: (z, y, x) uint8 label values, as in `LABELS`.
        spacing: spacing in mm, zyx.
        structures: anatomy that the labels come from, in the order of painting.
        tissues: intensity of each tissue in this case before blur and noise: HU, SUV, dB, or the
            fraction of the brightest tissue (MRI).
    """

    image: np.ndarray
    segmentation: np.ndarray
    spacing: tuple[float, float, float]
    structures: tuple[Structure, ...]
    tissues: dict[str, float]


def make_phantom(modality: str, rng: np.random.Generator) -> Phantom:
    """Draw a random patient and simulate an image.

    Args:
        modality: one of `MODALITIES`.
        rng: source of the anatomy, tissue values and noise.

    Raises:
        ValueError: if the modality is unknown.
    """
    if modality not in _SCANNERS:
        raise ValueError(f"unknown modality {modality!r}; there are {', '.join(MODALITIES)}")
    scanner, values, body, spacing = _SCANNERS[modality]
    structures = body(rng)
    tissues = {name: float(rng.normal(mean, sd)) for name, (mean, sd) in values.items()}
    points = grid_points(SHAPE, spacing)
    scene, segmentation = paint(structures, tissues, LABELS, points, edge_mm=min(spacing))
    image = scanner(scene, spacing, rng)
    if modality == "US":
        segmentation[~ultrasound_field_of_view(SHAPE, spacing)] = 0
    return Phantom(
        image=image,
        segmentation=segmentation,
        spacing=spacing,
        structures=structures,
        tissues=tissues,
    )


def ultrasound_field_of_view(
    shape: tuple[int, int, int], spacing: tuple[float, float, float]
) -> np.ndarray:
    """(z, y, x) mask of the fan seen by a curved probe at the top of the volume."""
    angle, radius = _fan_coordinates(shape, spacing)
    return (np.abs(angle) < np.radians(36)) & (radius > _PROBE_RADIUS_MM)


def write_phantom_dataset(
    raw_root: Path | str,
    modality: str,
    training_cases: int,
    test_cases: int,
    seed: int = 0,
    dataset_id: int = 900,
) -> Path:
    """Write phantoms as a raw dataset in nnU-Net's format, test labels (`labelsTs`) included.

    Each case has its own origin and a slightly oblique direction. The folder appears atomically
    and replaces one of the same name.

    Args:
        raw_root: folder of raw datasets.
        modality: one of `MODALITIES`.
        training_cases: number of cases in `imagesTr`.
        test_cases: number of cases in `imagesTs`.
        seed: seed of all cases.
        dataset_id: number of the dataset.

    Returns:
        The folder of the dataset, such as `raw_root/Dataset900_PhantomCT`.
    """
    name = f"Phantom{modality}"
    target = Path(raw_root) / f"Dataset{dataset_id:03d}_{name}"
    with replacing_folder(target, overwrite=True) as folder:
        streams = np.random.default_rng(seed).spawn(training_cases + test_cases)
        for index, rng in enumerate(streams):
            part = "Tr" if index < training_cases else "Ts"
            case_id = f"phantom_{index:03d}"
            phantom = make_phantom(modality, rng)
            geometry = _oblique_geometry(phantom.image.shape, phantom.spacing, rng)
            image_file = folder / f"images{part}" / f"{case_id}_0000.nii.gz"
            write_image(image_file, phantom.image, geometry)
            label_file = folder / f"labels{part}" / f"{case_id}.nii.gz"
            write_image(label_file, phantom.segmentation, geometry)
        content = {
            "channel_names": {"0": modality},
            "labels": {"background": 0, **LABELS},
            "numTraining": training_cases,
            "file_ending": ".nii.gz",
            "name": name,
            "description": f"simulated {modality} volumes, labels known exactly; seed {seed}",
        }
        write_json(folder / "dataset.json", content)
    return target


def _ct(scene: np.ndarray, spacing: tuple, rng: np.random.Generator) -> np.ndarray:
    """HU: a point spread of 3 mm, and noise of about 13 HU, correlated within slices."""
    blurred = gaussian_filter(scene, [1.5 / _FWHM, *(3.0 / _FWHM / mm for mm in spacing[1:])])
    noise = gaussian_filter(rng.normal(size=scene.shape), (0.3, 0.7, 0.7))
    noise *= rng.uniform(10, 16) / noise.std()
    return np.rint(blurred + noise).clip(-1024, 3071).astype(np.int16)


def _mri(scene: np.ndarray, spacing: tuple, rng: np.random.Generator) -> np.ndarray:
    """Receive-coil shading, Rician noise, and units that differ from scan to scan."""
    blurred = gaussian_filter(scene, [2.5 / _FWHM / mm for mm in spacing]).clip(0)
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in scene.shape), indexing="ij")
    z, y, x = axes
    terms = np.stack([z, y, x, z * z, y * y, x * x, y * x, z * y])
    field = np.tensordot(rng.normal(0, 1, len(terms)), terms, 1)
    field = np.exp(0.35 * (field - field.mean()) / np.ptp(field))
    sigma = rng.uniform(0.02, 0.04)
    real, imaginary = rng.normal(0, sigma, (2, *scene.shape))
    magnitude = np.hypot(blurred * field + real, imaginary)
    units = 10 ** rng.uniform(2.3, 3.6)
    return np.rint(magnitude * units).astype(np.int16)


def _pet(scene: np.ndarray, spacing: tuple, rng: np.random.Generator) -> np.ndarray:
    """SUV: 6 mm resolution in all, with Poisson counts before the reconstruction's filter."""
    scanner_mm, filter_mm = 4.8, 3.6  # together sqrt(4.8^2 + 3.6^2) = 6 mm
    blurred = gaussian_filter(scene, [scanner_mm / _FWHM / mm for mm in spacing]).clip(0)
    counts_per_suv = rng.uniform(8, 14)
    counts = rng.poisson(blurred * counts_per_suv + 0.2)  # and a few random coincidences
    suv = gaussian_filter(counts / counts_per_suv, [filter_mm / _FWHM / mm for mm in spacing])
    return suv.astype(np.float32)


def _ultrasound(scene: np.ndarray, spacing: tuple, rng: np.random.Generator) -> np.ndarray:
    """Fully developed speckle, attenuation with depth, a rib's shadow; 55 dB to 256 grey values.

    The magnitude of a complex Gaussian field is Rayleigh distributed; the field is correlated
    over the point spread, wider across the beam than along it.
    """
    angle, radius = _fan_coordinates(scene.shape, spacing)
    depth_cm = (radius - _PROBE_RADIUS_MM) / 10
    amplitude = 10 ** (gaussian_filter(scene, 0.5) / 20)
    field = rng.normal(size=(2, *scene.shape))
    field = np.stack([gaussian_filter(part, (0.7, 0.5, 0.9)) for part in field])
    speckle = np.hypot(*(field / field.std()))
    # Overcompensated near the probe, undercompensated far from it: 1.2 dB per cm remain.
    decibel = 20 * np.log10(amplitude * speckle + 1e-3) - 1.2 * (depth_cm - 4)
    rib = np.radians(rng.choice([-1, 1]) * rng.uniform(20, 28))
    shadow = gaussian_filter((np.abs(angle - rib) < np.radians(2.2)).astype(float), (0, 1, 1))
    decibel -= 24 * shadow * (depth_cm > 1.2)
    decibel += 16 * shadow * (np.abs(depth_cm - 1.1) < 0.15)
    grey = 255 * (decibel + 30) / 55
    grey[~ultrasound_field_of_view(scene.shape, spacing)] = 0
    return np.rint(grey).clip(0, 255).astype(np.uint8)


_PROBE_RADIUS_MM = 50.0


def _fan_coordinates(
    shape: tuple[int, int, int], spacing: tuple[float, float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Angle in the y-x plane and distance in mm from the centre of the probe's curvature."""
    points = grid_points(shape, spacing)
    top = points[0, 0, 0, 1] - spacing[1]
    depth, lateral = points[..., 1] - top + _PROBE_RADIUS_MM, points[..., 2]
    return np.arctan2(lateral, depth), np.hypot(lateral, depth)


def _oblique_geometry(shape: tuple, spacing: tuple, rng: np.random.Generator) -> Geometry:
    turn = Rotation.from_euler("xyz", rng.uniform(-9, 9, 3), degrees=True).as_matrix()
    origin = tuple(float(v) for v in np.round(rng.uniform(-200, 100, 3), 2))
    return Geometry(
        shape=shape, spacing=spacing, origin=origin, direction=tuple(float(v) for v in turn.ravel())
    )


_Scanner = Callable[[np.ndarray, tuple, np.random.Generator], np.ndarray]
_SCANNERS: dict[str, tuple[_Scanner, dict, Callable, tuple[float, float, float]]] = {
    "CT": (_ct, _HU, abdomen, (4.0, 3.0, 3.0)),
    "MRI": (_mri, _T2_SIGNAL, abdomen, (4.0, 3.0, 3.0)),
    "PET": (_pet, _SUV, abdomen, (4.0, 3.0, 3.0)),
    "US": (_ultrasound, _ECHO_DB, liver_under_a_probe, (2.0, 1.5, 1.5)),
}

"""Small raw datasets with known answers, written to disk for tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from promptseg.files import write_json
from promptseg.io.images import Geometry, write_image

AIR_AND_TISSUE = {  # raw intensities of background and of label 1; each further label is a step up
    "CT": (-1000.0, 60.0),
    "MRI": (20.0, 400.0),
    "PET": (0.2, 8.0),
    "US": (10.0, 140.0),
}
OBLIQUE = (0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, 1.0)  # turned about z; exact in decimals


def label_boxes(shape: tuple[int, int, int], labels: int) -> list[np.ndarray]:
    """Half-open (2, 3) boxes, side by side along y, one for each label."""
    edges = np.linspace(1, shape[1] - 1, labels + 1).astype(int)
    return [
        np.array([[1, low, 2], [shape[0] - 1, high, shape[2] - 3]])
        for low, high in zip(edges[:-1], edges[1:], strict=True)
    ]


def synthetic_case(
    rng: np.random.Generator, shape: tuple[int, int, int], modality: str, labels: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """An image of brighter boxes with a little noise, and its segmentation.

    Returns:
        (z, y, x) float32 raw intensities; (z, y, x) uint8 labels, as `label_boxes` has them.
    """
    air, tissue = AIR_AND_TISSUE[modality]
    segmentation = np.zeros(shape, np.uint8)
    for label, (lower, upper) in enumerate(label_boxes(shape, labels), start=1):
        segmentation[tuple(slice(a, b) for a, b in zip(lower, upper, strict=True))] = label
    image = np.where(segmentation == 0, air, tissue + 0.3 * abs(tissue) * segmentation)
    image += rng.normal(0, 0.02 * abs(tissue - air), shape)
    if modality == "CT":
        image = np.rint(image)
    elif modality != "MRI":
        image = np.maximum(image, 0)
    return image.astype(np.float32), segmentation


def write_raw_dataset(
    root: Path | str,
    dataset_id: int = 1,
    name: str = "Synthetic",
    *,
    cases: int | Sequence[str] = 4,
    shape: tuple[int, int, int] = (9, 14, 17),
    spacing: tuple[float, float, float] = (2.5, 0.8, 0.7),
    modality: str = "CT",
    channels: int = 1,
    labels: int = 1,
    file_ending: str = ".nii.gz",
    seed: int = 0,
) -> Path:
    """Write a dataset in nnU-Net's raw format; returns its folder.

    Cases are `case_0`, `case_1`, ... or as named; labels `label_1`, `label_2`, ...; geometry is
    oblique, with an origin.
    """
    rng = np.random.default_rng(seed)
    folder = Path(root) / f"Dataset{dataset_id:03d}_{name}"
    case_ids = [f"case_{i}" for i in range(cases)] if isinstance(cases, int) else list(cases)
    geometry = Geometry(
        shape=tuple(shape), spacing=tuple(spacing), origin=(-12.5, 30.25, 7.0), direction=OBLIQUE
    )
    for case_id in case_ids:
        for channel in range(channels):
            image, segmentation = synthetic_case(rng, shape, modality, labels)
            write_image(
                folder / "imagesTr" / f"{case_id}_{channel:04d}{file_ending}", image, geometry
            )
        write_image(folder / "labelsTr" / f"{case_id}{file_ending}", segmentation, geometry)
    names = {"background": 0} | {f"label_{i}": i for i in range(1, labels + 1)}
    content = {
        "channel_names": {str(i): modality for i in range(channels)},
        "labels": names,
        "numTraining": len(case_ids),
        "file_ending": file_ending,
    }
    write_json(folder / "dataset.json", content)
    return folder

"""Surface distances: ours against MONAI's, in time, memory and value.

    python benchmarks/surface_distances.py

Two ellipsoids of 200x250x240 voxels in a scan of 300x400x400, 1.5x0.8x0.8 mm, one of them with a
hundred loose voxels, as predictions have. Each way runs in a process of its own, on one thread.
Printed: processor seconds, peak memory above that of the masks and the imports, and the values.
"""

from __future__ import annotations

import multiprocessing
import resource
import time

import numpy as np

from promptseg.tables import aligned

SHAPE, SPACING = (300, 400, 400), (1.5, 0.8, 0.8)


def masks() -> tuple[np.ndarray, np.ndarray]:
    z, y, x = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    first = ((z - 150) / 100) ** 2 + ((y - 200) / 125) ** 2 + ((x - 200) / 120) ** 2 < 1
    second = ((z - 152) / 99) ** 2 + ((y - 201) / 125) ** 2 + ((x - 199) / 118) ** 2 < 1
    second[tuple(np.random.default_rng(0).integers(0, SHAPE, (100, 3)).T)] = True
    return first, second


def ours(first: np.ndarray, second: np.ndarray) -> list[float]:
    from promptseg.evaluation.surfaces import surface_distances

    found = surface_distances(first, second, SPACING)
    return [found.dice(1.0), found.percentile(95), found.mean]


def _tensors(first: np.ndarray, second: np.ndarray) -> list:
    import torch

    torch.set_num_threads(1)
    return [torch.from_numpy(mask[None, None]) for mask in (first, second)]


def monai_elements(first: np.ndarray, second: np.ndarray) -> list[float]:
    from monai.metrics import compute_surface_dice

    options = {"include_background": True, "spacing": SPACING, "use_subvoxels": True}
    nsd = compute_surface_dice(*_tensors(first, second), [1.0], **options)
    return [nsd.item(), np.nan, np.nan]  # the others count voxels


def monai_voxels(first: np.ndarray, second: np.ndarray) -> list[float]:
    from monai.metrics import (
        compute_average_surface_distance,
        compute_hausdorff_distance,
        compute_surface_dice,
    )

    tensors, options = _tensors(first, second), {"include_background": True, "spacing": SPACING}
    found = [
        compute_surface_dice(*tensors, [1.0], **options),
        compute_hausdorff_distance(*tensors, percentile=95, **options),
        compute_average_surface_distance(*tensors, symmetric=True, **options),
    ]
    return [value.item() for value in found]


def measured(way) -> tuple[float, float, list[float]]:
    """Processor seconds, gigabytes and values of one way; runs in a process of its own."""
    pair, small = masks(), np.zeros((2, 5, 6, 7), bool)
    small[:, 2:4, 2:4, 3:5] = True
    way(*small)  # what it imports
    before, began = _peak(), time.process_time()
    values = way(*pair)
    return time.process_time() - began, _peak() - before, values


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    rows = [["", "processor s", "memory GB", "NSD 1 mm", "HD95 mm", "ASSD mm"]]
    context = multiprocessing.get_context("spawn")
    for way in (ours, monai_elements, monai_voxels):
        with context.Pool(1) as pool:
            seconds, memory, values = pool.apply(measured, (way,))
        cells = ["-" if np.isnan(v) else f"{v:.6f}" for v in values]
        rows.append([way.__name__, f"{seconds:.1f}", f"{memory:.2f}", *cells])
    print("\n".join(aligned(rows)))


if __name__ == "__main__":
    main()

"""Are our own array steps worth having beside those of acvl-utils and SciPy?

    python benchmarks/array_steps.py

On a volume of 64 x 256 x 256 and one of 300 x 512 x 512 voxels each step runs by turns as ours and
as the library's, whose results must be the same. Prints the median time of ours and how many times
as long the library takes; run it with OMP_NUM_THREADS=1 and without.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

import blosc2
import numpy as np
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd, get_bbox_from_mask
from acvl_utils.morphology.morphology_helper import remove_all_but_largest_component_cc3d
from literal_chain import BALL
from scipy.ndimage import binary_dilation, binary_erosion, gaussian_filter

from promptseg.boxes import mask_box, to_bbox
from promptseg.components import largest_component_box
from promptseg.preprocessing.patch import cut_patch
from promptseg.prompts.intensity.closing import close_with_ball
from promptseg.prompts.intensity.smoothing import smooth

RUNS = 7
Step = tuple[str, Callable[[], object], Callable[[], object]]


def numpy_patch(volume, start: np.ndarray, size: tuple[int, int, int]) -> np.ndarray:
    """The patch cut and padded by NumPy alone, as before acvl-utils was used."""
    lower = np.maximum(start, 0)
    upper = np.minimum(start + size, volume.shape)
    piece = volume[tuple(slice(int(a), int(b)) for a, b in zip(lower, upper, strict=True))]
    return np.pad(piece, np.stack([lower - start, start + size - upper], axis=1))


def scipy_closing(mask: np.ndarray) -> np.ndarray:
    padded = np.pad(mask, 6)
    return binary_erosion(binary_dilation(padded, BALL), BALL)[6:-6, 6:-6, 6:-6]


def steps(shape: tuple[int, int, int]) -> Iterator[Step]:
    """Each step's name, ours and the library's."""
    image = np.random.default_rng(0).uniform(0, 255, shape).astype(np.float32)
    organ, body, size = np.zeros(shape, bool), np.zeros(shape, bool), np.array(shape)
    organ[tuple(slice(int(0.4 * n), int(0.6 * n)) for n in shape)] = True
    body[tuple(slice(int(0.05 * n), int(0.95 * n)) for n in shape)] = True
    for name, mask in (("organ, 20 % of each side", organ), ("body, 90 %", body)):
        yield (
            f"box of a mask, {name}: acvl-utils",
            lambda mask=mask: to_bbox(mask_box(mask)),
            lambda mask=mask: get_bbox_from_mask(mask),
        )
    smoothed = smooth(image, 3)
    grains = smoothed > smoothed.mean() + 0.8 * smoothed.std()
    yield (
        "largest component and its box: acvl-utils",
        lambda: to_bbox(largest_component_box(grains)[0]),
        lambda: get_bbox_from_mask(remove_all_but_largest_component_cc3d(grains, 26)),
    )
    stored = blosc2.asarray(image, chunks=(64,) * 3, blocks=(32,) * 3)
    for name, start in (("inside", size // 4), ("across the border", size - 40)):
        yield (
            f"patch of a blosc2 volume, {name}: NumPy",
            lambda start=start: cut_patch(stored, start, (64, 96, 96)),
            lambda start=start: numpy_patch(stored, start, (64, 96, 96)),
        )
    yield (
        "patch of an array across the border: NumPy",
        lambda: crop_and_pad_nd(image, to_bbox(np.stack([size - 40, size + 24]))),
        lambda: numpy_patch(image, size - 40, (64, 64, 64)),
    )
    yield "smoothing, sigma 2: SciPy", lambda: smooth(image), lambda: gaussian_filter(image, 2.0)
    if image.size < 2**23:  # SciPy needs half a minute for the other
        yield (
            "closing, radius 3: SciPy",
            lambda: close_with_ball(grains),
            lambda: scipy_closing(grains),
        )


def median_seconds(functions: list[Callable[[], object]]) -> list[float]:
    """Of each, run by turns."""
    taken = [[] for _ in functions]
    for _ in range(RUNS):
        for function, seconds in zip(functions, taken, strict=True):
            start = time.perf_counter()
            function()
            seconds.append(time.perf_counter() - start)
    return [statistics.median(seconds) for seconds in taken]


def main() -> None:
    for shape in ((64, 256, 256), (300, 512, 512)):
        print(" x ".join(map(str, shape)))
        for name, ours, theirs in steps(shape):
            np.testing.assert_array_equal(ours(), theirs())  # also warms both up
            own, other = median_seconds([ours, theirs])
            print(f"  {1e3 * own:9.2f} ms   {other / own:6.2f} x   {name}", flush=True)


if __name__ == "__main__":
    main()

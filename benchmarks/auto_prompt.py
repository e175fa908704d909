"""How fast is Algorithm 1, and how much memory does it take? Compared with SciPy and SimpleITK.

    python benchmarks/auto_prompt.py --ct totalsegmentator_example_ct.nii.gz

The CT is enlarged to 1, 8 and 52 million voxels, noise of 20 HU is added, and the soft tissue
window is applied. The three methods take turns in one process, several times; printed are medians
and their ratio to promptseg's. CPU seconds are the sum over all threads and hardly depend on the
load of the machine. Peak memory is what a new process needs in addition to the loaded volume (Linux
only).
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from commands import status_bytes
from literal_chain import scipy_box, simpleitk_box
from scipy import ndimage

from promptseg.io.images import read_image
from promptseg.preprocessing.normalize import ct_window, normalize
from promptseg.prompts.automatic import auto_prompt
from promptseg.tables import markdown_row, markdown_table

SHAPES = ((50, 141, 142), (100, 283, 283), (200, 512, 512))
METHODS: dict[str, Callable] = {
    "promptseg": lambda image: auto_prompt(image).box,
    "SciPy": scipy_box,
    "SimpleITK": simpleitk_box,
}


def ct_like(ct: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """(z, y, x) float32 in [0, 255]: the CT enlarged to `shape`, with noise."""
    factors = [new / old for new, old in zip(shape, ct.shape, strict=True)]
    enlarged = ndimage.zoom(ct.astype(np.float32), factors, order=1)
    noise = np.random.default_rng(0).standard_normal(shape, np.float32)
    return normalize(enlarged + 20 * noise, ct_window("soft tissue"))


def seconds(image: np.ndarray, runs: int) -> dict[str, list[tuple[float, float]]]:
    """Wall and CPU seconds of every run, the methods taking turns, after a small warm-up."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in METHODS}
    for name in METHODS:
        METHODS[name](image[:20, :60, :60])
    for _ in range(runs):
        for name, method in METHODS.items():
            wall, processor = time.perf_counter(), time.process_time()
            method(image)
            taken[name].append((time.perf_counter() - wall, time.process_time() - processor))
    return taken


def peak_bytes(name: str, volume: Path) -> int:
    """Peak resident memory of a new process in addition to what it needs to load the volume."""
    command = [sys.executable, __file__, "--measure", name, "--volume", str(volume)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(name: str, volume: Path) -> int:
    """In the new process: run one method once and return its peak."""
    image = np.load(volume)
    METHODS[name](image[:20, :60, :60])  # imports and thread stacks do not count
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the current value
    before = status_bytes("VmRSS")
    METHODS[name](image)
    return status_bytes("VmHWM") - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ct", type=Path, help="file of a CT in HU; required")
    parser.add_argument("--runs", type=int, default=3, help="of each method (default: %(default)s)")
    parser.add_argument("--measure", choices=METHODS, help=argparse.SUPPRESS)
    parser.add_argument("--volume", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(measure(arguments.measure, arguments.volume))
        return
    if arguments.ct is None:
        parser.error("--ct is required")
    ct = read_image(arguments.ct)[0][0]

    cores = len(os.sched_getaffinity(0))
    print(f"{cores} cores, load {os.getloadavg()[0]:.1f}, {arguments.runs} runs each\n")
    columns = ["voxels", "method", "median s", "fastest s", "CPU s", "ns per voxel", "ratio"]
    print(markdown_table([*columns, "peak / volume"], []))
    for shape in SHAPES:
        image = ct_like(ct, shape)
        same = np.array_equal(METHODS["promptseg"](image), METHODS["SciPy"](image))
        taken = seconds(image, arguments.runs)
        medians = {name: statistics.median(w for w, _ in times) for name, times in taken.items()}
        with tempfile.TemporaryDirectory() as folder:
            np.save(volume := Path(folder) / "volume.npy", image)
            peaks = {name: peak_bytes(name, volume) / image.nbytes for name in METHODS}
        for name, median in medians.items():
            row = [
                f"{image.size / 1e6:.1f} M",
                name,
                f"{median:.2f}",
                f"{min(taken[name])[0]:.2f}",
                f"{statistics.median(p for _, p in taken[name]):.2f}",
                f"{1e9 * median / image.size:.0f}",
                f"{median / medians['promptseg']:.1f}",
                f"{peaks[name]:.2f}",
            ]
            print(markdown_row(row))
        verdict = f"box equal to SciPy's: {'yes' if same else 'NO'}"
        print(markdown_row(["", verdict, *[""] * 6]), flush=True)


if __name__ == "__main__":
    main()

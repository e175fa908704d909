"""Do planning and training stay within memory on scans of 100 million voxels, and a step as fast?

    python benchmarks/large_data.py --work FOLDER --single FOLDER_OF_THE_TOTALSEGMENTATOR_FILES

Forty scans of 400x512x512 voxels are made of one CT with 41 labels: enlarged, warped by a smooth
random field, with noise of 20 HU. They are planned and preprocessed, then trained on for some
steps. The same number of crops of twice the patch, with the same plans, are the small dataset that
a step is compared with, both in turn. Peaks are the largest sum of what a command and its workers
hold at one time (proportional set sizes, so that shared pages count once). `--dask` plans some of
the scans over two workers as well, and compares every file with those of one process.

Scans that are there are not made again; everything else is. Each part is printed once it is done.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

import numpy as np
import psutil
import SimpleITK as sitk
from commands import HERE
from tqdm import tqdm

from promptseg.files import read_json, write_json

SHAPE, SPACING = (400, 512, 512), (1.0, 0.8, 0.8)  # zyx, and mm
WARP, NOISE = 0.04, 20.0  # part of the field of view, and HU
LARGE, SMALL, FEW = "Dataset201_LargeTorso", "Dataset202_CroppedTorso", "Dataset203_FewTorso"


def make_scans(single: Path, raw: Path, count: int) -> None:
    """Write the large dataset, a case at a time."""
    image = sitk.ReadImage(str(single / "totalsegmentator_example_ct_sm.nii.gz"), sitk.sitkFloat32)
    labels = sitk.ReadImage(str(single / "totalsegmentator_example_seg.nii.gz"), sitk.sitkUInt8)
    values, numbers = np.unique(sitk.GetArrayViewFromImage(labels), return_inverse=True)
    numbered = sitk.GetImageFromArray(numbers.reshape(labels.GetSize()[::-1]).astype(np.uint8))
    numbered.CopyInformation(labels)
    for part in ("imagesTr", "labelsTr"):
        (raw / LARGE / part).mkdir(parents=True, exist_ok=True)
    named = {"background": 0} | {f"organ {n:02d}": n for n in range(1, len(values))}
    content = {"channel_names": {"0": "CT"}, "labels": named, "file_ending": ".nii.gz"}
    write_json(raw / LARGE / "dataset.json", content | {"numTraining": count})
    noise = np.random.default_rng(0).normal(0, NOISE, SHAPE).astype(np.float32)
    for number in tqdm(range(count), desc="making scans", unit="scan"):
        paths = [
            raw / LARGE / "imagesTr" / f"scan_{number:02d}_0000.nii.gz",
            raw / LARGE / "labelsTr" / f"scan_{number:02d}.nii.gz",
        ]
        if not all(path.is_file() for path in paths):
            rng = np.random.default_rng(number)
            intensities, organs = warped(image, numbered, rng)
            intensities += np.roll(noise, rng.integers(0, SHAPE), axis=(0, 1, 2))
            for path, array in zip(paths, (intensities.astype(np.int16), organs), strict=True):
                write(path, array)


def warped(
    image: sitk.Image, labels: sitk.Image, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The scan enlarged to `SHAPE`, seen through a smooth random displacement of its content."""
    extent = [n * s for n, s in zip(image.GetSize(), image.GetSpacing(), strict=True)]

    def grid(shape: Sequence[int]) -> sitk.Image:
        empty = sitk.Image([int(n) for n in shape[::-1]], sitk.sitkUInt8)
        empty.SetSpacing([e / n for e, n in zip(extent, shape[::-1], strict=True)])
        empty.SetOrigin(image.GetOrigin())
        empty.SetDirection(image.GetDirection())
        return empty

    coarse = grid([n // 16 for n in SHAPE])
    # a sample more at each end: outside its samples a field is taken for zero
    first = coarse.TransformContinuousIndexToPhysicalPoint([-1.0, -1.0, -1.0])
    size = [n + 2 for n in coarse.GetSize()]
    smooth = sitk.BSplineTransformInitializer(coarse, [3, 3, 3], order=3)
    knots = np.reshape(rng.normal(0, WARP, len(smooth.GetParameters())), (3, -1))
    smooth.SetParameters((knots * np.array(extent)[:, None]).ravel().tolist())
    sampled = sitk.TransformToDisplacementField(  # quicker to interpolate than to compute
        smooth,
        sitk.sitkVectorFloat64,
        size,
        first,
        coarse.GetSpacing(),
        coarse.GetDirection(),
    )
    field = sitk.DisplacementFieldTransform(sampled)
    arrays = (
        sitk.GetArrayFromImage(sitk.Resample(of, grid(SHAPE), field, how, outside))
        for of, how, outside in (
            (image, sitk.sitkLinear, -1024),
            (labels, sitk.sitkNearestNeighbor, 0),
        )
    )
    return tuple(arrays)


def write(path: Path, array: np.ndarray) -> None:
    """Write an array with `SPACING`, compressed quickly, under its name once it is complete."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(SPACING[::-1])
    temporary = path.with_name(f"unfinished_{path.name}")
    sitk.WriteImage(image, str(temporary), useCompression=True, compressionLevel=1)
    temporary.replace(path)


def crop_scans(raw: Path, sides: Sequence[int]) -> None:
    """Write the small dataset: the middle of every large scan."""
    shutil.rmtree(raw / SMALL, ignore_errors=True)
    for part in ("imagesTr", "labelsTr"):
        (raw / SMALL / part).mkdir(parents=True, exist_ok=True)
        for path in tqdm(sorted((raw / LARGE / part).iterdir()), desc="cropping", unit="file"):
            array = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
            starts = [(n - s) // 2 for n, s in zip(SHAPE, sides, strict=True)]
            cut = tuple(slice(a, a + s) for a, s in zip(starts, sides, strict=True))
            write(raw / SMALL / part / path.name, array[cut])
    shutil.copyfile(raw / LARGE / "dataset.json", raw / SMALL / "dataset.json")


def train(made: Path, dataset: str, plans: dict, steps: int) -> tuple[float, float]:
    """Seconds of a step as `memory.py` takes them, which does not predict cases; peak in bytes."""
    which = json.dumps([dataset, plans["trainer"], plans["size"], 1.0, 1, None])
    script = Path(__file__).with_name("memory.py")
    command = [sys.executable, script, "--preprocessed", made, "--steps", steps, "--one", which]
    with tempfile.TemporaryFile("w+") as output:
        _, peak = measured(command, output)
        output.seek(0)
        return json.loads(output.read().strip().splitlines()[-1])["seconds"], peak


def measured(command: Sequence[object], output: IO | None = None) -> tuple[float, float]:
    """Run a command; seconds, and the largest sum of its processes' memory in bytes."""
    print("$", *command, flush=True)
    start, largest = time.monotonic(), [0.0]
    process = subprocess.Popen([str(word) for word in command], stdout=output)
    watching = threading.Thread(target=_watch, args=(process, largest), daemon=True)
    watching.start()
    if process.wait():
        sys.exit(f"the command failed with exit code {process.returncode}")
    watching.join()
    return time.monotonic() - start, largest[0]


def _watch(process: subprocess.Popen, largest: list[float]) -> None:
    while process.poll() is None:
        total = 0
        with suppress(psutil.Error):  # it has ended meanwhile
            root = psutil.Process(process.pid)
            for each in (root, *root.children(recursive=True)):
                with suppress(psutil.Error):
                    total += each.memory_full_info().pss
        largest[0] = max(largest[0], total)
        time.sleep(0.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder with 20 GB of space")
    parser.add_argument("--single", type=Path, required=True, help="folder of the CT's files")
    parser.add_argument("--scans", type=int, default=40)
    parser.add_argument("--steps", type=int, default=91, help="of training (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=2, help="of both datasets in training")
    parser.add_argument("--dask", type=int, default=0, help="number of scans to plan over Dask too")
    args = parser.parse_args()
    raw, made = args.work / "raw", args.work / "preprocessed"
    make_scans(args.single, raw, args.scans)
    shutil.rmtree(made, ignore_errors=True)
    roots, cpu = ["--raw", raw, "--preprocessed", made], ["--memory", "cpu"]
    seconds, peak = measured([HERE / "promptseg_plan", "-d", LARGE, *roots, *cpu])
    print(f"planning and preprocessing: {seconds:.0f} s, {peak / 1e9:.2f} GB", flush=True)
    plans = read_json(made / LARGE / "PromptSegPlans.json")
    crop_scans(raw, [min(2 * n, s) for n, s in zip(plans["patch_size"], SHAPE, strict=True)])
    measured([HERE / "promptseg_plan", "-d", SMALL, *roots, *cpu])
    alike = read_json(made / SMALL / "PromptSegPlans.json")
    for name in ("patch_size", "stride", "finest_stride", "batch_size", "size"):
        alike[name] = plans[name]
    write_json(made / SMALL / "PromptSegPlans.json", alike)
    for _ in range(args.turns):
        for dataset in (LARGE, SMALL):
            seconds, peak = train(made, dataset, plans, args.steps)
            print(f"training on {dataset}: {seconds:.3f} s a step, {peak / 1e9:.2f} GB", flush=True)
    if args.dask:
        compare_dask(args, raw)


def compare_dask(args: argparse.Namespace, raw: Path) -> None:
    """Plan some scans in one process and over two workers, and compare all files."""
    from distributed import LocalCluster

    alone, shared = args.work / "alone", args.work / "shared"
    for folder in (raw / FEW, alone, shared):
        shutil.rmtree(folder, ignore_errors=True)
    for part in ("imagesTr", "labelsTr"):
        (raw / FEW / part).mkdir(parents=True)
        for path in sorted((raw / LARGE / part).iterdir())[: args.dask]:
            (raw / FEW / part / path.name).symlink_to(path.absolute())
    content = read_json(raw / LARGE / "dataset.json")
    write_json(raw / FEW / "dataset.json", content | {"numTraining": args.dask})
    command = [HERE / "promptseg_plan", "-d", FEW, "--raw", raw, "--memory", "cpu"]
    seconds, _ = measured([*command, "--preprocessed", alone, "-np", 0])
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        of_cluster = ["--dask", cluster.scheduler_address]
        of_two, _ = measured([*command, "--preprocessed", shared, *of_cluster])
    files = [{p.relative_to(f) for p in f.rglob("*") if p.is_file()} for f in (alone, shared)]
    differ = [
        f for f in files[0] & files[1] if (alone / f).read_bytes() != (shared / f).read_bytes()
    ]
    print(
        f"{args.dask} scans in one process {seconds:.0f} s, over two Dask workers {of_two:.0f} s; "
        f"{len(files[0])} files, {len(files[0] ^ files[1])} missing, {len(differ)} differ"
    )


if __name__ == "__main__":
    main()

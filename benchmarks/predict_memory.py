"""How much memory and time does a kidney-sized region of a large CT take to segment?

    python benchmarks/predict_memory.py --ct totalsegmentator_example_ct.nii.gz

The CT is enlarged to 400x512x512 voxels (zyx), noise of 20 HU is added, and it is written as
.nii.gz and as .nii; `crop` is the part of it covered by the patches of the prompt. The network is
the light ViT as planned for that volume. It is untrained: about half of the voxels that it sees
become foreground, more than of any organ. Every line is a new process that reads the file, segments
it and writes the result, with the settings of `promptseg_predict`, which include two perturbed
copies of every prompt. The peak is that of the operating system (VmHWM), including Python, PyTorch
and all libraries.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from commands import status_bytes
from scipy import ndimage

from promptseg.io.images import Geometry, read_image, write_image
from promptseg.tables import markdown_table

SHAPE = (400, 512, 512)
KIDNEY_MM = np.array([110.0, 60.0, 60.0])
LABELS = 20
COLUMNS = {  # medians of the runs
    "peak": "peak, MB",
    "read": "read, s",
    "answer": "answer, s",
    "write": "write, s",
    "cpu": "answer, CPU s",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ct", type=Path, help="file of a CT to enlarge; required")
    parser.add_argument(
        "--size", default="tiny", help="encoder size: tiny, small or base (default: %(default)s)"
    )
    parser.add_argument(
        "--spacing",
        type=float,
        nargs=3,
        default=(1.5, 1.5, 1.5),
        help="spacing of the plans in mm, zyx (default: 1.5 1.5 1.5)",
    )
    parser.add_argument("--runs", type=int, default=3, help="of each line (default: %(default)s)")
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        print(json.dumps(measured(**args.job)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        plans, boxes = prepare(args.ct, folder, args.size, args.spacing)
        kidney = boxes["whole"][0]
        jobs = {
            "only torch and the network": ("crop.nii", []),
            "crop, 1 label": ("crop.nii", [boxes["crop"]]),
            "whole .nii, 1 label": ("whole.nii", [kidney]),
            "whole .nii.gz, 1 label": ("whole.nii.gz", [kidney]),
            "crop, 20 labels in one place": ("crop.nii", [boxes["crop"]] * LABELS),
            "whole .nii, 20 labels in one place": ("whole.nii", [kidney] * LABELS),
            "whole .nii, 20 labels in 20 places": ("whole.nii", boxes["whole"]),
            "whole .nii, 1 label by name": ("whole.nii", [None]),
        }
        print(
            f"{SHAPE} voxels zyx, patch {plans['patch_size']} at {plans['spacing']} mm, {args.size}"
        )
        rows: dict[str, list[dict[str, float]]] = {name: [] for name in jobs}
        for _ in range(args.runs):
            for name, (image, prompts) in jobs.items():
                rows[name].append(run({"folder": scratch, "image": image, "boxes": prompts}))
    report(
        {
            name: {k: statistics.median(r[k] for r in runs) for k in COLUMNS}
            for name, runs in rows.items()
        }
    )


def report(rows: dict[str, dict[str, float]]) -> None:
    cells = [
        [name, *(f"{row[k]:.0f}" if k == "peak" else f"{row[k]:.2f}" for k in COLUMNS)]
        for name, row in rows.items()
    ]
    print(markdown_table(["what", *COLUMNS.values()], cells))
    crop, whole = rows["crop, 1 label"], rows["whole .nii, 1 label"]
    places = rows["whole .nii, 20 labels in 20 places"]
    together = rows["crop, 20 labels in one place"]
    for key in ("answer", "cpu"):
        name = COLUMNS[key]
        print(f"whole to crop, {name}: {whole[key] / crop[key]:.2f}")
        print(f"20 labels to 1 in one place, {name}: {together[key] / crop[key]:.2f}")
    total = [sum(row[key] for key in ("read", "answer", "write")) for row in (whole, crop)]
    print(f"whole to crop, s with reading and writing: {total[0] / total[1]:.2f}")
    print(f"20 labels to 1, peak: {places['peak'] / whole['peak']:.2f}")


def run(job: dict) -> dict[str, float]:
    """The measurements of a job, made in a new process."""
    command = [sys.executable, __file__, "--job", json.dumps(job)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def measured(folder: str, image: str, boxes: list) -> dict[str, float]:
    """Read, segment and write once; `boxes` has one box per label, None to prompt by name."""
    from promptseg.inference.batch.case import load_for_files
    from promptseg.inference.options import PredictionOptions

    predictor = load_for_files(Path(folder) / "model", PredictionOptions(device="cpu"))
    names = list(predictor.plans.labels)
    times = [time.perf_counter()]
    array, geometry = read_image(Path(folder) / image)
    times.append(time.perf_counter())
    cpu = time.process_time()
    if boxes:
        predictor.set_image(array, geometry.spacing)
        given = {name: box for name, box in zip(names, boxes, strict=False) if box is not None}
        labels = names[: len(boxes)]
        segmentation = predictor.predict(boxes=given, labels=labels).segmentation
        times.append(time.perf_counter())
        cpu = time.process_time() - cpu
        write_image(Path(folder) / "out.nii.gz", segmentation, geometry)
    else:
        times.append(times[-1])
        cpu = 0.0
    times.append(time.perf_counter())
    peak = status_bytes("VmHWM") / 2**20
    seconds = dict(zip(("read", "answer", "write"), np.diff(times).tolist(), strict=True))
    return {"peak": peak, "cpu": cpu, **seconds}


def prepare(ct: Path, folder: Path, size: str, spacing: tuple[float, ...]) -> tuple[dict, dict]:
    """Write the volumes and the model; returns plan figures, and boxes in voxels of each volume."""
    small, geometry = read_image(ct)
    factors = np.array(SHAPE) / small.shape[1:]
    volume = ndimage.zoom(
        small[0].astype(np.float32), factors, order=1, grid_mode=True, mode="nearest"
    )
    volume += np.random.default_rng(0).normal(0, 20, SHAPE).astype(np.float32)
    volume = np.rint(volume).astype(np.int16)
    voxel_mm = np.array(geometry.spacing) / factors
    plans = write_model(folder / "model", size, spacing, voxel_mm)
    whole = Geometry(shape=SHAPE, spacing=tuple(voxel_mm.tolist()))
    write_image(folder / "whole.nii.gz", volume, whole)
    write_image(folder / "whole.nii", volume, whole)
    boxes = places(voxel_mm)
    # The part of the volume covered by the patches of the first box.
    margin = np.array(plans["patch_size"]) * plans["spacing"] / voxel_mm / 2
    lower = np.maximum(np.floor(boxes[0][0] - margin), 0).astype(int)
    upper = np.minimum(np.ceil(boxes[0][1] + margin), SHAPE).astype(int)
    part = volume[tuple(slice(a, b) for a, b in zip(lower, upper, strict=True))]
    write_image(folder / "crop.nii", part, Geometry(shape=part.shape, spacing=whole.spacing))
    return plans, {"crop": (boxes[0] - lower).tolist(), "whole": boxes.tolist()}


def places(voxel_mm: np.ndarray) -> np.ndarray:
    """(20, 2, 3) kidney-sized boxes, the first in the middle, the others at random places."""
    side = np.rint(KIDNEY_MM / voxel_mm).astype(int)
    free = np.array(SHAPE) - side
    fractions = np.random.default_rng(0).uniform(size=(LABELS, 3))
    fractions[0] = 0.5
    lower = np.floor(fractions * free).astype(int)
    return np.stack([lower, lower + side], axis=1)


def write_model(folder: Path, size: str, spacing: tuple[float, ...], voxel_mm: np.ndarray) -> dict:
    import torch

    from promptseg.experiment_planning import rules
    from promptseg.networks.promptable import build_network
    from promptseg.plans import Plans
    from promptseg.preprocessing.normalize import ct_window
    from promptseg.preprocessing.resample import resampled_shape
    from promptseg.training.checkpoint import save_checkpoint
    from promptseg.training.settings import TrainingSettings

    shape = resampled_shape(SHAPE, voxel_mm, spacing)
    planned = rules.plan_patch(shape, spacing, rules.BUDGETS[size])
    plans = Plans(
        dataset_name="Dataset001_LargeCT",
        size=size,
        channel_names=("CT",),
        modalities=("CT",),
        normalizations=(ct_window("soft tissue"),),
        spacing=tuple(spacing),
        median_shape=shape,
        patch_size=planned.patch_size,
        stride=planned.stride,
        finest_stride=planned.finest_stride,
        batch_size=planned.batch_size,
        labels={f"label {value}": value for value in range(1, LABELS + 1)},
    )
    torch.manual_seed(0)
    content = {
        "plans": plans.to_json(),
        "encoder": "vit",
        "settings": TrainingSettings().to_json(),
        "network": build_network(plans, "vit").state_dict(),
    }
    (folder / "fold_0").mkdir(parents=True)
    save_checkpoint(folder / "fold_0" / "checkpoint_final.pth", content)
    return {"patch_size": list(planned.patch_size), "spacing": list(spacing)}


if __name__ == "__main__":
    main()

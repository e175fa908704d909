"""What a plain U-Net reaches in the same time: no plans, no prompts, MONAI's `BasicUNet`.

    python benchmarks/plain_unet.py -d 20 --seconds 720 --raw RAW_ROOT --preprocessed ROOT
    python benchmarks/plain_unet.py -d 21 --seconds 1200 --patch 48 96 96 --batch 2 ...

It trains on the training cases of a fold and is measured on its validation cases, whole, on their
own voxels; the folds are those of `splits_final.json` in the folder of the planned dataset. Images
are brought to the median spacing (a 2D U-Net: within slices only) and to mean 0 and deviation 1.
Patches of `--patch` voxels, two numbers for a 2D U-Net and three for a 3D one, are turned, scaled
and changed in contrast; AdamW falls from 3e-3 to 0 along a cosine over the time; Dice and
cross-entropy; bf16.

Printed: parameters, steps, seconds a step, mean Dice of the labels and of the worst case.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss
from monai.networks.nets import BasicUNet
from tqdm import tqdm

import promptseg
from promptseg.evaluation.metrics import confusion_counts
from promptseg.folders import find_dataset_folder
from promptseg.io.dataset import read_raw_dataset
from promptseg.io.images import read_image, read_segmentation
from promptseg.tables import aligned

FEATURES = (12, 24, 48, 96, 128, 12)
LEARNING_RATE = 3e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-d", "--dataset", required=True, help="number or name of the dataset")
    parser.add_argument("--raw", type=Path, help="folder of raw datasets")
    parser.add_argument("--preprocessed", type=Path, help="folder of planned datasets")
    parser.add_argument("-f", "--fold", type=int, default=0, help="fold (default: 0)")
    parser.add_argument("--seconds", type=float, default=720, help="of training (default: 720)")
    parser.add_argument("--patch", type=int, nargs="+", default=[192, 192], help="voxels")
    parser.add_argument("--batch", type=int, default=8, help="patches a step (default: 8)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    folders = promptseg.find_folders(args.raw, args.preprocessed)
    raw = read_raw_dataset(find_dataset_folder(folders.raw, args.dataset, "give --raw"))
    planned = find_dataset_folder(folders.preprocessed, args.dataset, "run promptseg_plan")
    fold = json.loads((planned / "splits_final.json").read_text())[args.fold]
    cases = {case.case_id: case for case in raw.cases}
    read = {half: [read_case(cases[c]) for c in tqdm(fold[half])] for half in ("train", "val")}
    spacing = np.median([case["spacing"] for case in read["train"]], axis=0)
    values = list(raw.labels.values())
    network = BasicUNet(len(args.patch), 1, 1 + len(values), FEATURES)
    examples = [example(case, spacing, values, len(args.patch)) for case in read["train"]]
    steps, seconds = train(network, examples, args, rng)
    parameters = sum(p.numel() for p in network.parameters())
    print(
        f"{raw.name}, fold {args.fold}: {len(args.patch)}D U-Net, {parameters / 1e6:.2f} M "
        f"parameters, patch {args.patch}, batch {args.batch}: {steps} steps in {seconds:.0f} s, "
        f"{seconds / steps:.2f} s each"
    )
    dice = np.array([measure(network, case, spacing, values, args) for case in tqdm(read["val"])])
    rows = [[name, f"{np.nanmean(dice[:, k]):.4f}"] for k, name in enumerate(raw.labels)]
    rows.append(["mean", f"{np.nanmean(dice):.4f}"])
    rows.append(["worst case", f"{np.nanmin(np.nanmean(dice, axis=1)):.4f}"])
    print("\n".join(aligned([["label", "Dice"], *rows])))


def read_case(case) -> dict:
    """The first channel, brought to mean 0 and deviation 1, with its labels and spacing."""
    image, geometry = read_image(case.images)
    channel = image[0].astype(np.float32)
    segmentation, _ = read_segmentation(case.label)
    channel = (channel - channel.mean()) / max(channel.std(), 1e-6)
    return {"image": channel, "segmentation": segmentation, "spacing": geometry.spacing}


def shape_at(case: dict, spacing: np.ndarray, dimensions: int) -> tuple[int, ...]:
    """The shape of a case at a spacing; a 2D U-Net keeps the slices as they are."""
    sides = zip(case["image"].shape, case["spacing"], spacing, strict=True)
    shape = [max(round(n * have / want), 1) for n, have, want in sides]
    return tuple(case["image"].shape[: 3 - dimensions]) + tuple(shape[3 - dimensions :])


def resampled(volume: np.ndarray, shape: tuple[int, ...], mode: str) -> torch.Tensor:
    """(z, y, x) to a shape, as (1, 1, z', y', x') float32."""
    tensor = torch.from_numpy(np.ascontiguousarray(volume, dtype=np.float32))[None, None]
    corners = None if mode == "nearest-exact" else False
    return F.interpolate(tensor, shape, mode=mode, align_corners=corners)


def example(
    case: dict, spacing: np.ndarray, values: list[int], dimensions: int
) -> tuple[torch.Tensor, np.ndarray]:
    """(2, z, y, x) image and class numbers at a spacing, and the (n, 3) voxels of labels."""
    shape = shape_at(case, spacing, dimensions)
    classes = np.zeros(case["segmentation"].shape, np.float32)
    for number, value in enumerate(values, 1):
        classes[case["segmentation"] == value] = number
    image = resampled(case["image"], shape, "trilinear")
    volume = torch.cat([image, resampled(classes, shape, "nearest-exact")], dim=1)[0]
    return volume, volume[1].nonzero().numpy()


def train(network, examples, args, rng: np.random.Generator) -> tuple[int, float]:
    """Train for a time; the number of steps and the seconds that they took."""
    loss_of = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=0.01)
    start, step, network = time.monotonic(), 0, network.train()
    with tqdm(total=int(args.seconds), unit="s") as bar:
        while (elapsed := time.monotonic() - start) < args.seconds:
            for group in optimizer.param_groups:
                falling = 0.5 * (1 + math.cos(math.pi * elapsed / args.seconds))
                group["lr"] = LEARNING_RATE * falling
            drawn = [examples[i] for i in rng.integers(len(examples), size=args.batch)]
            batch = torch.stack([patch(*example, args.patch, rng) for example in drawn])
            image, classes = batch.split(1, dim=1)
            with torch.autocast("cpu", torch.bfloat16):
                logits = network(image)
            loss = loss_of(logits.float(), classes)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimizer.step()
            step += 1
            bar.update(int(elapsed) - bar.n)
            bar.set_postfix(step=step, loss=f"{loss.item():.3f}")
    return step, time.monotonic() - start


def patch(
    volume: torch.Tensor, voxels: np.ndarray, size: list[int], rng: np.random.Generator
) -> torch.Tensor:
    """A random patch, about foreground in two of three, turned, scaled and changed in contrast.

    Args:
        volume: (2, z, y, x) image and class numbers.
        voxels: (n, 3) of its labels.
        size: voxels; two of a slice, or three.
    """
    shape = np.array(volume.shape[1:])
    centre = rng.integers(shape)
    if len(voxels) and rng.random() < 2 / 3:
        centre = voxels[rng.integers(len(voxels))] + rng.integers(-16, 17, 3)
    if len(size) == 2:
        number, centre = np.clip(centre[0], 0, shape[0] - 1), centre[1:]
        volume, shape = volume[:, number], shape[1:]
    angle = np.deg2rad(rng.uniform(-20, 20)) if rng.random() < 0.5 else 0.0
    scale = rng.uniform(0.8, 1.25) if rng.random() < 0.5 else 1.0
    turn = np.eye(len(size))
    turn[-2:, -2:] = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    # patch to volume in the coordinates of `affine_grid`: -1 to 1 over each side, x first
    matrix = scale * turn * np.array(size)[None] / shape[:, None]
    middle = (2 * np.clip(centre, 0, shape - 1) + 1) / shape - 1
    theta = np.concatenate([matrix[::-1, ::-1], middle[::-1, None]], axis=1)
    grid = F.affine_grid(torch.from_numpy(theta[None].astype(np.float32)), (1, 2, *size), False)
    image = F.grid_sample(volume[None, :1], grid, padding_mode="border", align_corners=False)[0]
    classes = F.grid_sample(volume[None, 1:], grid, mode="nearest", align_corners=False)[0]
    if rng.random() < 0.5:
        low, high = image.min(), image.max()
        image = ((image - low) / (high - low + 1e-6)) ** rng.uniform(0.7, 1.5) * (high - low) + low
    return torch.cat([image, classes])


@torch.no_grad()
def measure(network, case: dict, spacing: np.ndarray, values: list[int], args) -> list[float]:
    """Dice of each label on a case's own voxels; NaN where neither mask has a voxel."""
    network.eval()
    dimensions = len(args.patch)
    volume = resampled(case["image"], shape_at(case, spacing, dimensions), "trilinear")
    if dimensions == 2:
        volume = volume[0].transpose(0, 1)  # slices are the batch
    with torch.autocast("cpu", torch.bfloat16):
        logits = sliding_window_inference(volume, args.patch, 4, network, 0.5, mode="gaussian")
    logits = logits.float()
    if dimensions == 2:
        logits = logits.transpose(0, 1)[None]
    logits = F.interpolate(logits, case["image"].shape, mode="trilinear", align_corners=False)
    found = np.array([0, *values])[logits[0].argmax(dim=0).numpy()]
    counts = confusion_counts(case["segmentation"], found, values)
    return [of_label.dice for of_label in counts.values()]


if __name__ == "__main__":
    main()

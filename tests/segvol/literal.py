"""SegVol's zoom-out and zoom-in once more, as a literal walk through whole volumes.

Slow and plain on purpose: prompts are maps that are cropped, padded and resized like images, boxes
have inclusive ends, and MONAI slides the patch. Only the bug of the prompt map that is not padded
is left out (`padded=False` has it).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from torch import Tensor
from torch.nn import functional

# image (1, 1, z, y, x) in [0, 1], box (6,) with inclusive ends or None, points (k, 3), labels (k,)
Model = Callable[[Tensor, np.ndarray | None, np.ndarray, np.ndarray], Tensor]
NO_POINTS = (np.zeros((0, 3)), np.zeros(0, int))


def literal_segvol(
    raw: np.ndarray,
    patch_size: tuple[int, int, int],
    model: Model,
    *,
    box: np.ndarray | None = None,
    points: tuple[np.ndarray, np.ndarray] = NO_POINTS,
    padded: bool = True,
) -> np.ndarray:
    """(z, y, x) logits of one query on the raw grid; -inf outside the foreground crop.

    Args:
        raw: (z, y, x).
        patch: voxels, zyx.
        model: answers (z, y, x) logits of a patch.
        box: (2, 3) half-open integers in raw voxels.
        points: (k, 3) raw voxels and (k,) labels.
        padded: whether the map of the given box is padded as the image is.
    """
    x = raw.astype(np.float32)
    bright = x[x > x.mean()]
    x = np.clip(x, *np.percentile(bright, (0.05, 99.95)))
    x = (x - bright.mean()) / bright.std()
    x = (x - x.min()) / (x.max() - x.min())
    inside = np.argwhere(x > 0)
    crop = tuple(slice(a, b + 1) for a, b in zip(inside.min(0), inside.max(0), strict=True))
    image = torch.from_numpy(x[crop].copy())[None, None]
    shape = image.shape[2:]

    cube = torch.zeros(raw.shape)
    if box is not None:
        cube[tuple(slice(int(a), int(b)) for a, b in zip(*box, strict=True))] = 1
    cube = cube[crop][None, None]
    maps = []  # one a point: where it is
    for point in points[0]:
        where = torch.zeros(raw.shape)
        where[tuple(int(i) for i in point)] = 1
        maps.append(where[crop][None, None])

    small = functional.interpolate(image, patch_size, mode="nearest-exact")
    scale = np.divide(patch_size, shape)
    places = [tight(m)[:3] for m in maps]
    places = [np.floor((p + 0.5) * scale) for p in places]
    small_box = None
    if box is not None:
        small_box = tight(functional.interpolate(cube, patch_size, mode="nearest-exact"))
    logits = model(small, small_box, np.array(places).reshape(-1, 3), points[1])
    logits = functional.interpolate(logits[None, None], shape, mode="nearest")[0, 0]

    found = tight(logits.sigmoid() > 0.5)
    if found[0] >= 0:
        low, high = found[:3], found[3:]
        half = np.maximum(np.array(patch_size) - (high - low + 1), 0) // 2
        low, high = np.maximum(low - half, 0), np.minimum(high + half, shape)
        roi = tuple(slice(int(a), int(b) + 1) for a, b in zip(low, high, strict=True))
        logits[roi] = zoom_in(
            image[(..., *roi)],
            (logits[roi].sigmoid() > 0.5)[None, None].float(),
            cube[(..., *roi)],
            [m[(..., *roi)] for m in maps],
            points[1],
            box is not None,
            patch_size,
            model,
            padded,
        )
    everything = np.full(raw.shape, -np.inf, np.float32)
    everything[crop] = logits.numpy()
    return everything


def zoom_in(image, found, cube, maps, labels, has_box, patch_size, model, padded) -> Tensor:
    """Slide the patch over a region; the maps of prompts ride along as further channels."""
    stacked = torch.cat([image, found, cube, *maps], dim=1)
    patches = []
    sliding_window_inference(
        stacked, patch_size, 1, lambda part: patches.append(part) or part, overlap=0.5
    )
    alone = len(patches) == 1

    def answer(part: Tensor) -> Tensor:
        image, found, cube = (part[:, i : i + 1] for i in range(3))
        box = tight(found) if has_box or len(labels) else None  # a name alone has none
        if has_box and alone and cube.any():
            box = tight(cube)
            if not padded:
                missing = np.maximum(np.array(patch_size) - np.array(stacked.shape[2:]), 0)
                box = box - np.tile(missing // 2, 2)
        here = [(tight(part[:, i]), label) for i, label in enumerate(labels, start=3)]
        here = [(place[:3], label) for place, label in here if place[0] >= 0]
        points = np.array([place for place, _ in here]).reshape(-1, 3)
        kinds = np.array([label for _, label in here], int)
        return model(image, box, points, kinds)[None, None]

    return sliding_window_inference(stacked, patch_size, 1, answer, overlap=0.5, mode="constant")[
        0, 0
    ]


def tight(mask: Tensor) -> np.ndarray:
    """(6,) the inclusive box of what is above 0; -1 six times when nothing is."""
    voxels = (mask > 0).reshape(mask.shape[-3:]).nonzero().numpy()
    return np.concatenate([voxels.min(0), voxels.max(0)]) if len(voxels) else np.full(6, -1)

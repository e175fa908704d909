"""`regression`: sample the image where the box usually lies, and move its faces to fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.ndimage import map_coordinates

from promptseg.prompts.auto_prompter import AUTO_PROMPTERS
from promptseg.prompts.intensity.smoothing import smooth
from promptseg.prompts.strategies.atlas import AtlasPrompter
from promptseg.prompts.strategies.fitted import FittedPrompter, Sample, View, pack, unpack

GRID = 7  # points along each axis of the box
WIDENED = 0.4  # of the side, added on each side, so that the grid sees past a misplaced face
SIGMA = 1.0  # view voxels
JITTER = (1.0, 0.6)  # of the atlas's error: displacement of the boxes that each step learns on
ROWS = 1200  # boxes to learn from, at least 4 per case
PENALTIES = (1e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0)
MOST_MOVED = 0.5  # of the side, in each step


@AUTO_PROMPTERS.register("regression")
class RegressionPrompter(FittedPrompter):
    """Start from the atlas's box; twice, predict the faces' shifts from the intensities around.

    Each step is one ridge regression from a 7x7x7 grid of intensities in the frame of the present
    box to the six shifts in units of its sides, learned on boxes displaced at random around
    the ground truth, so that a misplaced start is the rule and not the exception.

    Args:
        start: parameters of the atlas.
        steps: packed (features + 1, 6) weights and constant of each step.

    Source:
        Cascaded regression: Dollar et al. 2010, "Cascaded pose regression", and Criminisi et al.
        2013 for boxes of organs in CT. Differs: ridge regression in place of ferns and forests.
    """

    def __init__(self, *, start: dict[str, Any], steps: list[str]) -> None:
        self.start = AtlasPrompter(**start)
        self.steps = [unpack(step).reshape(-1, 6).astype(float) for step in steps]

    @staticmethod
    def describe(view: View) -> np.ndarray:
        """(z, y, x) float16 the view smoothed, with mean 0 and standard deviation 1."""
        image = smooth(view.image, SIGMA)
        return ((image - image.mean()) / max(float(image.std()), 1e-3)).astype(np.float16)

    @classmethod
    def fit(cls, samples: Sequence[Sample]) -> dict[str, Any]:
        """One ridge regression per step; holding out thirds of the cases chooses its penalty."""
        start = AtlasPrompter.fit(samples)
        atlas = AtlasPrompter(**start)
        truth = np.stack([sample.box_mm for sample in samples])
        starts = np.stack([atlas.locate(sample.view) for sample in samples])
        error = np.maximum((starts - truth).std(axis=0), 0.05 * (truth[:, 1] - truth[:, 0]).mean(0))
        images = [sample.described[cls.name].astype(np.float32) for sample in samples]
        repeats = max(4, -(-ROWS // len(samples)))
        owners = np.repeat(np.arange(len(samples)), repeats)
        rng = np.random.default_rng(20)
        steps = []
        for jitter in JITTER:
            features, shifts = [], []
            for sample, image in zip(samples, images, strict=True):
                noise = rng.normal(size=(repeats, 2, 3)) * error * jitter
                boxes = _proper(sample.box_mm + noise, sample.box_mm)
                sides = boxes[:, 1] - boxes[:, 0]
                features.append(_features(image, sample.view, boxes))
                shifts.append((sample.box_mm - boxes) / sides[:, None])
            shifts = np.concatenate(shifts).reshape(-1, 6)
            steps.append(pack(_ridge(np.concatenate(features), shifts, owners)))
        return {"start": start, "steps": steps}

    def locate(self, view: View) -> np.ndarray | None:
        """The atlas's box after both steps."""
        return self.locate_described(view, self.describe(view))

    def locate_described(self, view: View, described: np.ndarray) -> np.ndarray:
        """The same without smoothing the view again."""
        image = described.astype(np.float32)
        box = self.start.locate(view)
        box = _proper(box, view.extent_mm * [[0.0], [0.5]])
        for weights in self.steps:
            features = _features(image, view, box[None])[0]
            shift = (features @ weights[:-1] + weights[-1]).reshape(2, 3)
            box = box + shift.clip(-MOST_MOVED, MOST_MOVED) * (box[1] - box[0])
            box = _proper(box, view.spacing * np.array([[0.0], [2.0]]))
        return box


def _proper(boxes: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Boxes (..., 2, 3) with sides of at least 30 % of those of the box `like`, centres kept."""
    centre = boxes.mean(axis=-2)
    half = np.maximum(boxes[..., 1, :] - boxes[..., 0, :], 0.3 * (like[1] - like[0])) / 2
    return np.stack([centre - half, centre + half], axis=-2)


def _features(image: np.ndarray, view: View, boxes: np.ndarray) -> np.ndarray:
    """(n, features) intensities on the grid of each box, and how far the volume's sides are.

    Args:
        image: (z, y, x) the view as described.
        view: the case.
        boxes: (n, 2, 3) mm.
    """
    sides = boxes[:, 1] - boxes[:, 0]
    at = (np.arange(GRID) + 0.5) / GRID * (1 + 2 * WIDENED) - WIDENED
    lines = boxes[:, 0, :, None] + sides[:, :, None] * at  # (n, 3, grid) mm
    lines = lines / np.array(view.spacing)[:, None] - 0.5  # a voxel's centre is half a voxel in
    z, y, x = (lines[:, axis] for axis in range(3))
    points = np.broadcast_arrays(z[:, :, None, None], y[:, None, :, None], x[:, None, None, :])
    grid = map_coordinates(image, points, order=1, mode="nearest").reshape(len(boxes), -1)
    borders = np.concatenate([boxes[:, 0], view.extent_mm - boxes[:, 1]], axis=1)
    borders = (borders / np.tile(sides, 2)).clip(0, 1.5)
    return np.concatenate([grid, borders * np.sqrt(grid.shape[1] / 30)], axis=1)


def _ridge(features: np.ndarray, targets: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """(features + 1, targets) ridge weights and constant, each target with its own penalty.

    Args:
        features: (n, features).
        targets: (n, targets).
        owners: (n,) case of each row; the penalty is judged on cases that were held out.
    """
    mean, scale = features.mean(axis=0), np.sqrt(features.shape[1])
    constant = targets.mean(axis=0)
    x, y = (features - mean) / scale, targets - constant
    square, product = x.T @ x, x.T @ y
    errors = np.zeros((len(PENALTIES), targets.shape[1]))
    for third in range(3):
        out = owners % 3 == third
        if not out.any() or out.all():
            continue
        solve = _Ridge(square - x[out].T @ x[out], product - x[out].T @ y[out], (~out).sum())
        errors += [np.abs(y[out] - x[out] @ solve(penalty)).sum(axis=0) for penalty in PENALTIES]
    solve = _Ridge(square, product, len(x))
    best = errors.argmin(axis=0)
    solutions = [solve(penalty) for penalty in PENALTIES]
    weights = np.stack([solutions[k][:, j] for j, k in enumerate(best)], axis=1) / scale
    return np.concatenate([weights, [constant - mean @ weights]])


class _Ridge:
    """The normal equations diagonalized once, solved for any penalty."""

    def __init__(self, square: np.ndarray, product: np.ndarray, rows: int) -> None:
        self.values, self.vectors = np.linalg.eigh(square)
        self.product, self.rows = self.vectors.T @ product, rows

    def __call__(self, penalty: float) -> np.ndarray:
        damped = self.values.clip(0) + penalty * self.rows
        return self.vectors @ (self.product / damped[:, None])

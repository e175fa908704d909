"""`likelihood`: how likely each voxel is the label, by its intensity and by its place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter1d

from promptseg.boxes import box_iou, box_slices
from promptseg.prompts.auto_prompter import AUTO_PROMPTERS
from promptseg.prompts.intensity.smoothing import smooth
from promptseg.prompts.strategies.fitted import (
    FittedPrompter,
    Sample,
    View,
    pack,
    unpack,
)

TABLE_SIGMA = 6.0  # grey values over which the table is smoothed
TABLE_BOUND = 3.0  # of the log-ratio of one voxel
MAP_SIGMA = 1.5  # view voxels
PLACES = 12  # cells of the spatial prior along each axis
PRIOR_SIGMA = 0.5  # cells
TRUSTS = (0.25, 0.5, 1.0, 2.0)  # of the intensity against the place
LEVELS = (0.2, 0.3, 0.4, 0.5)  # probability from which a voxel belongs in the box
JUDGED = 30  # training cases on which trust and level are chosen


@AUTO_PROMPTERS.register("likelihood")
class LikelihoodPrompter(FittedPrompter):
    """A table of log-likelihood ratios by intensity plus a prior by place; the best box of it.

    The box is the one whose voxels' probabilities, less `level` each, have the largest sum: no
    threshold decides on single voxels, and no component has to be connected. Algorithm 1's
    band is the special case of a two-step table and a flat prior.

    Args:
        table: packed (256,) log-likelihood ratio of each grey value, label against the rest.
        prior: packed (12, 12, 12) log-odds of the label's box in relative coordinates.
        trust: factor of the table.
        level: probability that a voxel of the box should exceed.
    """

    def __init__(self, *, table: str, prior: str, trust: float, level: float) -> None:
        self.table = unpack(table)
        self.prior = unpack(prior).reshape((PLACES,) * 3)
        self.trust, self.level = float(trust), float(level)

    @staticmethod
    def describe(view: View) -> np.ndarray:
        """(256,) fraction of the voxels that have each grey value."""
        return np.bincount(view.image.ravel(), minlength=256) / view.image.size

    @classmethod
    def fit(cls, samples: Sequence[Sample]) -> dict[str, Any]:
        """Count grey values and places; choose trust and level by the boxes they give."""
        table, prior = _table(samples), _prior(samples)
        evenly = np.linspace(0, len(samples) - 1, min(len(samples), JUDGED)).round().astype(int)
        judged = [samples[i] for i in evenly]
        truth = np.stack([sample.box_mm for sample in judged])
        evidence = [
            (_by_intensity(sample.view, table), _by_place(sample.view, prior)) for sample in judged
        ]
        best, best_iou = None, -1.0
        for trust in TRUSTS:
            sums = [box_sums(_probability(trust * grey + place)) for grey, place in evidence]
            for level in LEVELS:
                boxes = [
                    densest_box(p, level) * sample.view.spacing
                    for p, sample in zip(sums, judged, strict=True)
                ]
                iou = box_iou(np.stack(boxes), truth).mean()
                if iou > best_iou:
                    best, best_iou = (trust, level), iou
        return {
            "table": pack(table),
            "prior": pack(prior),
            "trust": best[0],
            "level": best[1],
        }

    def locate(self, view: View) -> np.ndarray | None:
        """The densest box; None where no voxel is likely enough."""
        evidence = self.trust * _by_intensity(view, self.table) + _by_place(view, self.prior)
        probability = _probability(evidence)
        if probability.max() <= self.level:
            return None
        return densest_box(box_sums(probability), self.level) * view.spacing


def box_sums(values: np.ndarray) -> np.ndarray:
    """(z + 1, y + 1, x + 1) sums of (z, y, x) values from the first corner (summed areas)."""
    sums = np.zeros(np.add(values.shape, 1))
    sums[1:, 1:, 1:] = values
    for axis in range(3):
        planes = np.moveaxis(sums, axis, 0)
        for k in range(2, len(planes)):
            planes[k] += planes[k - 1]  # whole planes: a third of the time of cumsum
    return sums


def densest_box(sums: np.ndarray, level: float, rounds: int = 10) -> np.ndarray:
    """(2, 3) the half-open box with about the largest sum of values less `level` per voxel.

    Starts from the whole volume and finds, along one axis after the other, the best interval
    given the other two (the largest sum of consecutive numbers), until nothing changes.

    Args:
        sums: of the values, from `box_sums`.
        level: subtracted from each voxel's value.
    """
    box = np.array([[0, 0, 0], sums.shape]) - [[0], [1]]
    along = [np.moveaxis(sums, axis, 0) for axis in range(3)]
    for _ in range(rounds):
        before = box.copy()
        for axis, lines in enumerate(along):
            (a, b), (c, d) = (box[:, other] for other in range(3) if other != axis)
            running = lines[:, b, d] - lines[:, a, d] - lines[:, b, c] + lines[:, a, c]
            running -= level * (b - a) * (d - c) * np.arange(len(running))
            end = int(np.argmax(running[1:] - np.minimum.accumulate(running[:-1]))) + 1
            box[:, axis] = np.argmin(running[:end]), end
        if (box == before).all():
            break
    return box


def _table(samples: Sequence[Sample]) -> np.ndarray:
    inside, everything = np.zeros(256), np.zeros(256)
    for sample in samples:
        grey = sample.view.image[box_slices(sample.view_box)].ravel()
        share = sample.mask.ravel()
        inside += np.bincount(grey, share, 256) / max(share.sum(dtype=float), 1)
        everything += sample.described[LikelihoodPrompter.name]
    inside, everything = (
        gaussian_filter1d(counts, TABLE_SIGMA, mode="nearest") + 1e-4 * len(samples)
        for counts in (inside, everything)
    )
    return np.log(inside / everything).clip(-TABLE_BOUND, TABLE_BOUND)


def _prior(samples: Sequence[Sample]) -> np.ndarray:
    """How often the relative place was in the label's box, cell by cell, as log-odds."""
    boxes = np.stack([sample.box_mm / sample.view.extent_mm for sample in samples]) * PLACES
    cells = np.arange(PLACES)
    filled = np.minimum(boxes[:, 1, :, None], cells + 1) - np.maximum(boxes[:, 0, :, None], cells)
    z, y, x = filled.clip(0, 1).swapaxes(0, 1)  # (n, places) fraction of each cell, axis by axis
    share = smooth(np.einsum("nz,ny,nx->zyx", z, y, x) / len(samples), PRIOR_SIGMA)
    share = share.clip(1e-3, 1 - 1e-3)
    return np.log(share / (1 - share))


def _by_intensity(view: View, table: np.ndarray) -> np.ndarray:
    return smooth(table[view.image], MAP_SIGMA)


def _by_place(view: View, prior: np.ndarray) -> np.ndarray:
    """The prior on the view's grid, interpolated linearly along one axis after the other."""
    for axis, (n, extent) in enumerate(zip(view.image.shape, view.extent, strict=True)):
        at = ((np.arange(n) + 0.5) / extent * PLACES - 0.5).clip(0, PLACES - 1)
        weights = (1 - np.abs(at[:, None] - np.arange(PLACES))).clip(0).astype(np.float32)
        prior = np.moveaxis(np.tensordot(weights, prior, axes=(1, axis)), 0, axis)
    return prior


def _probability(log_odds: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-log_odds))

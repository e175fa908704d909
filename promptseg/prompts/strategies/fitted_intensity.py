"""`fitted_intensity`: Algorithm 1 with its thresholds and its box fitted on training cases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cc3d
import numpy as np

from promptseg.boxes import box_iou
from promptseg.components import components
from promptseg.prompts.auto_prompter import AUTO_PROMPTERS
from promptseg.prompts.intensity.algorithm import between
from promptseg.prompts.intensity.smoothing import smooth
from promptseg.prompts.strategies.fitted import FittedPrompter, Sample, View

SIGMA = 0.7  # view voxels, which are already means; more smoothing scored lower on every modality
BANDS: tuple[tuple[str, float, float], ...] = (
    # fraction of the way from the 2nd to the 98th percentile: bright (PET) and dark structures
    ("percentiles", 0.4, np.inf),
    ("percentiles", 0.5, np.inf),
    ("percentiles", 0.6, np.inf),
    ("percentiles", 0.7, np.inf),
    ("percentiles", -np.inf, 0.2),
    ("percentiles", -np.inf, 0.35),
    # standard deviations from the mean, as in the paper
    ("deviations", 0.5, 2.0),
    ("deviations", -0.5, 1.0),
    ("deviations", -np.inf, -0.5),
)
RULES = ("largest", "central")
CENTRAL_FRACTION = 0.25  # of the extent: the distance at which a component counts exp(-1/2)
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)


@AUTO_PROMPTERS.register("fitted_intensity")
class FittedIntensityPrompter(FittedPrompter):
    """Smooth, keep a band of intensities, take one component; its faces meet the usual place.

    Each face is `weight` times the component's plus `1 - weight` times where the face usually
    lies, plus `shift_mm`: weight 1 and a shift outward is the paper's margin, weight 0 the atlas.

    Args:
        band: scale, low and high, see `BANDS`; an open end is None.
        rule: which component: the `largest`, or the `central` one, by voxels and closeness to
            the volume's middle.
        usual: (2, 3) median relative position of the faces, zyx.
        weight: (2, 3) of the component's faces.
        shift_mm: (2, 3) mm added.
    """

    def __init__(
        self,
        *,
        band: list,
        rule: str,
        usual: list[list[float]],
        weight: list[list[float]],
        shift_mm: list[list[float]],
    ) -> None:
        scale, low, high = band
        self.band = scale, -np.inf if low is None else low, np.inf if high is None else high
        self.rule = rule
        self.usual, self.weight, self.shift_mm = (np.array(v) for v in (usual, weight, shift_mm))

    @staticmethod
    def describe(view: View) -> np.ndarray:
        """(bands, rules, 2, 3) mm: the box of every choice, NaN where a band is empty."""
        smoothed = smooth(view.image, SIGMA)
        scales = _scales(smoothed)
        masks = (_band_mask(smoothed, band, scales) for band in BANDS)
        return np.stack([component_boxes(mask, view) for mask in masks])

    @classmethod
    def fit(cls, samples: Sequence[Sample]) -> dict[str, Any]:
        """The band and rule whose boxes, with fitted faces, overlap the ground truth most."""
        truth = np.stack([sample.box_mm for sample in samples])
        extent = np.stack([sample.view.extent_mm for sample in samples])
        described = np.stack([sample.described[cls.name] for sample in samples])
        usual = np.median(truth / extent[:, None], axis=0)
        expected = usual * extent[:, None]
        best, best_iou = None, -1.0
        for b, band in enumerate(BANDS):
            for r, rule in enumerate(RULES):
                found = described[:, b, r]
                found = np.where(np.isnan(found), expected, found)
                weight, shift = _fit_faces(found, expected, truth)
                fitted = weight * found + (1 - weight) * expected + shift
                iou = box_iou(fitted, truth).mean()
                if iou > best_iou:
                    best, best_iou = (band, rule, weight, shift), iou
        band, rule, weight, shift = best
        return {
            "band": [band[0], *(float(v) if np.isfinite(v) else None for v in band[1:])],
            "rule": rule,
            "usual": usual.tolist(),
            "weight": weight.tolist(),
            "shift_mm": shift.tolist(),
        }

    def locate(self, view: View) -> np.ndarray | None:
        """The component's box moved towards the usual one; None where the band is empty."""
        smoothed = smooth(view.image, SIGMA)
        mask = _band_mask(smoothed, self.band, _scales(smoothed))
        return self._meet_usual_place(component_boxes(mask, view)[RULES.index(self.rule)], view)

    def locate_described(self, view: View, described: np.ndarray) -> np.ndarray | None:
        """The same from the boxes of every choice; a band not among `BANDS` is looked for."""
        if self.band not in BANDS:
            return self.locate(view)
        found = described[BANDS.index(self.band), RULES.index(self.rule)]
        return self._meet_usual_place(found, view)

    def _meet_usual_place(self, found: np.ndarray, view: View) -> np.ndarray | None:
        if np.isnan(found).any():
            return None
        return self.weight * (found - self._usual_mm(view)) + self._usual_mm(view) + self.shift_mm

    def _usual_mm(self, view: View) -> np.ndarray:
        return self.usual * view.extent_mm


def component_boxes(mask: np.ndarray, view: View) -> np.ndarray:
    """(rules, 2, 3) mm: the largest component's box and the central one's; NaN for no voxel."""
    labels, counts = components(mask)
    if len(counts) == 1:
        return np.full((len(RULES), 2, 3), np.nan)
    statistics = cc3d.statistics(labels, no_slice_conversion=True)
    ends = statistics["bounding_boxes"].reshape(-1, 3, 2).astype(float) + (0, 1)
    off = statistics["centroids"] / view.extent - 0.5
    near = np.exp(-0.5 * ((off / CENTRAL_FRACTION) ** 2).sum(axis=1))
    near[0] = 0  # the background, whose count is 0 as well
    chosen = [int(counts.argmax()), int((counts * near).argmax())]
    return np.minimum(ends[chosen].transpose(0, 2, 1), view.extent) * view.spacing


def _scales(smoothed: np.ndarray) -> dict[str, tuple[float, float]]:
    """Zero and unit of each scale on which a band can be given."""
    start, end = np.percentile(smoothed, (2, 98))
    return {
        "percentiles": (start, end - start),
        "deviations": (smoothed.mean(), smoothed.std()),
    }


def _band_mask(
    smoothed: np.ndarray,
    band: tuple[str, float, float],
    scales: dict[str, tuple[float, float]],
) -> np.ndarray:
    scale, *ends = band
    zero, unit = scales[scale]
    low, high = (end if np.isinf(end) else zero + unit * end for end in ends)
    return between(smoothed, low, high)


def _fit_faces(
    found: np.ndarray, expected: np.ndarray, truth: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """For each face the weight with the least absolute error, and the median shift it leaves."""
    weights = np.array(WEIGHTS).reshape(-1, 1, 1, 1)
    rest = truth - expected - weights * (found - expected)  # (weights, n, 2, 3)
    shifts = np.median(rest, axis=1)
    errors = np.abs(rest - shifts[:, None]).mean(axis=1)
    best = errors.argmin(axis=0)[None]
    return np.array(WEIGHTS)[best[0]], np.take_along_axis(shifts, best, axis=0)[0]

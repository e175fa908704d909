"""What the automatic-prompt fit needs of a training case, taken from it while it is read."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from promptseg.boxes import box_slices, label_boxes
from promptseg.components import largest_component_boxes
from promptseg.io.images import read_image, read_segmentation
from promptseg.io.orientation import turn_to
from promptseg.labels import IGNORED, Values, label_mask, with_ignored
from promptseg.plans import AS_STORED, Normalization
from promptseg.preprocessing.normalize import normalize
from promptseg.prompts.auto_prompter import AutoPrompter
from promptseg.prompts.strategies import AUTO_PROMPTERS
from promptseg.prompts.strategies.fitted import (
    FittedPrompter,
    Sample,
    View,
    block_means,
    view_of,
)

if TYPE_CHECKING:
    from promptseg.io.dataset import RawCase

_FAST = 1  # of zlib's levels
CRUMB = 0.03  # of the voxels of a label's largest component, below which another is not an object
UNFITTED = ("intensity",)  # needs no fit; every registered FittedPrompter is fitted


@dataclass(frozen=True, kw_only=True)
class LabelTruth:
    """Where a label is in one case.

    Attributes:
        box: (2, 3) its bounding box, voxels, zyx, upper exclusive.
        objects: (2, 3) boxes of its 26-connected components, the largest first, but for crumbs
            smaller than `CRUMB` of the largest.
        bits: the mask inside that box, eight voxels to a byte, and these compressed by zlib: of a
            large scan with dozens of labels, 25 MB become 2.
        view_mask: (z, y, x) uint8, fraction that it fills of each view voxel that the box meets;
            255 is the whole voxel.
    """

    box: np.ndarray
    objects: tuple[np.ndarray, ...]
    bits: bytes
    view_mask: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        """(z, y, x) bool, the mask inside its box."""
        shape, bits = self.box[1] - self.box[0], np.frombuffer(zlib.decompress(self.bits), np.uint8)
        return np.unpackbits(bits, count=int(shape.prod())).reshape(shape).astype(bool)


@dataclass(frozen=True, kw_only=True)
class FitCase:
    """One training case, reduced to what strategies are fitted and scored on (some 100 kB).

    Attributes:
        case_id: case identifier.
        group: cases of one group are fitted on or scored on together; the case identifier where
            no groups are known.
        view: channel 0, normalized, on the coarse grid.
        truths: the labels that the case has.
        described: what each fitted strategy's `describe` said of the view.
        unfitted: boxes of the strategies that need no fit, by strategy.
        ignored: (z, y, x) uint8, fraction of each view voxel whose label nobody knows, 255 for the
            whole voxel; None where all are known.
    """

    case_id: str
    group: str
    view: View
    truths: dict[str, LabelTruth]
    described: dict[str, np.ndarray]
    unfitted: dict[str, tuple[np.ndarray, ...]]
    ignored: np.ndarray | None = None

    def for_fit(self, label: str, strategy: str) -> FitCase:
        """The case with what one strategy needs to be fitted and scored on one label."""
        return replace(
            self,
            truths={name: truth for name, truth in self.truths.items() if name == label},
            described={name: of for name, of in self.described.items() if name == strategy},
            unfitted={name: of for name, of in self.unfitted.items() if name == strategy},
        )

    def sample(self, label: str) -> Sample:
        """The case as a training sample of a label that it has."""
        truth = self.truths[label]
        voxel_mm = np.asarray(self.view.spacing) / self.view.step
        return Sample(
            view=self.view,
            view_box=self.view.box_of_view(truth.box),
            mask=truth.view_mask,
            box_mm=truth.box * voxel_mm,
            described=self.described,
        )


@dataclass(frozen=True, kw_only=True)
class Reduction:
    """How cases are reduced: what the fit is going to ask of them.

    Attributes:
        labels: what each name stands for.
        normalization: of channel 0.
        fitted: strategies that will be fitted. Classes, not names: pickling them imports their
            modules in the worker.
        unfitted: strategies without parameters, which are run while the whole volume is at hand.
        ignore_label: value in label files of voxels whose label nobody knows.
    """

    labels: dict[str, Values]
    normalization: Normalization
    fitted: tuple[type[FittedPrompter], ...] = ()
    unfitted: tuple[type[AutoPrompter], ...] = ()
    ignore_label: int | None = None

    @classmethod
    def for_all_strategies(
        cls,
        labels: dict[str, Values],
        normalization: Normalization,
        ignore_label: int | None = None,
    ) -> Reduction:
        """For every registered strategy that is fitted, and those that planning compares."""
        fitted, unfitted = (
            tuple(map(AUTO_PROMPTERS.get, names)) for names in (fitted_strategies(), UNFITTED)
        )
        return cls(
            labels=labels,
            normalization=normalization,
            fitted=fitted,
            unfitted=unfitted,
            ignore_label=ignore_label,
        )


def fitted_strategies() -> tuple[str, ...]:
    """The names of the registered strategies that are fitted."""
    return tuple(n for n in AUTO_PROMPTERS if issubclass(AUTO_PROMPTERS.get(n), FittedPrompter))


def read_fit_case(case: RawCase, reduction: Reduction, orientation: str = AS_STORED) -> FitCase:
    """Read channel 0 and the labels of one raw case, turn them to an orientation, and reduce them.

    Raises:
        FileNotFoundError, ValueError: naming the file that is missing or cannot be read, or the
            case if image and label differ in shape.
    """
    image, geometry = read_image(case.images[0])
    segmentation = with_ignored(read_segmentation(case.label)[0], reduction.ignore_label)
    turn = turn_to(orientation, geometry.direction)
    image, segmentation = (np.ascontiguousarray(turn.array(a)) for a in (image[0], segmentation))
    spacing = turn.of_axes(geometry.spacing)
    return reduce_case(case.case_id, image, segmentation, spacing, reduction)


def reduce_case(
    case_id: str,
    image: np.ndarray,
    segmentation: np.ndarray,
    spacing: tuple[float, float, float],
    reduction: Reduction,
) -> FitCase:
    """Reduce one case to what the fit needs of it.

    Args:
        case_id: case identifier.
        image: (z, y, x) raw intensities of channel 0.
        segmentation: (z, y, x) labels, or `IGNORED`.
        spacing: mm, zyx.
        reduction: how.

    Raises:
        ValueError: if image and label differ in shape.
    """
    if image.shape != segmentation.shape:
        raise ValueError(
            f"case {case_id!r}: the image has shape {image.shape}, its label "
            f"{segmentation.shape} (zyx, voxels); they must be one grid"
        )
    normalized = normalize(image, reduction.normalization)
    view = view_of(normalized, spacing)
    boxes, ignored = label_boxes(segmentation, reduction.labels), segmentation == IGNORED
    return FitCase(
        case_id=case_id,
        group=case_id,
        view=view,
        truths={
            name: _truth(segmentation, values, boxes[name], view)
            for name, values in reduction.labels.items()
            if boxes[name] is not None
        },
        described={strategy.name: strategy.describe(view) for strategy in reduction.fitted},
        unfitted={
            strategy.name: strategy().propose(normalized, spacing).boxes
            for strategy in reduction.unfitted
        },
        ignored=_in_view(ignored, view) if ignored.any() else None,
    )


def _truth(segmentation: np.ndarray, values: Values, box: np.ndarray, view: View) -> LabelTruth:
    whole_blocks = view.box_of_view(box) * view.step  # so that their means agree
    blocks = label_mask(segmentation[box_slices(whole_blocks)], values)
    mask = label_mask(segmentation[box_slices(box)], values)
    pieces = largest_component_boxes(mask)
    return LabelTruth(
        box=box,
        objects=tuple(piece + box[0] for piece, count in pieces if count >= CRUMB * pieces[0][1]),
        bits=zlib.compress(np.packbits(mask), _FAST),
        view_mask=_in_view(blocks, view),
    )


def _in_view(mask: np.ndarray, view: View) -> np.ndarray:
    """(z, y, x) uint8, the fraction of each view voxel that a mask fills."""
    return np.rint(block_means(mask, view.step) * 255).astype(np.uint8)

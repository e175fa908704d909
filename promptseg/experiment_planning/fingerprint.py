"""The fingerprint of a dataset: shapes, spacings, intensities and labels of its training cases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import cc3d
import numpy as np

from promptseg.boxes import box_slices, enclosing_box
from promptseg.components import components
from promptseg.files import write_json
from promptseg.io.orientation import turn_between
from promptseg.labels import IGNORED, Values, label_mask, members
from promptseg.preprocessing.modality import ChannelStatistics

FILE_NAME = "dataset_fingerprint.json"
FORMAT_VERSION = 1
HU_EDGES = np.arange(-1024, 3072 + 10, 10)  # HU; the 410 bins of a CT histogram


@dataclass(frozen=True, kw_only=True)
class LabelStatistics:
    """One label in one case.

    Attributes:
        voxels: how many.
        box: lower and upper corner in voxels of the raw image, zyx, upper exclusive.
        centroid: mean voxel centre relative to the shape, zyx, in [0, 1].
        mean: mean raw intensity of channel 0.
        largest_component: fraction of the voxels in the largest 26-connected component.
    """

    voxels: int
    box: tuple[tuple[int, int, int], tuple[int, int, int]]
    centroid: tuple[float, float, float]
    mean: float
    largest_component: float


@dataclass(frozen=True, kw_only=True)
class CaseFingerprint:
    """One raw case: shape (voxels, zyx), spacing (mm, zyx), its channels, its labels by value.

    The labels of regions are by all of their values. Its `orientation` is one of `ORIENTATIONS`, or
    None where it is oblique.
    """

    case_id: str
    orientation: str | None = None
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    channels: tuple[ChannelStatistics, ...]
    labels: dict[Values, LabelStatistics]

    def turned(self, orientation: str) -> CaseFingerprint:
        """The same case with its axes in another orientation."""
        turn = turn_between(self.orientation, orientation)
        labels = {}
        for value, label in self.labels.items():
            box = turn.boxes(np.array(label.box), self.shape).tolist()
            # an index of a voxel's centre in a grid of one voxel, from 0 to 1
            centroid = turn.points(np.array(label.centroid) - 0.5, (1, 1, 1)) + 0.5
            labels[value] = replace(
                label, box=(tuple(box[0]), tuple(box[1])), centroid=tuple(centroid.tolist())
            )
        return replace(
            self,
            orientation=self.orientation if turn.changes_nothing else orientation,
            shape=turn.of_axes(self.shape),
            spacing=turn.of_axes(self.spacing),
            labels=labels,
        )


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """What the plans follow from.

    Attributes:
        dataset: the dataset's name.
        channel_names: as in dataset.json.
        modalities: of each channel: `CT`, `MRI`, `PET`, `US` or `unknown`.
        modality_sources: of each channel: declared or guessed, and why.
        labels: foreground labels, name to value, ordered by value.
        cases: the usable training cases.
        hu_histograms: for every CT channel and label value (0 is all that has no label), voxels
            in each bin of `HU_EDGES`, summed over the cases; the end bins hold all values beyond.
        format_version: of the file.
    """

    dataset: str
    channel_names: tuple[str, ...]
    modalities: tuple[str, ...]
    modality_sources: tuple[str, ...]
    labels: dict[str, Values]
    cases: tuple[CaseFingerprint, ...]
    hu_histograms: dict[int, dict[int, tuple[int, ...]]]
    format_version: int = FORMAT_VERSION

    @property
    def orientations(self) -> Counter[str | None]:
        """How many cases there are of each orientation, as they are stored."""
        return Counter(case.orientation for case in self.cases)

    def to_json(self) -> dict[str, Any]:
        content = asdict(self)
        for case in content["cases"]:  # JSON has no keys of several numbers
            case["labels"] = {str(values): of for values, of in case["labels"].items()}
        return content


def save_fingerprint(folder: Path | str, fingerprint: Fingerprint) -> Path:
    """Write `dataset_fingerprint.json` into a folder; returns its path."""
    path = Path(folder) / FILE_NAME
    write_json(path, fingerprint.to_json())
    return path


def label_statistics(
    segmentation: np.ndarray, image: np.ndarray, regions: Iterable[Values] = ()
) -> dict[Values, LabelStatistics]:
    """Size, box, centroid, mean intensity and components of every label that occurs.

    Args:
        segmentation: (z, y, x) labels from 0, small whole numbers, or `IGNORED`.
        image: (z, y, x) raw intensities of channel 0.
        regions: those of several values are described, too.
    """
    found = cc3d.statistics(segmentation.clip(min=0).astype(np.uint16, copy=False))
    result: dict[Values, LabelStatistics] = {}
    for label in range(1, len(found["voxel_counts"])):
        voxels = int(found["voxel_counts"][label])
        if voxels == 0:
            continue
        box = found["bounding_boxes"][label]
        mask = segmentation[box] == label
        centroid = (found["centroids"][label] + 0.5) / segmentation.shape
        result[label] = LabelStatistics(
            voxels=voxels,
            box=(tuple(int(s.start) for s in box), tuple(int(s.stop) for s in box)),
            centroid=tuple(float(c) for c in centroid),
            mean=float(image[box][mask].mean(dtype=np.float64)),
            largest_component=float(components(mask)[1].max() / voxels),
        )
    for values in regions:
        parts = [result[value] for value in members(values) if value in result]
        if isinstance(values, tuple) and parts:
            result[values] = _together(parts, segmentation, values)
    return result


def _together(
    parts: Sequence[LabelStatistics], segmentation: np.ndarray, values: Values
) -> LabelStatistics:
    """The statistics of a region from those of the labels that it is made of."""
    box = enclosing_box([part.box for part in parts])
    counts = [part.voxels for part in parts]
    voxels = sum(counts)
    mask = label_mask(segmentation[box_slices(box)], values)
    centroid = np.average([part.centroid for part in parts], axis=0, weights=counts)
    return LabelStatistics(
        voxels=voxels,
        box=tuple(map(tuple, box.tolist())),
        centroid=tuple(centroid.tolist()),
        mean=float(np.average([part.mean for part in parts], weights=counts)),
        largest_component=float(components(mask)[1].max() / voxels),
    )


def hu_histogram(channel: np.ndarray, segmentation: np.ndarray) -> dict[int, np.ndarray]:
    """Voxels of every label that occurs (0 too) in each bin of `HU_EDGES`.

    Args:
        channel: (z, y, x) HU.
        segmentation: (z, y, x) labels from 0, small whole numbers; voxels that are `IGNORED` are
            not counted.

    Returns:
        label value to (bins,) counts; the first and last bin hold everything beyond them.
    """
    bins, labels = len(HU_EDGES) - 1, max(int(segmentation.max()), 0) + 1
    counts = np.zeros(labels * bins, np.int64)
    for values, of_label in zip(channel, segmentation, strict=True):  # bounded extra memory
        index = (values.astype(np.float32) - HU_EDGES[0]) // 10
        index = np.clip(index, 0, bins - 1).astype(np.intp) + bins * of_label.astype(np.intp)
        counts += np.bincount(index[of_label != IGNORED], minlength=labels * bins)
    table = counts.reshape(labels, bins)
    return {label: table[label] for label in range(labels) if table[label].any()}

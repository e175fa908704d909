"""Logits of one label after the other to a prediction: label map, probabilities, quality."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from torch import Tensor

from promptseg.inference.export import LabelMap
from promptseg.inference.probabilities import RegionProbabilities
from promptseg.inference.results import Prediction, label_result
from promptseg.prompts.prompts import Prompts


class Collector:
    """What is known of an image's prediction so far.

    Args:
        values: of the labels in the segmentation.
        raw_shape: of the image, voxels, zyx.
        keep_probabilities: whether the prediction has them.

    Attributes:
        probabilities: None when they are not kept; then logits below 0 need not be entered.
    """

    def __init__(
        self, values: Mapping[str, int], raw_shape: Sequence[int], keep_probabilities: bool
    ) -> None:
        self.probabilities = RegionProbabilities() if keep_probabilities else None
        self._values = values
        self._shape = raw_shape
        self._label_map = LabelMap(raw_shape, max(values.values()))
        self._told: dict[str, dict[int, tuple[float | None, float | None]]] = {}

    def enter(self, label: str, slabs: Iterable[tuple[Tensor, np.ndarray]]) -> None:
        """Take (z, y, x) logits of a label on the raw grid, each with its first voxel, zyx."""
        for logits, lower in slabs:
            self._label_map.add(self._values[label], logits, lower)
            if self.probabilities is not None:
                self.probabilities.add(label, logits, lower)

    def rate(
        self, label: str, number: int, predicted_iou: float | None, agreement: float | None
    ) -> None:
        """Take what is told of one object of a label, in place of what was told before."""
        self._told.setdefault(label, {})[number] = predicted_iou, agreement

    def prediction(self, wanted: Mapping[str, Prompts]) -> Prediction:
        """All that was entered, with a result for each label that prompts were wanted for."""
        results = {
            label: label_result(
                prompts,
                self._worst(label, 0),
                self._label_map.voxels(self._values[label]),
                self._shape,
                self._worst(label, 1),
            )
            for label, prompts in wanted.items()
        }
        return Prediction(
            segmentation=self._label_map.labels, labels=results, probabilities=self.probabilities
        )

    def _worst(self, label: str, place: int) -> float | None:
        """Of the objects of a label that one which a person should look at."""
        told = [of_object[place] for of_object in self._told.get(label, {}).values()]
        return min((value for value in told if value is not None), default=None)

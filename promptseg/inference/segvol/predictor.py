"""SegVol's inference: a look at the whole volume, then at the region where it found something."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from promptseg.inference.answers import OPEN_VOXELS
from promptseg.inference.decoding import ImageDecoder
from promptseg.inference.export import LabelMap
from promptseg.inference.predictor import Predictor
from promptseg.inference.results import Prediction, label_result
from promptseg.inference.segvol.views import (
    CoarseMask,
    grown_to_window,
    in_region,
    in_window_of_region,
    is_prompt,
    region_starts,
)
from promptseg.inference.sliding_window import Blend, groups_of_at_most
from promptseg.networks.prompt_encoder import Query
from promptseg.preprocessing.segvol import SegVolImage
from promptseg.prompts.prompts import Prompts
from promptseg.training.patches import cut_window

ASKED_AT_ONCE = 8  # queries about the whole volume: 8 MB of logits each
KEPT_ENCODINGS = 32  # of 6 MB each


@dataclass(frozen=True, kw_only=True)
class _Place:
    """A query, in voxels of the crop, and the region where its answer is looked for."""

    label: str
    query: Query
    coarse: CoarseMask
    region: np.ndarray


class SegVolDecoder(ImageDecoder):
    """Answers queries about an image as SegVol sees it: cropped to its foreground."""

    image: SegVolImage

    def in_region_window(
        self, region: np.ndarray, start: np.ndarray, queries: Sequence[Query]
    ) -> tuple[Tensor, Tensor]:
        """Logits (n, z, y, x) and predicted IoU (n,) in a window of a region.

        Kept: a region smaller than the window is padded with zeros, also where the volume goes
        on; so was the original at prediction.

        Args:
            region: (2, 3) half-open integer box in voxels of the image, zyx.
            start: of the window in the region's voxels, zyx.
            queries: in the window's voxels.
        """
        part = self.image.part(region)
        return self._decode(
            (*region.ravel().tolist(), *start.tolist()),
            lambda: cut_window(part, part.shape[1:], start, self.window),
            queries,
        )


class SegVolPredictor(Predictor):
    """`Predictor` for plans with the preset `segvol`.

    Images are neither resampled nor blended with Gaussian weights; the module `views` names what
    else is SegVol's own. Labels whose names no training has learned need a box or points.
    """

    def _decoder(self, image: np.ndarray, spacing: Sequence[float]) -> SegVolDecoder:
        return SegVolDecoder(
            SegVolImage(image, self.plans.normalizations[0]),
            self.networks,
            self.plans.window,
            flips=self.flips,
            device=self.device,
            most_encodings=max(self.most_encodings, KEPT_ENCODINGS),
        )

    @torch.inference_mode()
    def _segment(
        self, wanted: Mapping[str, Prompts], queries: Mapping[str, list[Query]]
    ) -> Prediction:
        image, values = self._current_image(), self.plans.labels
        crop = image.decoder.image.foreground
        learned, wanted = self._learned_labels(), dict(wanted)
        asked = []
        for label, of_label in queries.items():
            moved = [_moved(query, -crop[0]) for query in of_label]
            meeting = [query for query in moved if _says_something(query, crop[1] - crop[0])]
            if label in learned and not any(map(is_prompt, moved)):
                meeting = moved
            asked += [(label, query) for query in meeting]
            if not meeting:
                reason = "no_box" if wanted[label].is_empty else "outside_foreground"
                wanted[label] = _unanswered(wanted[label], reason)
        label_map = LabelMap(image.raw_shape, max(values.values()))
        ious: dict[str, list[float]] = {label: [] for label in wanted}
        for label, logits, lower, iou in self._answers(image.decoder, asked):
            label_map.add(values[label], logits, crop[0] + lower)
            ious[label].append(iou)
        results = {
            label: label_result(
                prompts,
                min(ious[label], default=None) if learned else None,  # no training touched it
                int(np.count_nonzero(label_map.labels == values[label])),
                image.raw_shape,
            )
            for label, prompts in wanted.items()
        }
        return Prediction(segmentation=label_map.labels, labels=results)

    def _learned_labels(self) -> set[str]:
        """The labels that every network was asked for by name in training."""
        learned = torch.stack([network.label_text.learned.cpu() for network in self.networks])
        flags = learned.all(dim=0).tolist()
        return {
            label for label, is_learned in zip(self.plans.labels, flags, strict=True) if is_learned
        }

    def _answers(
        self, decoder: SegVolDecoder, asked: Sequence[tuple[str, Query]]
    ) -> Iterator[tuple[str, Tensor, np.ndarray, float]]:
        """Label, (z, y, x) logits, their first voxel in the crop, and predicted IoU of a query.

        Where the first look finds nothing, its logits, which are nowhere above 0, are the answer:
        nothing is left to enter. Where it finds something, the second look's logits take their
        place in the region; the region holds all of the first's that are above 0.
        """
        places: dict[tuple, list[_Place]] = {}
        for first in range(0, len(asked), ASKED_AT_ONCE):
            for label, found, iou in self._coarse(decoder, asked[first : first + ASKED_AT_ONCE]):
                if isinstance(found, _Place):
                    places.setdefault(tuple(found.region.ravel().tolist()), []).append(found)
                else:
                    yield label, torch.zeros(0, 0, 0), np.zeros(3, int), iou
        for region, here in places.items():
            corners = np.reshape(region, (2, 3))
            size = int(np.prod(corners[1] - corners[0]))
            for group in groups_of_at_most([size] * len(here), OPEN_VOXELS):
                yield from self._in_region(decoder, corners, [here[i] for i in group])

    def _coarse(
        self, decoder: SegVolDecoder, asked: Sequence[tuple[str, Query]]
    ) -> Iterator[tuple[str, _Place | None, float]]:
        """Look at the whole volume, resized to one window."""
        shape = np.diff(decoder.image.foreground, axis=0)[0]
        whole, window = np.stack([np.zeros(3, int), shape]), self.plans.window
        logits, ious = decoder.in_whole([in_region(query, whole, window) for _, query in asked])
        for (label, query), answer, iou in zip(asked, logits, ious.tolist(), strict=True):
            coarse = CoarseMask((answer > 0).cpu().numpy(), shape)
            box = coarse.box()
            if box is None:
                yield label, None, iou
                continue
            region = grown_to_window(box, window, shape)
            yield label, _Place(label=label, query=query, coarse=coarse, region=region), iou

    def _in_region(
        self, decoder: SegVolDecoder, region: np.ndarray, places: Sequence[_Place]
    ) -> Iterator[tuple[str, Tensor, np.ndarray, float]]:
        """Look at a region window by window, each encoded once for all queries about it."""
        window, shape = self.plans.window, region[1] - region[0]
        starts = region_starts(shape, window, self.step_size)
        even = torch.ones(tuple(window))
        blends = [Blend(starts, window, shape, even) for _ in places]
        best = np.zeros(len(places))
        for start in starts:
            queries = [
                in_window_of_region(p.query, p.coarse, region, start, window, len(starts) == 1)
                for p in places
            ]
            logits, ious = decoder.in_region_window(
                region + decoder.image.foreground[0], start, queries
            )
            for blend, answer in zip(blends, logits, strict=True):
                blend.add(answer, start)
            best = np.maximum(best, ious.cpu().numpy())
        for place, blend, iou in zip(places, blends, best.tolist(), strict=True):
            yield place.label, blend.result(), region[0] + blend.lower, iou


def _moved(query: Query, offset: np.ndarray) -> Query:
    points = np.asarray(query.points, float).reshape(-1, 3)
    box = None if query.box is None else query.box + offset
    return replace(query, box=box, points=points + offset)


def _says_something(query: Query, shape: np.ndarray) -> bool:
    """Whether a box or point of the query meets a volume of that shape."""
    return is_prompt(in_region(query, np.stack([np.zeros(3, int), shape]), shape))


def _unanswered(prompts: Prompts, reason: str) -> Prompts:
    """The same prompts with the reason why nothing was looked for, unless they have another."""
    return replace(
        prompts,
        source="none" if prompts.is_empty else prompts.source,
        reason=reason if prompts.reason == "ok" else prompts.reason,
    )

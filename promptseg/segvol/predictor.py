"""SegVol's inference: first the whole volume, then the region in which something was found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from promptseg.inference.decoder import OPEN_VOXELS
from promptseg.inference.label_map import Collector, raw_slabs
from promptseg.inference.predictor import Predictor
from promptseg.inference.queries import FlatBox, flat_axis
from promptseg.inference.results import Prediction
from promptseg.inference.session import Session
from promptseg.inference.sliding_window import Blend, groups_of_at_most, open_voxels
from promptseg.networks.prompt_encoder import Query
from promptseg.plans import Plans
from promptseg.prompts.types import Prompts
from promptseg.segvol.decoder import FirstLook, SegVolDecoder
from promptseg.segvol.network import SegVolNetwork
from promptseg.segvol.preprocessing import SegVolImage
from promptseg.segvol.views import in_region, is_prompt

KEPT_ENCODINGS = 32  # of 6 MB each


class SegVolPredictor(Predictor):
    """`Predictor` for plans with the preset `segvol`.

    Images are not resampled, and patches not blended with Gaussian weights; `segvol.views` and
    `segvol.preprocessing` list what else is SegVol's own, and why. Labels whose names were not
    learned in training need a box or points.
    """

    decoder_class = SegVolDecoder

    def __init__(
        self,
        networks: Sequence[SegVolNetwork],
        plans: Plans,
        *,
        measured_dice: Mapping[str, Mapping[str, float]] | None = None,
        **options: Any,
    ) -> None:
        """As `Predictor`; `measured_dice` is not used: every answer starts from a coarse mask."""
        super().__init__(networks, plans, **options)
        of_patch = len(self.networks) * len(self.flips)
        self.most_encodings = max(self.most_encodings, KEPT_ENCODINGS // of_patch)

    def _preprocessed(self, image: np.ndarray, spacing: Sequence[float]) -> SegVolImage:
        return SegVolImage(image, self.plans.normalizations[0])

    def check_prompts(self, prompts: Mapping[str, Prompts]) -> None:
        """Refuse masks to correct, lassos and boxes that are drawn on a slice.

        Raises:
            ValueError: naming the label and what it was given.
        """
        shape = self._current_image().raw_shape
        for label, of_label in prompts.items():
            flat = any(flat_axis(box, shape) is not None for box in of_label.boxes)
            given = {
                "a mask to correct": of_label.mask is not None,
                "a lasso": len(of_label.lassos) > 0,
                "a box on a single slice": flat,
            }
            if found := [what for what, is_given in given.items() if is_given]:
                raise ValueError(
                    f"label {label!r}: SegVol's weights cannot use {' or '.join(found)}; give 3D "
                    f"boxes, points or scribbles, or use a model without the preset segvol"
                )

    def new_object(self, label: str | None = None) -> Session:
        """Refused: SegVol's answers do not start from a mask that further prompts could correct.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "SegVol's weights cannot correct a mask, so there are no sessions with them; give all "
            "prompts at once to predict, or use a model without the preset segvol"
        )

    @torch.inference_mode()
    def _segment(
        self, wanted: Mapping[str, Prompts], queries: Mapping[str, list[Query]]
    ) -> Prediction:
        image = self._current_image()
        decoder: SegVolDecoder = image.decoder
        learned, corner = self._learned_labels(), decoder.image.foreground[0]
        names, asked, reasons = [], [], {}
        for label, of_label in queries.items():
            in_crop = [_moved(query, -corner) for query in _solid(of_label)]
            if wanted[label].is_empty:
                usable, reason = in_crop if label in learned else [], "no_box"
            else:
                usable = [query for query in in_crop if _meets(query, decoder.crop_shape)]
                reason = "outside_foreground"
            names += [label] * len(usable)
            asked += usable
            if not usable:
                reasons[label] = reason

        looks = decoder.first_looks(asked, self.n_perturbations)
        collector = Collector(self.plans, list(wanted), image.raw_shape, self.keep_probabilities)
        ious = [look.predicted_iou for look in looks]
        for index, region, blend, iou in self._second_looks(decoder, looks):
            shape, ious[index] = region[1] - region[0], iou
            slabs = raw_slabs(blend, shape, shape)
            offset = region[0] + corner
            collector.enter(names[index], ((logits, at + offset) for logits, at in slabs))
        for index, (label, iou) in enumerate(zip(names, ious, strict=True)):
            # the released weights' IoU is untrained; ours is trained together with the names
            collector.rate(label, index, iou if learned else None, looks[index].prompt_consistency)
        return collector.prediction(
            {
                label: _unanswered(prompts, reasons[label]) if label in reasons else prompts
                for label, prompts in wanted.items()
            }
        )

    def _second_looks(
        self, decoder: SegVolDecoder, looks: Sequence[FirstLook]
    ) -> Iterator[tuple[int, np.ndarray, Blend, float]]:
        """Index, region, logits there and predicted IoU of the queries with a region.

        Each comes once whenever slices of its region are final; see `blended_answers`.

        Logits of the second look replace the first's in the region, which contains all of the
        first's above 0. So nothing of the first look remains to be entered, and nothing of a
        query whose first look found nothing.
        """
        of_region: dict[tuple, list[int]] = {}
        for index, look in enumerate(looks):
            if look.region is not None:
                of_region.setdefault(tuple(look.region.ravel().tolist()), []).append(index)
        for numbers, indices in of_region.items():
            region = np.reshape(numbers, (2, 3))
            voxels = open_voxels(*region, self.plans.patch_size)
            for group in groups_of_at_most([voxels] * len(indices), OPEN_VOXELS):
                here = [indices[i] for i in group]
                in_group = [looks[index] for index in here]
                for i, blend, iou in decoder.second_looks(region, in_group, self.step_size):
                    yield here[i], region, blend, iou

    def _learned_labels(self) -> set[str]:
        """The labels whose names all networks learned in training."""
        learned = torch.stack([network.label_text.learned.cpu() for network in self.networks])
        pairs = zip(self.plans.labels, learned.all(dim=0).tolist(), strict=True)
        return {label for label, is_learned in pairs if is_learned}


def _solid(queries: Sequence[Query]) -> list[Query]:
    """Queries with thin boxes, which automatic prompts can have, as boxes like any other.

    SegVol's masks may leave the box that a person drew.
    """
    drawn = getattr(queries[0], "drawn", ())
    boxes = [query.box for query in queries if query.box is not None]
    boxes += [item.box for item in drawn if isinstance(item, FlatBox)]
    return [replace(queries[0], box=box, drawn=(), limit=None) for box in boxes] or list(queries)


def _moved(query: Query, offset: np.ndarray) -> Query:
    points = np.asarray(query.points, float).reshape(-1, 3)
    box = None if query.box is None else query.box + offset
    return replace(query, box=box, points=points + offset)


def _meets(query: Query, shape: np.ndarray) -> bool:
    """Whether a box or point of the query lies in a volume of that shape."""
    return is_prompt(in_region(query, np.stack([np.zeros(3, int), shape]), shape))


def _unanswered(prompts: Prompts, reason: str) -> Prompts:
    """The prompts with the reason why they got no answer, unless they already have a reason."""
    return replace(
        prompts,
        source="none" if prompts.is_empty else prompts.source,
        reason=reason if prompts.reason == "ok" else prompts.reason,
    )

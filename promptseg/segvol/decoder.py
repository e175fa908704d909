"""SegVol's two looks at an image, for queries in voxels of the foreground crop."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from promptseg.inference.consistency import PromptConsistency, perturbed_prompts
from promptseg.inference.decoder import ASKED_AT_ONCE, ImageDecoder
from promptseg.inference.sliding_window import Blend
from promptseg.networks.prompt_encoder import Query
from promptseg.preprocessing.patch import cut_patch
from promptseg.segvol.preprocessing import SegVolImage
from promptseg.segvol.views import (
    CoarseMask,
    grown_to_patch,
    in_patch_of_region,
    in_region,
    region_starts,
)


@dataclass(frozen=True, kw_only=True)
class FirstLook:
    """The answer to one query from the whole volume, resized to one patch.

    Attributes:
        query: the query, in voxels of the crop.
        coarse: its mask.
        region: (2, 3) half-open integer box for the second look; None if the mask is empty.
        predicted_iou: the network's estimate of the mask's IoU.
        prompt_consistency: mean IoU with the masks of perturbed prompts; None if there are none.
    """

    query: Query
    coarse: CoarseMask
    region: np.ndarray | None
    predicted_iou: float
    prompt_consistency: float | None


class SegVolDecoder(ImageDecoder):
    """Answers queries about an image as SegVol sees it: cropped to its foreground."""

    image: SegVolImage

    @property
    def crop_shape(self) -> np.ndarray:
        """(3,) voxels of the foreground crop, zyx."""
        lower, upper = self.image.foreground
        return upper - lower

    def first_looks(self, queries: Sequence[Query], n_perturbations: int) -> list[FirstLook]:
        """Decode queries in the whole crop, resized to one patch; a few queries at once.

        Args:
            queries: in voxels of the crop.
            n_perturbations: number of perturbed prompts that each answer is compared with. They
                are used here only: the second look does not use the given box in several patches.
        """
        looks = []
        for first in range(0, len(queries), ASKED_AT_ONCE):
            looks += self._first_looks(queries[first : first + ASKED_AT_ONCE], n_perturbations)
        return looks

    def _first_looks(self, queries: Sequence[Query], n_perturbations: int) -> list[FirstLook]:
        shape, patch_size = self.crop_shape, tuple(self.patch_size.tolist())
        whole = np.stack([np.zeros(3, int), shape])
        logits, ious = self.in_whole([in_region(query, whole, patch_size) for query in queries])
        looks = []
        for query, answer, iou in zip(queries, logits, ious.tolist(), strict=True):
            perturbed = perturbed_prompts(query, shape, n_perturbations)
            prompt_consistency = PromptConsistency(len(perturbed))
            if perturbed:
                prompt_consistency.add(
                    answer, self.in_whole([in_region(q, whole, patch_size) for q in perturbed])[0]
                )
            coarse = CoarseMask((answer > 0).cpu().numpy(), shape)
            box = coarse.box()
            look = FirstLook(
                query=query,
                coarse=coarse,
                region=None if box is None else grown_to_patch(box, patch_size, shape),
                predicted_iou=iou,
                prompt_consistency=prompt_consistency.value(),
            )
            looks.append(look)
        return looks

    def second_looks(
        self, region: np.ndarray, looks: Sequence[FirstLook], step_size: float
    ) -> Iterator[tuple[int, Blend, float]]:
        """Decode queries in a region patch by patch; a patch is encoded once for all of them.

        Patches have equal weights where they overlap; a few queries are decoded at once.

        Args:
            region: (2, 3) half-open integer box in voxels of the crop, zyx.
            looks: the first looks that found this region.
            step_size: distance of neighbouring patches, as a fraction of the patch size.

        Yields:
            The index of a query in `looks`, its logits in the region, and the predicted IoU of
            its best patch so far, each time that slices have become final; these are released
            when the iteration continues.
        """
        shape = region[1] - region[0]
        starts = region_starts(shape, self.patch_size, step_size)
        even = torch.ones(tuple(self.patch_size))
        blends = [Blend(starts, self.patch_size, shape, even) for _ in looks]
        best = np.zeros(len(looks))
        alone = len(starts) == 1
        for start, first in itertools.product(starts, range(0, len(looks), ASKED_AT_ONCE)):
            queries = [
                in_patch_of_region(look.query, look.coarse, region, start, self.patch_size, alone)
                for look in looks[first : first + ASKED_AT_ONCE]
            ]
            logits, ious = self._in_patch_of_region(region, start, queries)
            for index, answer in enumerate(logits, start=first):
                best[index] = max(best[index], float(ious[index - first]))
                blends[index].add(answer, start)
                if blends[index].is_due:
                    yield index, blends[index], float(best[index])
                    blends[index].release()

    def _in_patch_of_region(
        self, region: np.ndarray, start: np.ndarray, queries: Sequence[Query]
    ) -> tuple[Tensor, Tensor]:
        """Logits (n, z, y, x) and predicted IoU (n,) in a patch of a region.

        Kept: a region smaller than the patch is padded with zeros even where the volume extends
        beyond it, as the original does in prediction.
        """
        part = self.image.part(region + self.image.foreground[0])
        return self._decode(
            (*region.ravel().tolist(), *start.tolist()),
            lambda: cut_patch(part, start, self.patch_size),
            queries,
        )

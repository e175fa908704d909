"""One image's patches to logits: networks and mirrorings averaged, encodings kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from promptseg.inference.consistency import PromptConsistency, perturbed_prompts
from promptseg.inference.queries import flipped, in_patch, patches_that_meet
from promptseg.inference.sliding_window import Blend, groups_of_at_most, open_voxels, spanned
from promptseg.networks.prompt_encoder import Query, batch_queries
from promptseg.networks.promptable import PromptableNetwork, decode_in_parts
from promptseg.preprocessing.lazy import LazyImage
from promptseg.preprocessing.patch import cut_patch

ASKED_AT_ONCE = 8  # queries about a whole volume, whose logits are held together


class ImageDecoder:
    """Answers queries about one image, patch by patch.

    Args:
        image: preprocessed, in the end.
        networks: whose answers are averaged.
        patch: voxels, zyx.
        flips: mirrorings to average over, each a tuple of axes.
        device: where the networks are.
        most_encodings: patches whose encodings are kept for further queries, each with those of
            all networks and mirrorings; the oldest patch goes first.
    """

    def __init__(
        self,
        image: LazyImage,
        networks: Sequence[PromptableNetwork],
        patch_size: Sequence[int],
        *,
        flips: Sequence[tuple[int, ...]],
        device: str | torch.device,
        most_encodings: int,
    ) -> None:
        self.image = image
        self.networks = networks
        self.patch_size = np.asarray(patch_size)
        self.flips = flips
        self.device = device
        self.most_encodings = most_encodings
        self._encodings: dict[Any, dict[tuple, Any]] = {}  # of each patch

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the image, zyx."""
        return self.image.shape[1:]

    def in_patch(self, start: Sequence[int], queries: Sequence[Query]) -> tuple[Tensor, Tensor]:
        """Logits (n, z, y, x) and predicted IoU (n,) of queries in the patch at a start.

        Args:
            start: of the patch, voxels, zyx.
            queries: in the image's voxels.
        """
        corner = np.array(start)
        moved = [in_patch(query, corner, self.patch_size) for query in queries]
        return self._decode(
            tuple(start), lambda: cut_patch(self.image, corner, self.patch_size), moved
        )

    def in_whole(self, queries: Sequence[Query]) -> tuple[Tensor, Tensor]:
        """The same for the whole image resized to one patch; queries in voxels of that."""
        size = tuple(self.patch_size.tolist())
        return self._decode("whole", lambda: self.image.resized(size), queries)

    def _decode(
        self, key: Any, cut: Callable[[], np.ndarray], queries: Sequence[Query]
    ) -> tuple[Tensor, Tensor]:
        cut, encodings = cache(cut), self._encodings_of(key)
        logits_sum, iou_sum = 0.0, 0.0
        for index, network in enumerate(self.networks):
            for flip in self.flips:
                if (index, flip) not in encodings:
                    encodings[index, flip] = self._encode(network, cut(), flip)
                mirrored = [flipped(query, flip, self.patch_size) for query in queries]
                prompts = batch_queries(mirrored).to(self.device)
                logits, iou = decode_in_parts(network, encodings[index, flip], prompts)
                logits_sum = logits_sum + logits.flip([axis + 1 for axis in flip])
                iou_sum = iou_sum + iou.sigmoid()
        count = len(self.networks) * len(self.flips)
        return logits_sum / count, iou_sum / count

    def _encodings_of(self, key: Any) -> dict[tuple, Any]:
        """Those of a patch that are there, to be added to; another patch makes room."""
        if key not in self._encodings:
            while len(self._encodings) >= self.most_encodings:
                self._encodings.pop(next(iter(self._encodings)))
            self._encodings[key] = {}
        return self._encodings[key]

    def _encode(
        self, network: PromptableNetwork, patch_size: np.ndarray, flip: tuple[int, ...]
    ) -> Any:
        patch_size = torch.from_numpy(np.ascontiguousarray(patch_size))[None].to(self.device)
        patch_size = patch_size.flip([axis + 2 for axis in flip]).float()
        return network.encode(patch_size.contiguous(memory_format=torch.channels_last_3d))


OPEN_VOXELS = 2**27  # of the blends that wait for patches: 512 MB
ASKED_VOXELS = 2**25  # of the answers in one patch that are held together: 128 MB


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the network says to one query, as far as its patches are done.

    Attributes:
        index: place of the query in the list that was asked.
        blend: its logits; those of slices that are final and were not given yet count.
        predicted_iou: the largest of the patches so far: the best one sees most of an object.
        prompt_consistency: mean IoU with the answers to perturbed prompts, in the patches so far;
            None when there was nothing to perturb.
    """

    index: int
    blend: Blend
    predicted_iou: float
    prompt_consistency: float | None


def blended_answers(
    decoder: ImageDecoder,
    queries: Sequence[Query],
    starts: Sequence[np.ndarray],
    weights: Tensor,
    *,
    n_perturbations: int = 0,
    most_open_voxels: int = OPEN_VOXELS,
) -> Iterator[Answer]:
    """Decode patch by patch in raster order, each for all queries that use it.

    Of a query's logits about a patch's thickness is held. Where even that is too much for all
    queries together, they go in groups, neighbours together, and patches that several groups use
    are visited again for each.

    Args:
        decoder: of the image.
        queries: in its voxels.
        starts: (n, 3) starts of the patches that each query uses, zyx.
        weights: (z, y, x) of a patch.
        n_perturbations: how many moved prompts each answer is compared with.
        most_open_voxels: that the queries of a group hold; a single query may hold more.

    Yields:
        Each query's answer, every time that slices of it have become final; the last time with
        all patches. What was given is released when the next is asked for.
    """
    order = sorted(range(len(queries)), key=lambda index: starts[index].tolist())
    corners = [spanned(starts[index], decoder.patch_size, decoder.shape) for index in order]
    sizes = [open_voxels(*of_query, decoder.patch_size) for of_query in corners]
    for places in groups_of_at_most(sizes, most_open_voxels):
        group = [order[place] for place in places]
        yield from _answers_of_group(decoder, queries, starts, weights, n_perturbations, group)


def answers_with_perturbed(
    decoder: ImageDecoder,
    start: Sequence[int],
    queries: Sequence[Query],
    moved: Sequence[Sequence[Query]],
) -> Iterator[tuple[Tensor, float, list[Tensor | None]]]:
    """Ask a patch queries and the moved ones of each, all in one call.

    Args:
        decoder: of the image.
        start: of the patch, voxels, zyx.
        queries: in the image's voxels.
        moved: of each query.

    Yields:
        For each query its (z, y, x) logits, predicted IoU, and the logits of its moved ones; None
        for one whose box has left the patch.
    """
    here = np.array([start])
    there = [
        [bool(len(patches_that_meet(query, here, decoder.patch_size))) for query in of_query]
        for of_query in moved
    ]
    asked = [
        query
        for pair in zip(moved, there, strict=True)
        for query, is_there in zip(*pair, strict=True)
        if is_there
    ]
    logits, ious = decoder.in_patch(start, [*queries, *asked])
    answers, of_moved = logits[: len(queries)], iter(logits[len(queries) :])
    for answer, iou, are_there in zip(answers, ious[: len(queries)].tolist(), there, strict=True):
        yield answer, iou, [next(of_moved) if is_there else None for is_there in are_there]


def _answers_of_group(
    decoder: ImageDecoder,
    queries: Sequence[Query],
    starts: Sequence[np.ndarray],
    weights: Tensor,
    n_perturbations: int,
    group: Sequence[int],
) -> Iterator[Answer]:
    jobs: dict[tuple, list[int]] = {}
    for index in group:
        for start in starts[index].tolist():
            jobs.setdefault(tuple(start), []).append(index)
    moved = {
        index: perturbed_prompts(queries[index], decoder.shape, n_perturbations) for index in group
    }
    blends: dict[int, Blend] = {}
    agreements = {index: PromptConsistency(len(moved[index])) for index in group}
    qualities = dict.fromkeys(group, 0.0)
    at_once = max(1, ASKED_VOXELS // (int(np.prod(decoder.patch_size)) * (1 + n_perturbations)))
    for start, asking in sorted(jobs.items()):
        for first in range(0, len(asking), at_once):
            here = asking[first : first + at_once]
            answers = answers_with_perturbed(
                decoder, start, [queries[i] for i in here], [moved[i] for i in here]
            )
            for index, (answer, iou, others) in zip(here, answers, strict=True):
                if index not in blends:
                    blends[index] = Blend(starts[index], decoder.patch_size, decoder.shape, weights)
                blend, inside = blends[index], blends[index].inside(np.array(start))
                blend.add(answer, np.array(start))
                others = [None if other is None else other[inside] for other in others]
                agreements[index].add(answer[inside], others)
                qualities[index] = max(qualities[index], iou)
                if blend.is_due:
                    yield Answer(
                        index=index,
                        blend=blend,
                        predicted_iou=qualities[index],
                        prompt_consistency=agreements[index].value(),
                    )
                    blend.release()
                if blend.is_complete:
                    del blends[index]

"""Answers to queries about one image: patches encoded once, decoded per query and blended."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from promptseg.inference.consistency import PromptConsistency, perturbed_prompts
from promptseg.inference.queries import flipped, in_patch, patches_that_meet
from promptseg.inference.sliding_window import Blend, groups_of_at_most, open_voxels, spanned
from promptseg.io.orientation import Turn
from promptseg.networks.prompt_encoder import Query, batch_queries
from promptseg.networks.promptable import PromptableNetwork, decode_in_parts
from promptseg.networks.regions import within_limits
from promptseg.preprocessing.lazy import LazyImage
from promptseg.preprocessing.patch import cut_patch
from promptseg.progress_bar import progress_bar

ASKED_AT_ONCE = 8  # queries about a whole volume, whose logits are held together
OPEN_VOXELS = 2**27  # of the blends that wait for patches: 512 MB
WHOLE = "whole"  # key of the encodings of the whole image
MANY_PATCHES, PATIENCE = 20, 10.0  # from which many patches, after so many seconds, are counted
ASKED_VOXELS = 2**25  # of the answers in one patch that are held together: 128 MB


Patch = tuple[tuple[int, ...], list[int]]  # its start, and the queries that use it


class ImageDecoder:
    """Logits and predicted IoU for queries in single patches of an image, or in all of it.

    They are averaged over networks and mirrorings. The encodings of a patch are kept for further
    queries.

    Args:
        image: preprocessed patch by patch, when first needed.
        networks: their answers are averaged.
        patch_size: voxels, zyx.
        flips: mirrorings to average over, each a tuple of axes.
        device: where the networks are.
        most_encodings: number of patches whose encodings are kept, each with those of all
            networks and mirrorings; the oldest patch is dropped first.
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
        """Of the preprocessed image, zyx."""
        return self.image.shape[1:]

    @property
    def encoded_starts(self) -> np.ndarray:
        """(n, 3) starts of the patches whose encodings are kept."""
        starts = [key for key in self._encodings if key != WHOLE]
        return np.array(starts, int).reshape(-1, 3)

    def in_patch(self, start: Sequence[int], queries: Sequence[Query]) -> tuple[Tensor, Tensor]:
        """Logits (n, z, y, x) and predicted IoU (n,) of queries in the patch at a start.

        Args:
            start: of the patch, voxels, zyx.
            queries: in voxels of the preprocessed image.
        """
        corner = np.array(start)
        in_its_voxels = [in_patch(query, corner, self.patch_size) for query in queries]
        return self._decode(
            tuple(start), lambda: cut_patch(self.image, corner, self.patch_size), in_its_voxels
        )

    def in_whole(self, queries: Sequence[Query]) -> tuple[Tensor, Tensor]:
        """The same for the whole image resized to one patch; queries in voxels of that patch."""
        size = tuple(self.patch_size.tolist())
        return self._decode(WHOLE, lambda: self.image.resized(size), queries)

    def _decode(
        self, key: Any, cut: Callable[[], np.ndarray], queries: Sequence[Query]
    ) -> tuple[Tensor, Tensor]:
        """Answers in the patch of a key, which is cut only if an encoding is missing."""
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
        return within_limits(logits_sum / count, queries), iou_sum / count

    def _encodings_of(self, key: Any) -> dict[tuple, Any]:
        """The encodings of a patch, to be added to; a new patch may displace the oldest."""
        if key not in self._encodings:
            while len(self._encodings) >= self.most_encodings:
                self._encodings.pop(next(iter(self._encodings)))
            self._encodings[key] = {}
        return self._encodings[key]

    def _encode(self, network: PromptableNetwork, patch: np.ndarray, flip: tuple[int, ...]) -> Any:
        batch = torch.from_numpy(np.ascontiguousarray(patch))[None].to(self.device)
        batch = batch.flip([axis + 2 for axis in flip]).float()
        return network.encode(batch.contiguous(memory_format=torch.channels_last_3d))


@dataclass(frozen=True, kw_only=True)
class PreparedImage:
    """An image that is ready for prompts.

    Attributes:
        raw: (c, z, y, x) intensities, in the plans' orientation.
        spacing: mm, zyx, of the raw image.
        decoder: answers queries about the preprocessed image.
        turn: that brought the image here from its file, on whose grid prompts and results are.
        unlike: in what it is not like the images of the training, in words.
    """

    raw: np.ndarray
    spacing: tuple[float, float, float]
    decoder: ImageDecoder
    turn: Turn = Turn()
    unlike: tuple[str, ...] = ()

    @property
    def file_shape(self) -> tuple[int, int, int]:
        """Of the image as its file has it, zyx."""
        return self.turn.back.of_axes(self.raw_shape)

    @property
    def raw_shape(self) -> tuple[int, int, int]:
        """Of the raw image, zyx."""
        return self.raw.shape[1:]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the preprocessed image, zyx."""
        return self.decoder.shape


def with_channels(image: np.ndarray, channel_names: Sequence[str]) -> np.ndarray:
    """A (z, y, x) or (c, z, y, x) image as (c, z, y, x).

    Raises:
        ValueError: for a wrong number of channels or axes, or an image without voxels.
    """
    image = np.asarray(image)
    image = image[None] if image.ndim == 3 else image
    if image.ndim != 4 or len(image) != len(channel_names) or 0 in image.shape:
        raise ValueError(
            f"expected an image of {len(channel_names)} channel(s) "
            f"({', '.join(channel_names)}), shape (c, z, y, x), found {image.shape}; "
            f"give the channels that the model was trained with"
        )
    return image


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The network's answer to one query, as far as its patches have been decoded.

    Attributes:
        index: of the query in the list of queries, starting at 0.
        blend: its logits; final slices that have not been released are new.
        predicted_iou: mean of the patches so far, weighted by how much of the mask each shows.
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

    Of each query's logits, about one patch's thickness is held. Where even that is too much for
    all queries together, they are answered in groups of neighbours, and patches that several
    groups use are visited again for each group.

    Args:
        decoder: of the image.
        queries: in voxels of the preprocessed image.
        starts: for each query the (n, 3) starts of its patches, zyx.
        weights: (z, y, x) of a patch.
        n_perturbations: number of perturbed prompts that each answer is compared with.
        most_open_voxels: number held for the queries of a group; a single query may hold more.

    Yields:
        Each query's answer, every time that slices of it have become final; the last time with
        all patches. Slices are released when the next answer is requested.
    """
    order = sorted(range(len(queries)), key=lambda index: starts[index].tolist())
    corners = [spanned(starts[index], decoder.patch_size, decoder.shape) for index in order]
    sizes = [open_voxels(*of_query, decoder.patch_size) for of_query in corners]
    for places in groups_of_at_most(sizes, most_open_voxels):
        group = [order[place] for place in places]
        yield from _answers_of_group(decoder, queries, starts, weights, n_perturbations, group)


def _with_progress(patches: list[Patch]) -> Iterable[Patch]:
    """Patches with a bar that is shown where they are many and take long."""
    if len(patches) < MANY_PATCHES:
        return patches
    options = {"desc": "patches", "unit": "patch", "leave": False, "delay": PATIENCE}
    return progress_bar(iterable=patches, **options)


def _answers_of_group(
    decoder: ImageDecoder,
    queries: Sequence[Query],
    starts: Sequence[np.ndarray],
    weights: Tensor,
    n_perturbations: int,
    group: Sequence[int],
) -> Iterator[Answer]:
    """`blended_answers` for the queries with these indices."""
    queries_of_start: dict[tuple, list[int]] = {}
    for index in group:
        for start in starts[index].tolist():
            queries_of_start.setdefault(tuple(start), []).append(index)
    perturbed = {
        index: perturbed_prompts(queries[index], decoder.shape, n_perturbations) for index in group
    }
    blends: dict[int, Blend] = {}
    consistencies = {index: PromptConsistency(len(perturbed[index])) for index in group}
    qualities = {index: MeanQuality() for index in group}
    at_once = max(1, ASKED_VOXELS // (int(np.prod(decoder.patch_size)) * (1 + n_perturbations)))
    for start, using in _with_progress(sorted(queries_of_start.items())):
        for first in range(0, len(using), at_once):
            here = using[first : first + at_once]
            answers = answers_with_perturbed(
                decoder, start, [queries[i] for i in here], [perturbed[i] for i in here]
            )
            for index, (answer, iou, others) in zip(here, answers, strict=True):
                if index not in blends:
                    blends[index] = Blend(starts[index], decoder.patch_size, decoder.shape, weights)
                blend, inside = blends[index], blends[index].inside(np.array(start))
                blend.add(answer, np.array(start))
                others = [None if other is None else other[inside] for other in others]
                consistencies[index].add(answer[inside], others)
                qualities[index].add(iou, int((answer[inside] > 0).sum()))
                if blend.is_due:
                    yield Answer(
                        index=index,
                        blend=blend,
                        predicted_iou=qualities[index].value,
                        prompt_consistency=consistencies[index].value(),
                    )
                    blend.release()
                if blend.is_complete:
                    del blends[index]


class MeanQuality:
    """The predicted IoU of a mask from those of its parts, weighted by their voxels.

    Patches without any of the mask count as little as one voxel: they say only that it is empty.
    """

    def __init__(self) -> None:
        self._sum = self._weight = 0.0

    def add(self, predicted_iou: float, voxels: int) -> None:
        weight = max(voxels, 1)
        self._sum += weight * predicted_iou
        self._weight += weight

    @property
    def value(self) -> float:
        return self._sum / self._weight


def answers_with_perturbed(
    decoder: ImageDecoder,
    start: Sequence[int],
    queries: Sequence[Query],
    perturbed: Sequence[Sequence[Query]],
) -> Iterator[tuple[Tensor, float, list[Tensor | None]]]:
    """Decode queries and their perturbed copies in one patch, all in one call.

    Args:
        decoder: of the image.
        start: of the patch, voxels, zyx.
        queries: in voxels of the preprocessed image.
        perturbed: copies of each query.

    Yields:
        For each query its (z, y, x) logits, predicted IoU, and the logits of its perturbed
        copies; None for a copy whose box does not meet the patch.
    """
    here = np.array([start])
    meets = [
        [bool(len(patches_that_meet(query, here, decoder.patch_size))) for query in of_query]
        for of_query in perturbed
    ]
    decoded = [
        query
        for pair in zip(perturbed, meets, strict=True)
        for query, is_met in zip(*pair, strict=True)
        if is_met
    ]
    logits, ious = decoder.in_patch(start, [*queries, *decoded])
    answers, of_perturbed = logits[: len(queries)], iter(logits[len(queries) :])
    for answer, iou, are_met in zip(answers, ious[: len(queries)].tolist(), meets, strict=True):
        yield answer, iou, [next(of_perturbed) if is_met else None for is_met in are_met]

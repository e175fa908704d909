"""One object in one image, segmented prompt by prompt: what a viewer or a server calls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from promptseg.boxes import box_slices, mask_box
from promptseg.inference.decoder import PreparedImage, blended_answers
from promptseg.inference.label_map import connected_change, largest_component, raw_slabs
from promptseg.inference.queries import (
    GIVEN,
    FlatBox,
    ImageQuery,
    as_queries,
    flat_axis,
    is_whole_object,
    patch_around,
    patches_of_queries,
    slice_of,
)
from promptseg.inference.sliding_window import Blend
from promptseg.networks.names import SURE
from promptseg.networks.prompt_encoder import NO_LABEL
from promptseg.prompts.types import Prompts, make_prompts

LITTLE = 0.5  # change of a logit that does not matter where its sign stays


@dataclass(frozen=True, kw_only=True, eq=False)
class _Before:
    """What a step replaced, in a region of the preprocessed and of the raw image."""

    prompts: Prompts
    by_name: bool
    predicted_iou: float | None
    logits: tuple[np.ndarray, Tensor]
    mask: tuple[np.ndarray, np.ndarray]


class Session:
    """The prompts for one object, and its mask, which every prompt changes where it is.

    Made by `Predictor.new_object`. Coordinates are voxels of the raw image, zyx. A prompt costs
    one patch, encoded before if possible; what earlier prompts gave is the mask to correct.

    Every method that changes the mask returns it, (z, y, x) bool, and the (2, 3) half-open box of
    the voxels that changed, None if none did. The mask is the session's own array: copy it to keep
    it.

    Attributes:
        keeps_distance: whether a click or a scribble changes only what is connected to it.
        mask: (z, y, x) bool.
        prompts: all that were given since the mask was last replaced, and that mask.
        predicted_iou: the network's estimate for the last answer; None for a mask that is given,
            and before there is an answer.
    """

    keeps_distance = True

    def __init__(
        self,
        image: PreparedImage,
        label: int,
        patch_size: Sequence[int],
        weights: Tensor,
        step_size: float,
        is_single: bool,
    ) -> None:
        self._image, self._label, self._is_single = image, label, is_single
        self._patch_size = tuple(patch_size)
        self._weights = weights
        self._step_size = step_size
        self._history: list[_Before] = []
        self.reset()

    def reset(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Forget all prompts: the mask is again what the label's name gives, or empty."""
        before = getattr(self, "_mask", None)
        self._history.clear()
        self._prompts = make_prompts(shape=self._image.raw_shape)
        self.predicted_iou: float | None = None
        self._by_name = True  # the mask is what the name gave, not what a prompt changed
        self._logits = torch.full(self._image.shape, -SURE, dtype=torch.float16)
        self._mask = np.zeros(self._image.raw_shape, bool)
        self.mask = self._image.turn.back.array(self._mask)  # the same memory
        if self._label >= 0:
            name = ImageQuery(label=self._label)
            self._answer(name, name)
        return self._told(None if before is None else mask_box(self._mask != before))

    def add_box(self, box: Sequence) -> tuple[np.ndarray, np.ndarray | None]:
        """Add a box around the object, or around what a slice shows of it.

        Args:
            box: (2, 3) half-open; one voxel thick along an axis it is drawn on that slice. Any
                other limits the mask: further out than a twentieth of its side, in whole voxels,
                nothing is left but at clicks. Another replaces it, and the answer is found anew.

        Raises:
            ValueError: for a box that is empty or lies outside the image.
        """
        new = self._checked(boxes=[box])
        kept = self._prompts.boxes
        if self._solid(new):
            kept = [box for box in kept if flat_axis(box, self._image.raw_shape) is not None]
        return self._add(new, boxes=np.array([*kept, *new.boxes]))

    def add_point(
        self, point: Sequence[float], *, foreground: bool = True
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Click on a voxel that belongs to the object, or does not.

        Raises:
            ValueError: for a point outside the image.
        """
        new = self._checked(points=[point], point_labels=[int(foreground)])
        old = self._prompts
        return self._add(
            new,
            points=np.concatenate([old.points, new.points]),
            point_labels=np.concatenate([old.point_labels, new.point_labels]),
        )

    def add_scribble(
        self, vertices: Sequence, *, foreground: bool = True
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Draw a line of (k, 3) positions over voxels that belong to the object, or do not.

        Raises:
            ValueError: for a line that leaves the image.
        """
        new = self._checked(scribbles=[vertices], scribble_labels=[int(foreground)])
        old = self._prompts
        return self._add(
            new,
            scribbles=(*old.scribbles, *new.scribbles),
            scribble_labels=np.concatenate([old.scribble_labels, new.scribble_labels]),
        )

    def add_lasso(self, vertices: Sequence) -> tuple[np.ndarray, np.ndarray | None]:
        """Draw a closed curve of (k, 3) positions around what one slice shows of the object.

        Raises:
            ValueError: for a curve that is not in one slice, or leaves the image.
        """
        new = self._checked(lassos=[vertices])
        return self._add(new, lassos=(*self._prompts.lassos, *new.lassos))

    def set_mask(self, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Replace the mask by another, (z, y, x) bool, which further prompts correct.

        Earlier prompts, which led to another mask, are forgotten.

        Raises:
            ValueError: for another shape than the image's, or values other than 0 and 1.
        """
        new = self._checked(mask=() if mask is None else mask)
        [query] = as_queries(new, self._label, self._image.raw_shape, self._image.shape)
        empty = np.full(self._image.shape, -GIVEN, np.float32)
        self._remember(_whole(self._image.shape), _whole(self._image.raw_shape))
        before = self._mask.copy()
        self._prompts, self.predicted_iou, self._by_name = new, None, False
        self._logits = torch.from_numpy(empty if new.mask is None else query.previous).half()
        self._mask[...] = False if new.mask is None else new.mask
        return self._told(mask_box(self._mask != before))

    def undo(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Take back the last prompt; without one nothing changes."""
        if not self._history:
            return self._told(None)
        last = self._history.pop()
        self._prompts, self._by_name = last.prompts, last.by_name
        self.predicted_iou = last.predicted_iou
        box, logits = last.logits
        self._logits[box_slices(box)] = logits
        box, mask = last.mask
        changed = _shifted(mask_box(self._mask[box_slices(box)] != mask), box[0])
        self._mask[box_slices(box)] = mask
        return self._told(changed)

    @property
    def prompts(self) -> Prompts:
        return self._prompts.turned(self._image.turn.back, self._image.raw_shape)

    def _checked(self, **prompts: object) -> Prompts:
        """Prompts on the image's file, checked and turned with the image."""
        shape = self._image.file_shape
        checked = make_prompts(**prompts, shape=shape, where="this prompt")
        return checked.turned(self._image.turn, shape)

    def _told(self, changed: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
        """The mask, and the box of what changed, on the image's file."""
        if changed is not None:
            changed = self._image.turn.back.boxes(changed, self._image.raw_shape)
        return self.mask, changed

    def _add(self, new: Prompts, **together: object) -> tuple[np.ndarray, np.ndarray | None]:
        """Answer with one more prompt.

        Args:
            new: that prompt alone.
            together: the fields of `prompts` that it changes, with it.
        """
        prompts = replace(self._prompts, **together)
        grids = self._image.raw_shape, self._image.shape
        *_, query = as_queries(replace(prompts, mask=None), self._label, *grids)
        starts_anew = self._by_name and (query.box is not None or self._label < 0)
        limits = self._solid(new)
        if limits and self._solid(self._prompts) and prompts.mask is None:
            starts_anew = True
        if not starts_anew:
            query = replace(query, previous=self._logits.numpy())
        around = query if limits else self._with_slices(as_queries(new, NO_LABEL, *grids)[0])
        return self._answer(
            query, around, prompts=prompts, starts_anew=starts_anew, limits=starts_anew or limits
        )

    def _with_slices(self, query: ImageQuery) -> ImageQuery:
        """What is drawn on slices says where the object is not, too: as far as the mask reaches."""
        reached = []
        for item in query.drawn:
            box, axis = slice_of(item)
            number = int(np.clip(np.floor(box[:, axis].mean()), 0, self._image.shape[axis] - 1))
            mask = mask_box(self._logits.narrow(axis, number, 1).numpy() > 0)
            if mask is not None:
                mask[:, axis] += number
                reached.append(FlatBox(box=mask, axis=axis))
        return replace(query, drawn=(*query.drawn, *reached))

    def _solid(self, prompts: Prompts) -> bool:
        """Whether there is a 3D box among prompts."""
        return any(flat_axis(box, self._image.raw_shape) is None for box in prompts.boxes)

    def _answer(
        self,
        query: ImageQuery,
        around: ImageQuery,
        *,
        prompts: Prompts | None = None,
        starts_anew: bool = True,
        limits: bool = True,
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Decode a query in the patches about another, and enter the answer.

        Args:
            query: with all prompts.
            around: the new prompt, where the answer is needed; `query` itself for all of it.
            prompts: the session's prompts from now on; None for the answer to the name, which is
                not a step to undo.
            starts_anew: whether the answer does not start from the former one.
            limits: whether nothing of the former answer remains elsewhere.
        """
        shape, raw_shape = self._image.shape, self._image.raw_shape
        starts = self._starts(around, is_new=around is not query)
        box, logits, quality = whole_answer(self._image, query, starts, self._weights)
        entered = _whole(shape) if limits else box
        lower, upper = entered * np.divide(raw_shape, shape)
        upper = np.minimum(np.ceil(upper), raw_shape)
        raw_box = np.stack([np.floor(lower), upper]).astype(int)
        if prompts is not None:
            self._remember(entered, raw_box)
            self._prompts, self._by_name = prompts, False
        self.predicted_iou = quality
        if self._is_single and (prompts is None or is_whole_object(prompts, raw_shape)):
            logits = largest_component(logits)
        before = self._mask[box_slices(raw_box)].copy()
        former = self._logits[box_slices(box)].clone()
        if self.keeps_distance and not starts_anew and around.box is None and not around.drawn:
            logits = connected_change(former, logits, around.points - box[0], around.point_labels)
        if limits:
            self._logits.fill_(-SURE)
            self._mask[box_slices(raw_box)] = False
        self._logits[box_slices(box)] = logits.clamp(-SURE, SURE).half()
        new = self._logits[box_slices(box)]
        for (there, now), (_, was) in zip(
            self._on_raw_grid(new, box), self._on_raw_grid(former, box), strict=True
        ):
            mask = now > 0
            if not starts_anew:  # what is finer than the preprocessed grid stays
                stays = (mask == (was > 0)) & (np.abs(now - was) < LITTLE)
                mask = np.where(stays, before[box_slices(there - raw_box[0])], mask)
            self._mask[box_slices(there)] = mask
        return self._told(_shifted(mask_box(self._mask[box_slices(raw_box)] != before), raw_box[0]))

    def _starts(self, around: ImageQuery, *, is_new: bool) -> np.ndarray:
        """(n, 3) patch starts about a query; one that is encoded already if that will do."""
        decoder, shape = self._image.decoder, self._image.shape
        if is_new:
            start = patch_around(around, decoder.encoded_starts, shape, self._patch_size)
            if start is not None:
                return start[None]
        return patches_of_queries([around], shape, self._patch_size, self._step_size)[0]

    def _on_raw_grid(
        self, logits: Tensor, box: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Logits in a (2, 3) box resampled to the raw grid: slabs, each after its (2, 3) box."""
        size, shape = box[1] - box[0], self._image.shape
        blend = Blend(box[:1], size, shape, torch.ones(tuple(size.tolist())))
        blend.add(logits, box[0])
        for slab, lower in raw_slabs(blend, shape, self._image.raw_shape):
            yield np.stack([lower, lower + slab.shape]), slab.numpy()

    def _remember(self, box: np.ndarray, raw_box: np.ndarray) -> None:
        self._history.append(
            _Before(
                prompts=self._prompts,
                by_name=self._by_name,
                predicted_iou=self.predicted_iou,
                logits=(box, self._logits[box_slices(box)].clone()),
                mask=(raw_box, self._mask[box_slices(raw_box)].copy()),
            )
        )


@torch.inference_mode()
def whole_answer(
    image: PreparedImage, query: ImageQuery, starts: np.ndarray, weights: Tensor
) -> tuple[np.ndarray, Tensor, float | None]:
    """The answer to one query in the region that patches span, all of it in memory.

    Args:
        image: that the query is about.
        query: in voxels of the preprocessed image.
        starts: (n, 3) of the patches, zyx.
        weights: (z, y, x) of a patch.

    Returns:
        The (2, 3) region, its (z, y, x) logits and the predicted IoU.
    """
    logits, quality, blend = None, None, None
    for answer in blended_answers(image.decoder, [query], [starts], weights):
        blend, quality = answer.blend, answer.predicted_iou
        if logits is None:
            logits = torch.empty(tuple((blend.upper - blend.lower).tolist()))
        logits[blend.first : blend.final] = blend.result(blend.first, blend.final)
    return np.stack([blend.lower, blend.upper]), logits, quality


def _whole(shape: Sequence[int]) -> np.ndarray:
    return np.array([(0, 0, 0), shape])


def _shifted(box: np.ndarray | None, by: np.ndarray) -> np.ndarray | None:
    return None if box is None else box + by

"""Base class of the fitted strategies, their small views of volumes, and training samples."""

from __future__ import annotations

import base64
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from promptseg.boxes import clip_box
from promptseg.prompts.auto_prompter import AutoPrompter, Proposal

UNKNOWN_SCORE = 0.5  # of a strategy alone; `propose_boxes` puts the expected box IoU in its place
VIEW_VOXELS = 100_000  # about 46 voxels per axis: fitting 200 cases takes seconds
SLAB_VOXELS = 2**20  # of a volume that are averaged at a time


@dataclass(frozen=True, kw_only=True)
class View:
    """A volume small enough to fit on: blocks of voxels averaged to about isotropic ones.

    Attributes:
        image: (z, y, x) uint8 intensities, block means of the normalized volume.
        spacing: mm of one view voxel, zyx.
        step: voxels of the volume in one view voxel, zyx.
        shape: of the volume itself, voxels, zyx.
    """

    image: np.ndarray
    spacing: tuple[float, float, float]
    step: tuple[int, int, int]
    shape: tuple[int, int, int]

    @property
    def extent(self) -> np.ndarray:
        """(3,) size of the volume in view voxels; not whole where a block is cut off."""
        return np.asarray(self.shape) / self.step

    @property
    def extent_mm(self) -> np.ndarray:
        """(3,) size of the volume in mm."""
        return self.extent * self.spacing

    def box_of_view(self, box: np.ndarray) -> np.ndarray:
        """(2, 3) half-open box of the view voxels that a voxel box of the volume meets."""
        return np.stack([box[0] // self.step, -(-box[1] // self.step)])

    def voxel_box(self, box_mm: np.ndarray) -> np.ndarray | None:
        """The half-open voxel box in the volume nearest to a box in mm, or None if it is empty.

        Args:
            box_mm: (2, 3) mm from the volume's first corner, zyx.
        """
        voxel_mm = np.asarray(self.spacing) / self.step
        box = clip_box(np.rint(np.asarray(box_mm) / voxel_mm), self.shape).astype(int)
        return box if (box[1] > box[0]).all() else None


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A training case for one label, as the fitted strategies see it.

    Attributes:
        view: the case.
        view_box: (2, 3) view voxels, those that the label's bounding box meets.
        mask: (z, y, x) uint8 fraction of each of these that the label fills, 255 for all of it.
        box_mm: (2, 3) mm, the label's bounding box in the volume.
        described: what a strategy's `describe` said of the view, by strategy; at least its own.
    """

    view: View
    view_box: np.ndarray
    mask: np.ndarray
    box_mm: np.ndarray
    described: dict[str, np.ndarray]


def view_of(
    image: np.ndarray,
    spacing: Sequence[float],
    voxels: int = VIEW_VOXELS,
    normalized: Callable[[np.ndarray], np.ndarray] | None = None,
) -> View:
    """Average blocks of a volume until about `voxels` nearly isotropic ones are left.

    Args:
        image: (z, y, x) intensities in [0, 255], or raw ones with `normalized`.
        spacing: mm, zyx.
        voxels: about how many remain.
        normalized: brings slabs of a raw volume to [0, 255], one after the other.
    """
    step = block_size(image.shape, spacing, voxels)
    slices = step[0] * max(1, SLAB_VOXELS // int(np.prod(image.shape[1:]) * step[0]))
    slabs = [image[first : first + slices] for first in range(0, len(image), slices)]
    small = np.concatenate([block_means(normalized(s) if normalized else s, step) for s in slabs])
    return View(
        image=np.rint(small).clip(0, 255).astype(np.uint8),
        spacing=tuple(float(s * k) for s, k in zip(spacing, step, strict=True)),
        step=step,
        shape=tuple(int(n) for n in image.shape),
    )


def block_size(
    shape: Sequence[int], spacing: Sequence[float], voxels: int = VIEW_VOXELS
) -> tuple[int, int, int]:
    """Whole numbers of voxels to average along each axis, zyx."""
    spacing_mm, shape = np.asarray(spacing, float), np.asarray(shape)
    target_mm = (np.prod(shape * spacing_mm) / voxels) ** (1 / 3)
    step = np.rint(target_mm / spacing_mm).clip(1, shape)
    return tuple(int(k) for k in step)


def block_means(array: np.ndarray, step: Sequence[int]) -> np.ndarray:
    """Means over blocks of `step` voxels, float32; blocks cut by the far border mean what is left.

    Args:
        array: (z, y, x) numbers or bool.
        step: voxels, zyx.
    """
    means = array.astype(np.float32, copy=False)
    for axis, k in enumerate(step):
        if k > 1:
            starts = np.arange(0, means.shape[axis], k)
            counts = np.diff(np.append(starts, means.shape[axis]))
            shape = [1, 1, 1]
            shape[axis] = -1
            means = np.add.reduceat(means, starts, axis=axis)
            means /= counts.reshape(shape).astype(np.float32)  # of the new array
    return means


def pack(numbers: np.ndarray) -> str:
    """Many fitted numbers as one line of JSON: base64 of little-endian float32."""
    return base64.b64encode(np.ascontiguousarray(numbers, "<f4").tobytes()).decode("ascii")


def unpack(text: str) -> np.ndarray:
    """The (n,) float32 numbers of `pack`."""
    return np.frombuffer(base64.b64decode(text), "<f4").astype(np.float32)


class FittedPrompter(AutoPrompter):
    """A strategy whose parameters are fitted per label on the training cases.

    A subclass gives `fit` and `locate`; both work on views. `fit` is pure: samples in, plain JSON
    parameters out, and `cls(**parameters)` is the fitted strategy.

    Attributes:
        members: strategies whose boxes this one only combines (`consensus`); then the planner
            combines what they proposed and need not fit them again.
    """

    members: tuple[str, ...] = ()

    @staticmethod
    def describe(view: View) -> np.ndarray | None:
        """What the fit needs of a view whatever the label; computed once per case, in a worker."""
        return None

    @classmethod
    @abstractmethod
    def fit(cls, samples: Sequence[Sample]) -> dict[str, Any]:
        """Parameters for one label from the training cases that have it (at least one)."""

    @abstractmethod
    def locate(self, view: View) -> np.ndarray | None:
        """The label's box in one view: (2, 3) mm from the volume's first corner, or None."""

    def locate_described(self, view: View, described: np.ndarray) -> np.ndarray | None:
        """`locate`, given what `describe` says of the view, for strategies that it saves work."""
        return self.locate(view)

    def propose(
        self,
        image: np.ndarray | View,
        spacing: tuple[float, float, float] | None = None,
        described: np.ndarray | None = None,
    ) -> Proposal:
        """Propose a box.

        Args:
            image: (z, y, x) intensities in [0, 255]; a ready `View` saves making it for each label.
            spacing: mm, zyx; not needed with a view.
            described: what `describe` says of the view, where that is known.
        """
        view = image if isinstance(image, View) else view_of(image, spacing)
        box_mm = self.locate(view) if described is None else self.locate_described(view, described)
        box = None if box_mm is None else view.voxel_box(box_mm)
        if box is None:
            return Proposal(box=None, score=0.0, reason="nothing_found")
        return Proposal(box=box, score=UNKNOWN_SCORE, reason="ok")

"""The automatic prompt `locator`: networks that find labels in a small view of a whole volume."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from skimage.morphology import reconstruction
from skimage.segmentation import watershed
from torch import Tensor, nn

from promptseg.boxes import box_iou, mask_box, widen_box
from promptseg.components import components
from promptseg.files import replacing
from promptseg.io.npz import npz_keys, read_npz
from promptseg.networks.blocks import ConvBlock, feature_strides, kernel_size
from promptseg.networks.encoders.residual import ResidualBlock
from promptseg.prompts.auto_prompter import Proposal
from promptseg.prompts.strategies.fitted import UNKNOWN_SCORE, View

CHANNELS = (16, 32, 64, 96)  # of the maps, finest first
INSIDE = 0.5  # share of a view voxel from which it belongs to a label
FAINTEST = 0.1  # largest share below which a label is not there
VALLEY = 0.3  # by which the share falls between two objects of a label
OVERLAP = 0.5  # box IoU from which only the surer of two boxes is kept
MOST_OBJECTS = 100  # of a label, the surest
_MOST_VOXELS = 8  # times those of a usual view, of one that is brought to the networks' spacing
_MOST_BYTES = 2**28


class LocatorNetwork(nn.Module):
    """A small U-Net that tells which share of every view voxel each label fills.

    On the finest map it only looks and answers; what costs is on the coarser ones. It knows no
    coordinates, and images of any size do.

    Args:
        labels: number of labels.
        spacing: mm of a view voxel, zyx.
    """

    def __init__(self, labels: int, spacing: Sequence[float]) -> None:
        super().__init__()
        strides = feature_strides((8, 8, 8), spacing=spacing)[: len(CHANNELS)]
        kernels = [kernel_size(stride, spacing) for stride in strides]
        self.coarsest = strides[-1]
        self.stem = ConvBlock(1, CHANNELS[0], kernel=kernels[0])
        self.down, self.across, self.up = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for level in range(1, len(strides)):
            finer, width = CHANNELS[level - 1], CHANNELS[level]
            step = [s // p for s, p in zip(strides[level], strides[level - 1], strict=True)]
            self.down.append(ResidualBlock(finer, width, step, kernels[level], instance=True))
            self.across.append(nn.Conv3d(width, finer, 1))
            self.up.append(ConvBlock(finer, finer, kernel=kernels[level - 1]))
        self.head = nn.Conv3d(CHANNELS[0], labels, 1)

    def forward(self, image: Tensor) -> Tensor:
        """(b, 1, z, y, x) in [0, 255] to logits (b, labels, z, y, x)."""
        shape = image.shape[2:]
        z, y, x = (-size % stride for size, stride in zip(shape, self.coarsest, strict=True))
        x = max(x, 2 * self.coarsest[2] - shape[2])  # instances are normalized over two voxels
        padded = F.pad(image, (0, x, 0, y, 0, z))
        maps = [self.stem(padded / 128 - 1)]
        for down in self.down:
            maps.append(down(maps[-1]))
        found = maps.pop()
        for across, up in zip(reversed(self.across), reversed(self.up), strict=True):
            finer = maps.pop()
            wide = F.interpolate(across(found), finer.shape[2:], mode="trilinear")
            found = up(finer + wide)
        return self.head(found)[:, :, : shape[0], : shape[1], : shape[2]]


@dataclass(frozen=True, kw_only=True)
class Locator:
    """Finds the box of every label in a view.

    Attributes:
        labels: names, in the order of the networks' answers.
        spacing: mm of a view voxel, zyx, to which views are resampled.
        networks: whose answers are averaged; each was trained without other cases.
        several: labels that are several objects in an image, each of which gets a box.
    """

    labels: tuple[str, ...]
    spacing: tuple[float, float, float]
    networks: tuple[LocatorNetwork, ...]
    several: frozenset[str] = frozenset()

    def propose(self, view: View) -> dict[str, Proposal]:
        """Boxes of each label in voxels of the volume; without any where it is not found."""
        image = resampled(torch.from_numpy(view.image)[None].float(), view.spacing, self.spacing)
        voxel_mm = np.array(view.image.shape) * view.spacing / image.shape[1:]
        proposals = {}
        for label, share in zip(self.labels, shares(self.networks, image).numpy(), strict=True):
            if label in self.several:
                proposals[label] = _of_objects(objects_of_shares(share), view, voxel_mm)
                continue
            box = box_of_shares(share)
            box = None if box is None else view.voxel_box(box * voxel_mm)
            proposals[label] = NOTHING
            if box is not None:
                proposals[label] = Proposal(box=box, score=UNKNOWN_SCORE, reason="ok")
        return proposals

    @property
    def digest(self) -> str:
        """A number of labels, spacing and weights, by which plans know their locator."""
        known = (self.labels, self.spacing, *([sorted(self.several)] if self.several else []))
        found = hashlib.sha256(repr(known).encode())
        for name, value in self._weights().items():
            found.update(name.encode() + value.tobytes())
        return found.hexdigest()[:16]

    def _weights(self) -> dict[str, np.ndarray]:
        return {
            f"{number}.{name}": value.contiguous().numpy()
            for number, network in enumerate(self.networks)
            for name, value in network.state_dict().items()
        }

    def save(self, path: Path) -> None:
        """Write an .npz file of numbers and text."""
        weights = self._weights()
        with replacing(path) as temporary, open(temporary, "wb") as file:
            several = [label in self.several for label in self.labels]
            kept = {"labels": np.array(self.labels), "several": np.array(several)}
            np.savez(file, **kept, spacing=np.array(self.spacing), **weights)

    @classmethod
    def load(cls, path: Path) -> Locator:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: naming the file, if it holds anything else.
        """
        content = read_npz(path, npz_keys(path), _MOST_BYTES)
        try:
            labels = tuple(str(label) for label in content.pop("labels"))
            spacing = tuple(float(mm) for mm in content.pop("spacing"))
            is_several = content.pop("several", np.zeros(len(labels), bool)).tolist()
            several = frozenset(n for n, s in zip(labels, is_several, strict=True) if s is True)
            if len(spacing) != 3 or not all(0 < mm < np.inf for mm in spacing):
                raise ValueError(f"a spacing of {spacing} mm")
            weights: dict[int, dict[str, Tensor]] = {}
            for key, value in content.items():
                number, _, name = key.partition(".")
                weights.setdefault(int(number), {})[name] = torch.from_numpy(value)
            networks = []
            for number in sorted(weights):
                network = LocatorNetwork(len(labels), spacing)
                network.load_state_dict(weights[number])
                if not all(value.isfinite().all() for value in weights[number].values()):
                    raise ValueError("weights that are not finite")
                networks.append(network.eval())
            if not networks:
                raise ValueError("no weights")
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            why = " ".join(str(error).splitlines()[:2])
            raise ValueError(
                f"{path} is not a locator as promptseg_plan writes it: {why}; copy it again from "
                f"beside the plans, or plan anew"
            ) from error
        return cls(labels=labels, spacing=spacing, networks=tuple(networks), several=several)


NOTHING = Proposal(box=None, score=0.0, reason="nothing_found")


def _of_objects(
    found: Sequence[tuple[np.ndarray, float]], view: View, voxel_mm: np.ndarray
) -> Proposal:
    """The boxes of objects in voxels of the volume, without those that others cover."""
    kept: list[tuple[np.ndarray, float]] = []
    for place, score in found:
        box = view.voxel_box(place * voxel_mm)
        if box is not None and all(box_iou(box, other) < OVERLAP for other, _ in kept):
            kept.append((box, score))
    if not kept:
        return NOTHING
    boxes, scores = zip(*kept[:MOST_OBJECTS], strict=True)
    return Proposal(box=boxes[0], score=scores[0], reason="ok", boxes=boxes, scores=scores)


@torch.inference_mode()
def shares(networks: Sequence[LocatorNetwork], image: Tensor) -> Tensor:
    """The mean of what networks find in a (1, z, y, x) image: (labels, z, y, x) in [0, 1]."""
    return torch.stack([network(image[None])[0].sigmoid() for network in networks]).mean(0)


def resampled(maps: Tensor, spacing: Sequence[float], target: Sequence[float]) -> Tensor:
    """(c, z, y, x) maps brought from one spacing in mm to about another, linearly."""
    shape = np.array(maps.shape[1:])
    size = np.rint(shape * spacing / np.array(target)).astype(int).clip(1)
    if size.prod() > _MOST_VOXELS * shape.prod():  # an image of another kind than those seen
        size = shape
    if (size == shape).all():
        return maps
    return F.interpolate(maps[None], tuple(size.tolist()), mode="trilinear")[0]


def box_of_shares(share: np.ndarray) -> np.ndarray | None:
    """The box of what is found most of, to fractions of a voxel.

    A voxel that is half inside says that the face lies in its middle.

    Args:
        share: (z, y, x) in [0, 1] of each voxel that the label fills.

    Returns:
        (2, 3) box of the largest component, in voxels from the first corner; None where there is
        nothing.
    """
    most = share.max()
    if most < FAINTEST:
        return None
    numbered, counts = components(share > min(INSIDE, most / 2))
    inner = mask_box(numbered == counts.argmax())
    outer = widen_box(inner, 1).clip(0, share.shape)
    box = inner.astype(float)
    part = share[tuple(slice(a, b) for a, b in outer.T)] / most  # what is thin fills no voxel
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        profile = part.max(axis=others)
        first, last = inner[:, axis] - outer[0, axis] - (0, 1)
        before = profile[:first].sum()
        after = profile[last + 1 :].sum()
        box[0, axis] += 1 - profile[first] - min(before, INSIDE)
        box[1, axis] -= 1 - profile[last] - min(after, INSIDE)
    return box


def objects_of_shares(share: np.ndarray) -> list[tuple[np.ndarray, float]]:
    """The boxes of several objects, to fractions of a voxel, the surest first.

    Objects that touch in a view are told apart where the share falls by `VALLEY` between them.

    Args:
        share: (z, y, x) in [0, 1] of each voxel that the label fills.

    Returns:
        For each object its (2, 3) box in voxels from the first corner, and a score in [0, 1]: the
        mean share of what is inside.
    """
    share = share.astype(float)
    summits = share > reconstruction(share - VALLEY, share, footprint=np.ones((3, 3, 3)))
    seeds, counts = components(summits & (share > INSIDE))
    owners = watershed(-share, seeds.astype(np.int32), mask=share > FAINTEST)
    found = []
    for number in range(1, len(counts)):
        alone = np.where(owners == number, share, 0)
        box = box_of_shares(alone)
        if box is not None:
            found.append((box, float(alone[alone > INSIDE].mean())))
    return sorted(found, key=lambda pair: -pair[1])


def share_loss(logits: Tensor, found: Tensor, ignored: Tensor) -> Tensor:
    """Cross-entropy and Dice loss against shares in [0, 1]; the Dice is the mean over labels.

    Args:
        logits, found: (b, labels, z, y, x).
        ignored: (b, 1, z, y, x) in [0, 1], share of each voxel that does not count.
    """
    answers, axes = logits.sigmoid(), (0, 2, 3, 4)
    known = (1 - ignored).expand_as(logits)
    dice = (2 * (answers * found).sum(axes) + 1) / ((answers * known + found).sum(axes) + 1)
    hard = F.binary_cross_entropy_with_logits(logits, found, weight=known, reduction="sum")
    return hard / known.sum().clamp(min=1) + 1 - dice.mean()

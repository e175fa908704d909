"""The planning rules, one pure function each; each returns its choice and the reason in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from promptseg.preprocessing.normalize import CT_WINDOWS
from promptseg.words import some

Triple = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What one encoder size may cost.

    Attributes:
        elements: maximum number of elements of the finest feature map of a patch.
        tokens: maximum number of tokens in the image embedding.
        batch_size: number of patches in one training step.
    """

    elements: int
    tokens: int
    batch_size: int


BUDGETS = {
    # `base` is the number of voxels and tokens of SegVol's 32x256x256 patch with 4x16x16 tokens;
    # `tiny` trains on two CPU cores in minutes.
    "tiny": Budget(elements=320_000, tokens=400, batch_size=2),
    "small": Budget(elements=96 * 96 * 96, tokens=1024, batch_size=2),
    "base": Budget(elements=32 * 256 * 256, tokens=2048, batch_size=2),
}

CONTEXT = 1.5  # extents of the labels that a patch of a large image has along each axis
PADDING = 0.2  # of an axis, beyond which the stride is halved there to pad less
LEAST = 1 / 8  # of the budget, which a patch about small labels keeps
LARGEST = 0.95  # of a label's voxels, in its largest component, makes it one component
LEAST_CASES = 5  # with a label, to tell
ANISOTROPY = 3.0  # nnU-Net's threshold for calling a spacing anisotropic


def target_spacing(spacings: np.ndarray, shapes: np.ndarray) -> tuple[tuple[float, ...], str]:
    """The spacing that all images are resampled to.

    Args:
        spacings: (n, 3) spacing of each training image, mm, zyx.
        shapes: (n, 3) shape of each training image, voxels, zyx.

    Returns:
        (3,) spacing in mm, and the reason.

    Source:
        nnU-Net (Isensee et al. 2021, Supplementary Note 2): the median along each axis; where the
        coarsest axis is more than three times as coarse as the others and has more than three
        times fewer voxels, its 10th percentile, but never finer than the others.
    """
    target = np.median(spacings, axis=0)
    shape = np.median(shapes, axis=0)
    worst = int(np.argmax(target))
    others = [axis for axis in range(3) if axis != worst]
    coarse = target[worst] > ANISOTROPY * max(target[others])
    few = shape[worst] * ANISOTROPY < min(shape[others])
    if coarse and few:
        fine = float(np.percentile(spacings[:, worst], 10))
        target[worst] = max(fine, float(max(target[others])) + 1e-5)
        return tuple(float(s) for s in target), "median, 10th percentile along the coarsest axis"
    return tuple(float(s) for s in target), "median over the training images"


@dataclass(frozen=True, kw_only=True)
class PatchPlan:
    """The block a network sees at once, and how finely.

    Attributes:
        patch_size: voxels, zyx.
        finest_stride: voxels of one element of the finest feature map, zyx.
        stride: voxels of one token of the embedding, zyx.
        batch_size: patches in one training step.
        reason: in words.
    """

    patch_size: Triple
    finest_stride: Triple
    stride: Triple
    batch_size: int
    reason: str


def labelled_extent(
    boxes: Sequence[Sequence[np.ndarray]], spacings: np.ndarray, target: Sequence[float]
) -> tuple[int, ...]:
    """How far all labels of an image extend together, in the median over the images.

    Args:
        boxes: of each image the (2, 3) boxes of its labels, in voxels of its own, zyx.
        spacings: (n, 3) of the images, mm, zyx.
        target: (3,) spacing that they are resampled to.

    Returns:
        Voxels at the target spacing, zyx; zeros if no image has a label.
    """
    extents = [
        (np.max(np.asarray(of_image)[:, 1], 0) - np.min(np.asarray(of_image)[:, 0], 0)) * spacing
        for of_image, spacing in zip(boxes, spacings, strict=True)
        if len(of_image)
    ]
    if not extents:
        return (0, 0, 0)
    return tuple(int(n) for n in np.ceil(np.median(extents, axis=0) / target))


def plan_patch(
    median_shape: Sequence[int],
    spacing: Sequence[float],
    budget: Budget,
    extent: Sequence[int] = (0, 0, 0),
) -> PatchPlan:
    """The patch, the strides of the finest and the coarsest map, and the batch.

    The patch starts from the median image. Where that has more voxels than the budget has
    elements, the finest map halves the resolution along the physically finest axes: to see where an
    object lies in the body is worth more than the last half voxel of its border. What lies further
    from the labels than a part of their extent tells little about them: the patch shrinks to
    `CONTEXT` times their extent, though not below an eighth of the budget, and a batch has several.
    Then it shrinks along its physically longest axis until it is within the budget. The stride of
    the tokens starts from that of the finest map and doubles, always along the axes where a token
    is physically smallest, until the tokens are within their budget. Where a multiple of it would
    add more than `PADDING` to the patch, it is halved again, as far as the tokens allow. The patch
    is then rounded to a multiple of it. A batch has as many patches as the budget holds, at most
    `batch_size`.

    Args:
        median_shape: voxels, zyx, at `spacing`.
        spacing: mm, zyx.
        budget: what the encoder size may cost.
        extent: voxels, zyx, of all labels together, see `labelled_extent`; zeros if unknown.
    """
    spacing = np.asarray(spacing, float)
    patch_size = np.maximum(np.asarray(median_shape, int), 1)
    finest, is_about_labels = np.ones(3, int), False
    if patch_size.prod() > budget.elements:
        halved = (spacing < 2 * spacing.min()) & (patch_size >= 16)
        finest = np.where(halved, 2, 1)
        about = _about_labels(patch_size, finest, CONTEXT * np.asarray(extent), budget)
        is_about_labels = bool((about < patch_size).any())
        patch_size = about
    most = budget.elements * int(finest.prod())
    while patch_size.prod() > most:
        axis = int(np.argmax(np.where(patch_size > 1, patch_size * spacing, 0)))
        patch_size[axis] = int(patch_size[axis] * 0.95)
    stride = _finest_stride(patch_size, spacing, finest, budget.tokens)
    stride = _padding_less(patch_size, stride, finest, budget.tokens)
    rounded = _round_to_multiple(patch_size, stride, most)
    elements = int((rounded // finest).prod())
    batch_size = int(np.clip(budget.elements // elements, 1, budget.batch_size))
    tokens = int((rounded // stride).prod())
    covers = "covers the median image" if (rounded >= median_shape).all() else "smaller than it"
    if is_about_labels:
        covers += f" as the labels extend over {tuple(int(n) for n in extent)}"
    reason = (
        f"median image {tuple(int(n) for n in median_shape)}, at most {budget.elements} elements "
        f"of the finest map and {budget.tokens} tokens: {covers}, {elements} elements, {tokens} "
        f"tokens, {batch_size} in a batch"
    )
    return PatchPlan(
        patch_size=tuple(int(n) for n in rounded),
        finest_stride=tuple(int(n) for n in finest),
        stride=tuple(int(n) for n in stride),
        batch_size=batch_size,
        reason=reason,
    )


def _about_labels(
    patch_size: np.ndarray, finest: np.ndarray, about: np.ndarray, budget: Budget
) -> np.ndarray:
    """Shrink a patch along the axes where it is most above a size, as long as it stays large."""
    if not about.all():
        return patch_size
    patch_size, least = patch_size.copy(), budget.elements * LEAST
    while True:
        excess = patch_size / about
        axis = int(np.argmax(excess))
        smaller = max(int(patch_size[axis] * 0.95), int(about[axis]))
        elements = (patch_size / finest).prod() * smaller / patch_size[axis]
        if excess[axis] <= 1 or elements < least:
            return patch_size
        patch_size[axis] = smaller


def _finest_stride(
    patch_size: np.ndarray, spacing: np.ndarray, finest: np.ndarray, max_tokens: int
) -> np.ndarray:
    """Double the physically finest axis, or those that are equally fine, until the tokens fit.

    An axis stops at a stride that leaves it two tokens; when none is left, so does the rule.
    """
    stride = finest.copy()
    while np.ceil(patch_size / stride).prod() > max_tokens:
        can_double = np.ceil(patch_size / (2 * stride)) >= 2
        if not can_double.any():
            break
        token_mm = np.where(can_double, stride * spacing, np.inf)
        stride[token_mm < 1.01 * token_mm.min()] *= 2
    return stride


def _padding_less(
    patch_size: np.ndarray, stride: np.ndarray, finest: np.ndarray, max_tokens: int
) -> np.ndarray:
    """Halve the stride along the axes that its multiples pad most, as far as the tokens allow."""
    stride = stride.copy()
    while True:
        padded = np.ceil(patch_size / stride) * stride / patch_size
        tokens = np.ceil(patch_size / stride)
        finer = np.ceil(2 * patch_size / stride) * tokens.prod() / tokens
        can_halve = (padded > 1 + PADDING) & (stride > finest) & (finer <= max_tokens)
        if not can_halve.any():
            return stride
        stride[np.argmax(np.where(can_halve, padded, 0))] //= 2


def _round_to_multiple(patch_size: np.ndarray, stride: np.ndarray, max_voxels: int) -> np.ndarray:
    """Round up to a multiple of the stride, as long as that stays within 1.5 times the budget."""
    up = np.ceil(patch_size / stride).astype(int) * stride
    if up.prod() <= 1.5 * max_voxels:
        return up
    return np.maximum(patch_size // stride, 1) * stride


def choose_ct_window(
    histograms: Mapping[int, Sequence[int]], edges: Sequence[float]
) -> tuple[str, str]:
    """The clinical CT window that separates the labels best from the rest, and the reason.

    Separation of one label is the total variation distance between its intensities and those of
    all voxels without a label, both after windowing to 8 bits: 1 if they share no grey value, 0
    if they are alike. Narrow windows lose what they clip; wide ones lose little here, but spend
    their grey values elsewhere, so soft tissue is kept unless another window is better by 0.02
    in the mean over the labels.

    Args:
        histograms: for every label value, 0 for all else, voxels in each bin.
        edges: HU of the bins' borders, one more than bins.

    Returns:
        name of the window, and the reason.
    """
    labels = [value for value in histograms if value != 0]
    default = "soft tissue"
    if not labels or 0 not in histograms:
        return default, "the default: no labelled voxels to choose by"
    centres = (np.asarray(edges[:-1], float) + np.asarray(edges[1:], float)) / 2
    separation = {}
    for name, (width, level) in CT_WINDOWS.items():
        grey = np.clip((centres - level + width / 2) / width * 255, 0, 255).round().astype(int)
        fractions = {
            value: np.bincount(grey, weights=np.asarray(counts, float), minlength=256)
            / max(sum(counts), 1)
            for value, counts in histograms.items()
        }
        distances = [0.5 * np.abs(fractions[v] - fractions[0]).sum() for v in labels]
        separation[name] = float(np.mean(distances))
    best = max(separation, key=separation.get)
    if separation[best] < separation[default] + 0.02:
        best = default
    measured = ", ".join(f"{name} {value:.3f}" for name, value in separation.items())
    return best, f"separation of labels from the rest: {measured}"


def single_components(fractions: Mapping[str, Sequence[float]]) -> tuple[tuple[str, ...], str]:
    """The labels that are one connected component, and why.

    A label is one if it is in `LEAST_CASES` or more, and in each of them nearly all of it is in one
    component; one case in a hundred may differ, as annotations do.

    Args:
        fractions: for each label, of each case that has it, the fraction of its voxels in its
            largest component.
    """
    single = []
    for name, of_cases in fractions.items():
        others = sum(fraction < LARGEST for fraction in of_cases)
        if len(of_cases) >= LEAST_CASES and others <= len(of_cases) // 100:
            single.append(name)
    nearly_all = f"{LARGEST:.0%} of the voxels or more in one component in the training cases"
    if not single:
        return (), f"no label has {nearly_all}, so that all components are kept"
    return tuple(single), (
        f"{some(single)}: {nearly_all}, so that of what is found without clicks only the largest "
        f"component is kept"
    )

"""What is drawn for a training sample: where its patch lies, and the objects that are prompted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from promptseg.boxes import label_boxes, mask_box
from promptseg.labels import IGNORED, Values, label_mask
from promptseg.networks.prompt_encoder import NEW_OBJECT, NO_LABEL, Query
from promptseg.prompts.drawn import flat_region
from promptseg.prompts.simulated import (
    error_click,
    error_scribble,
    jitter_box,
    loosen_box,
    sample_points,
)
from promptseg.training.objects import unnamed_object
from promptseg.training.patches import Sample
from promptseg.training.settings import TrainingSettings

NAMED = {"name": 0.4, "box": 0.45, "click": 0.1, "flat box": 0.05}  # first prompts, how often
UNNAMED = {"box": 0.55, "click": 0.25, "flat box": 0.1, "scribble": 0.1}
LOOSE_FRACTION = 0.3  # of drawn boxes


def draw_patch_start(
    shape: Sequence[int],
    patch_size: Sequence[int],
    locations: Sequence[Sequence[int]] | None,
    rng: np.random.Generator,
) -> np.ndarray:
    """First voxel of a patch, zyx; may be negative where the volume is smaller than the patch.

    Args:
        shape: shape of the volume, zyx.
        patch_size: voxels, zyx.
        locations: voxels of a label; one of them will lie in the middle half of the patch, as far
            as the volume's border allows. None draws the position uniformly.
        rng: source of randomness.
    """
    shape, patch_size = np.asarray(shape), np.asarray(patch_size)
    lowest, highest = np.minimum(shape - patch_size, 0), np.maximum(shape - patch_size, 0)
    if locations is None or not len(locations):
        return rng.integers(lowest, highest + 1)
    voxel = np.asarray(locations[rng.integers(len(locations))])
    wanted = voxel - np.floor(rng.uniform(0.25, 0.75, 3) * patch_size).astype(int)
    return np.clip(wanted, lowest, highest)


def training_queries(
    sample: Sample,
    image: int,
    labels: Mapping[str, Values],
    settings: TrainingSettings,
    rng: np.random.Generator,
    scheduled: str | None = None,
    count: int = 1,
) -> list[tuple[Query, np.ndarray]]:
    """Queries for some objects in a patch, with the masks they ask for.

    The scheduled label comes first, so that a small label among many is prompted as often as any
    other, then others in the patch. A patch without any label gets an absent one by its name, for
    which an empty mask is the right answer; all names are learned in every patch beside these.
    No point lies in a voxel that is `IGNORED`.

    Args:
        sample: patch with its boxes.
        image: index of the patch in the batch.
        labels: what each name stands for.
        settings: fractions and chances.
        rng: source of randomness.
        scheduled: label that the patch was placed on; None for none.
        count: number of objects.

    Returns:
        The queries, each with its (z, y, x) bool mask.
    """
    boxes = label_boxes(sample.segmentation, labels)
    present = {name: labels[name] for name in labels if boxes[name] is not None}
    order = sorted(present, key=lambda name: (name != scheduled, rng.random()))
    absent = [name for name in labels if name not in present]
    queries = []
    for number in range(count):
        if rng.random() < settings.unnamed_fraction:
            mask, is_label = unnamed_object(sample.image, sample.segmentation, present, rng)
            if mask.any():
                label = NO_LABEL if rng.random() < (0.5 if is_label else 0.2) else NEW_OBJECT
                box = mask_box(mask).astype(float)
                kind = _drawn(UNNAMED, rng)
                query = prompted_query(kind, mask, box, None, image, label, settings, rng)
                queries.append((query, mask))
                continue
        if not order or (absent and number and rng.random() < 0.1):
            names = absent or list(labels)
            name = names.pop(rng.integers(len(names)))
            mask = np.zeros(sample.segmentation.shape, bool)
            queries.append((Query(image=image, label=list(labels).index(name)), mask))
            continue
        name = order[number % len(order)]
        mask, index = label_mask(sample.segmentation, labels[name]), list(labels).index(name)
        boxes_of = sample.whole_boxes[name], sample.auto_boxes.get(name)
        kind = _drawn(NAMED, rng)
        query = prompted_query(kind, mask, *boxes_of, image, index, settings, rng)
        queries.append((query, mask))
    ignored = sample.segmentation == IGNORED
    return [(_without_points_in(ignored, query), mask) for query, mask in queries]


def _without_points_in(ignored: np.ndarray, query: Query) -> Query:
    """A query without its points in voxels to ignore, (z, y, x) bool: nobody knows their label."""
    known = ~ignored[tuple(np.asarray(query.points, int).reshape(-1, 3).T)]
    if known.all():
        return query
    labels = np.asarray(query.point_labels)[known]
    return replace(query, points=np.asarray(query.points)[known], point_labels=labels)


def _drawn(chances: Mapping[str, float], rng: np.random.Generator) -> str:
    return str(rng.choice(list(chances), p=list(chances.values())))


def prompted_query(
    kind: str,
    mask: np.ndarray,
    tight_box: np.ndarray,
    auto_box: np.ndarray | None,
    image: int,
    label: int,
    settings: TrainingSettings,
    rng: np.random.Generator,
) -> Query:
    """A query with its first prompts; three of ten boxes come with points.

    Args:
        kind: `name`, `box`, `click`, `scribble` or `flat box`.
        mask: (z, y, x) bool, the part of the object in the patch.
        tight_box: tight box of the whole object, in the patch's voxels; it is jittered or loosened
            and then clipped to the patch, as a box drawn around the object is at prediction.
        auto_box: automatic box, clipped to the patch; None where there is none.
        image, label: of the query.
        settings: fractions and chances.
        rng: source of randomness.

    Source:
        Paper, section 2.2: jittered boxes, points inside and outside, 20 % dropout of one type.
    """
    nothing = np.zeros_like(mask)
    if kind == "name":
        return Query(image=image, label=label)
    if kind == "click":
        point, _ = error_click(nothing, mask)
        if rng.random() < 0.5:
            point = sample_points(mask, 1, 0, rng)[0][0]
        return Query(image=image, label=label, points=point[None], point_labels=[1])
    if kind == "scribble":
        points, _ = error_scribble(nothing, mask, rng)
        return Query(image=image, label=label, points=points, point_labels=[1] * len(points))
    if kind == "flat box":
        axis = int(np.argmin(mask.shape)) if rng.random() < 0.6 else int(rng.integers(3))
        counts = mask.sum(axis=tuple(a for a in range(3) if a != axis))
        number = int(rng.choice(np.flatnonzero(counts > counts.max() / 2)))
        inside = np.moveaxis(np.zeros_like(mask), axis, 0)
        inside[number] = np.moveaxis(mask, axis, 0)[number]
        box = jitter_box(mask_box(np.moveaxis(inside, 0, axis)), mask.shape, rng)
        box[:, axis] = number, number + 1
        return Query(image=image, label=label, region=flat_region(box, mask.shape, axis))
    if auto_box is not None and rng.random() < settings.auto_box_fraction:
        box = auto_box
    elif rng.random() < LOOSE_FRACTION:
        box = loosen_box(tight_box, mask.shape, rng)
    else:
        box = jitter_box(tight_box, mask.shape, rng, settings.box_jitter)
    points, kinds = np.zeros((0, 3)), np.zeros(0, int)
    if rng.random() < 0.3:
        points, kinds = sample_points(mask, rng.integers(1, 3), rng.integers(0, 3), rng)
        if rng.random() < settings.prompt_dropout:
            box = None
    return Query(image=image, label=label, box=box, points=points, point_labels=kinds)

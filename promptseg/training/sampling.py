"""What is drawn for a training sample: where its patch lies, and the queries with their prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from promptseg.boxes import label_boxes
from promptseg.networks.prompt_encoder import Query
from promptseg.prompts.simulated import jitter_box, sample_points
from promptseg.training.patches import Sample
from promptseg.training.settings import TrainingSettings


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
    labels: Mapping[str, int],
    settings: TrainingSettings,
    rng: np.random.Generator,
    scheduled: int | None = None,
) -> list[tuple[Query, int]]:
    """Queries for up to `settings.labels_per_image` labels, as the network is trained on them.

    A label in the patch gets two queries: its name alone, and a box or points with or without it.
    An absent one gets its name alone, for which an empty mask is the right answer. The scheduled
    label comes first, so that a small label among many is queried as often as any other; then the
    others in the patch, then absent ones. Where the labels in the patch would take all places, the
    last place goes to an absent label in half of the images.

    Args:
        sample: patch with its boxes.
        image: index of the patch in the batch.
        labels: values by name.
        settings: fractions and chances.
        rng: source of randomness.
        scheduled: value of the label that the patch was placed on; None for none.

    Returns:
        The queries, each with the label value it asks for.
    """
    boxes = label_boxes(sample.segmentation, labels)
    names = sorted(
        labels, key=lambda name: (boxes[name] is None, labels[name] != scheduled, rng.random())
    )
    absent = [name for name in names if boxes[name] is None]
    queries, most = [], settings.labels_per_image
    if absent and 1 < most <= len(names) - len(absent) and rng.random() < 0.5:
        names.insert(most - 1, absent[0])
    for name in names[:most]:
        index, value = list(labels).index(name), labels[name]
        queries.append((Query(image=image, label=index), value))
        if boxes[name] is not None:
            mask = sample.segmentation == value
            auto = sample.auto_boxes.get(name)
            tight = sample.whole_boxes[name]
            query = prompted_query(mask, tight, auto, image, index, settings, rng)
            queries.append((query, value))
    return queries


def prompted_query(
    mask: np.ndarray,
    tight_box: np.ndarray,
    auto_box: np.ndarray | None,
    image: int,
    label: int,
    settings: TrainingSettings,
    rng: np.random.Generator,
) -> Query:
    """A query with a box, in half of the cases also points, sometimes with one prompt type dropped.

    Args:
        mask: (z, y, x) bool, the part of the label in the patch.
        tight_box: tight box of the whole label, in the patch's voxels; it is jittered and then
            clipped to the patch, as a box drawn around the label is at prediction.
        auto_box: automatic box, clipped to the patch; None where there is none.
        image, label: indices in the batch and in the plans.
        settings: fractions and chances.
        rng: source of randomness.

    Source:
        Paper, section 2.2: jittered boxes, points inside and outside, 20 % dropout of one type.
    """
    if auto_box is not None and rng.random() < settings.auto_box_fraction:
        box = auto_box
    else:
        box = jitter_box(tight_box, mask.shape, rng, settings.box_jitter)
    points, kinds = np.zeros((0, 3)), np.zeros(0, int)
    if rng.random() < 0.5:
        points, kinds = sample_points(mask, rng.integers(1, 4), rng.integers(0, 4), rng)
    if rng.random() < settings.prompt_dropout:
        present = ["label", "box", "points"] if len(points) else ["label"]
        dropped = rng.choice(present)
        label = -1 if dropped == "label" else label
        box = None if dropped == "box" else box
        if dropped == "points":
            points, kinds = points[:0], kinds[:0]
    return Query(image=image, label=label, box=box, points=points, point_labels=kinds)

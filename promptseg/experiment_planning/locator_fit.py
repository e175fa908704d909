"""Train the networks of the automatic prompt `locator`, each without a part of the cases."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from threadpoolctl import threadpool_limits
from torch import Tensor

from promptseg.experiment_planning.auto_prompt_cases import FitCase
from promptseg.experiment_planning.auto_prompt_scores import off_centre
from promptseg.experiment_planning.several_objects import are_several
from promptseg.networks.blocks import ISOTROPIC
from promptseg.networks.locator import Locator, LocatorNetwork, share_loss
from promptseg.parallel import Workers, map_cases
from promptseg.prompts.auto_prompter import Proposal

FOLDS = 4
VOXELS = 64_000  # at most, of the usual view; more cost more steps than they tell
STEPS = (300, 1500)  # at least and at most
TO_REACH = 6000  # steps, times the square of the box IoU that is still to be gained
BATCH = 2
LEARNING_RATE, WARMUP = 4e-3, 50  # steps
CROP = (0.6, 1.0)  # of the usual view along each axis, of what a step sees
BEYOND = 0.15  # of a crop, by which it may leave the volume
ROTATION = np.deg2rad(12)
ZOOM, STRETCH = 0.2, 0.08  # of all axes alike and of each, logarithms
SEED = 12345

log = logging.getLogger(__name__)

_SEEDING = threading.Lock()  # torch has one generator for all threads of a worker

Weights = dict[str, np.ndarray]
ByLabel = dict[str, Proposal]


@dataclass(frozen=True, kw_only=True)
class FoldTask:
    """One network to train; sent to a worker as a whole.

    Attributes:
        number: of the fold.
        labels: names.
        spacing: mm of a view voxel, zyx.
        steps: of the training.
        trained_on, held_out: cases.
        moved: case and label of each off-centre crop that is looked at, too.
        several: labels that are several objects.
    """

    number: int
    labels: tuple[str, ...]
    spacing: tuple[float, float, float]
    steps: int
    trained_on: tuple[FitCase, ...] = field(repr=False)
    held_out: tuple[FitCase, ...] = field(repr=False)
    moved: frozenset[tuple[str, str]] = field(repr=False)
    several: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return f"the locator without fold {self.number}"


@dataclass(frozen=True, kw_only=True)
class LocatorFit:
    """What was learned, and what it proposes for cases that it has not seen.

    Attributes:
        locator: all networks together.
        found: for each case and label the proposal of the network trained without the case.
        moved: the same where the case is cropped off-centre about the label, of some cases.
    """

    locator: Locator
    found: dict[str, ByLabel]
    moved: dict[str, ByLabel]


def fit_locator(
    cases: Sequence[FitCase],
    labels: Sequence[str],
    moved: Collection[tuple[str, str]],
    *,
    reached: float = 0.0,
    processes: int | Workers = 0,
) -> LocatorFit:
    """Train a network without each of `FOLDS` parts of the cases.

    The result is the same for any number of processes.

    Args:
        cases: the training cases, of two groups or more, in an order that is always the same.
        labels: names of the foreground labels.
        moved: case and label of each off-centre crop that is looked at, too.
        reached: box IoU of other strategies; the higher it is, the fewer are the steps.
        processes: worker processes; 0 works in this one.

    Raises:
        ValueError: if all cases are of one group.
    """
    tasks = fold_tasks(cases, labels, moved, steps_after(reached))
    log.info(
        "training the locator: %d networks, %d steps each, as other automatic prompts reach a box "
        "IoU of %.2f (with and without cropping); --no-locator leaves it out",
        len(tasks),
        tasks[0].steps,
        reached,
    )
    networks: dict[int, LocatorNetwork] = {}
    found: dict[str, ByLabel] = {}
    off: dict[str, ByLabel] = {}
    outcomes = map_cases(_fold, tasks, processes=processes, description="training the locator")
    for task, result, error in outcomes:
        if error is not None:
            raise RuntimeError(f"{task}: {error}") from error
        networks[task.number] = _network(result[0], task)
        found.update(result[1])
        off.update(result[2])
    locator = Locator(
        labels=tuple(labels),
        spacing=tasks[0].spacing,
        networks=tuple(networks[task.number] for task in tasks),
        several=tasks[0].several,
    )
    return LocatorFit(locator=locator, found=found, moved=off)


def steps_after(reached: float) -> int:
    """The steps of a training where other strategies have reached so much box IoU."""
    return int(np.clip(TO_REACH * (1 - reached) ** 2, *STEPS))


def fold_tasks(
    cases: Sequence[FitCase],
    labels: Sequence[str],
    moved: Collection[tuple[str, str]],
    steps: int,
) -> list[FoldTask]:
    """The networks to train for `fit_locator`, see there; the cases of a group stay together."""
    groups = list(dict.fromkeys(case.group for case in cases))
    if len(groups) < 2:
        raise ValueError("a locator needs cases of two groups, such as patients, or more")
    numbers = np.arange(len(groups)) % FOLDS
    fold_of = dict(zip(groups, np.random.default_rng(SEED).permutation(numbers), strict=True))
    small = [_small(case) for case in cases]
    return [
        FoldTask(
            number=int(fold),
            labels=tuple(labels),
            spacing=spacing_of(cases),
            steps=steps,
            trained_on=tuple(case for case in small if fold_of[case.group] != fold),
            held_out=tuple(case for case in small if fold_of[case.group] == fold),
            moved=frozenset(moved),
            several=frozenset(label for label in labels if are_several(cases, label)),
        )
        for fold in np.unique(numbers)
    ]


def spacing_of(cases: Sequence[FitCase]) -> tuple[float, float, float]:
    """The spacing that networks see: the usual view's, or coarser but for thick slices."""
    spacing = np.median([case.view.spacing for case in cases], axis=0)
    voxels = np.median([np.prod(case.view.extent_mm / spacing) for case in cases])
    is_fine = spacing < ISOTROPIC * spacing.min()
    coarser = max(1.0, voxels / VOXELS) ** (1 / np.count_nonzero(is_fine))
    return tuple(np.where(is_fine, spacing * coarser, spacing).tolist())


def _small(case: FitCase) -> FitCase:
    """The case without what other strategies need of it."""
    truths = {label: replace(truth, bits=b"") for label, truth in case.truths.items()}
    return replace(case, truths=truths, described={}, unfitted={})


def _network(weights: Weights, task: FoldTask) -> LocatorNetwork:
    network = LocatorNetwork(len(task.labels), task.spacing)
    network.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    return network.eval()


def _fold(task: FoldTask) -> tuple[Weights, dict[str, ByLabel], dict[str, ByLabel]]:
    """Train one network and ask it for the cases that it has not seen."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums of several threads differ in the last bits
    try:
        with threadpool_limits(1):
            network = trained(task)
            locator = Locator(
                labels=task.labels,
                spacing=task.spacing,
                networks=(network,),
                several=task.several,
            )
            found = {case.case_id: locator.propose(case.view) for case in task.held_out}
            moved: dict[str, ByLabel] = {}
            for case in task.held_out:
                for label in case.truths:
                    if (case.case_id, label) in task.moved:
                        view = off_centre(case, label).view
                        moved.setdefault(case.case_id, {})[label] = locator.propose(view)[label]
    finally:
        if threading.current_thread() is threading.main_thread():  # others may still train
            torch.set_num_threads(threads)
    return {k: v.numpy() for k, v in network.state_dict().items()}, found, moved


def trained(task: FoldTask) -> LocatorNetwork:
    """A network trained on random crops of a task's cases."""
    rng = np.random.default_rng([SEED, task.number])
    with _SEEDING, torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED + task.number)
        network = LocatorNetwork(len(task.labels), task.spacing)
    network.to(memory_format=torch.channels_last_3d)
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1, (step + 1) / WARMUP) * (1 + math.cos(math.pi * step / task.steps)) / 2,
    )
    extents = [case.view.extent_mm / task.spacing for case in task.trained_on]
    usual, order = np.median(extents, axis=0), []
    for _ in range(task.steps):
        size = np.rint(usual * rng.uniform(*CROP, 3)).astype(int).clip(4)
        drawn = []
        for _ in range(BATCH):
            order = order or list(rng.permutation(len(task.trained_on)))
            drawn.append(crop(task.trained_on[order.pop()], task.labels, size, task.spacing, rng))
        image, shares, ignored = (torch.stack(parts) for parts in zip(*drawn, strict=True))
        logits = network(image.contiguous(memory_format=torch.channels_last_3d))
        optimizer.zero_grad()
        share_loss(logits, shares, ignored).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        schedule.step()
    return network.eval()


def crop(
    case: FitCase,
    labels: Sequence[str],
    size: np.ndarray,
    spacing: Sequence[float],
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """A random part of a view, rotated, scaled and of changed contrast.

    Args:
        case: with its view.
        labels: names.
        size: voxels of the part, zyx.
        spacing: mm of its voxels, zyx.
        rng: source of randomness.

    Returns:
        (1, z, y, x) image in [0, 255], 0 outside the volume, (labels, z, y, x) shares, and
        (1, z, y, x) the share of each voxel whose label nobody knows.
    """
    view = case.view
    maps = np.zeros((2 + len(labels), *view.image.shape), np.float32)
    maps[0] = view.image
    if case.ignored is not None:
        maps[-1] = case.ignored / np.float32(255)
    for number, label in enumerate(labels, start=1):
        if (truth := case.truths.get(label)) is not None:
            box = view.box_of_view(truth.box)
            maps[(number, *(slice(a, b) for a, b in box.T))] = truth.view_mask / np.float32(255)
    free = view.extent_mm - size * np.array(spacing)
    slack = BEYOND * size * np.array(spacing)
    lower = rng.uniform(np.minimum(0, free) - slack, np.maximum(0, free) + slack)
    centre = (lower + size * np.array(spacing) / 2) / view.spacing
    turned = _turned(spacing, rng) * np.array(spacing)  # mm in the volume of a voxel of the part
    grid = _grid(turned / np.array(view.spacing)[:, None], centre, size, view.image.shape)
    moved = F.grid_sample(torch.from_numpy(maps)[None], grid, align_corners=False)[0]
    is_inside = (grid.abs() <= 1).all(dim=-1)
    return _other_contrast(moved[:1], rng) * is_inside, moved[1:-1], moved[-1:]


def _turned(spacing: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """(3, 3) random rotation and scaling of mm, within thick slices where there are any."""
    angles = rng.uniform(-ROTATION, ROTATION, 3)
    scales = np.exp(rng.uniform(-ZOOM, ZOOM) + rng.uniform(-STRETCH, STRETCH, 3))
    if max(spacing) > ISOTROPIC * min(spacing):
        across = np.arange(3) == np.argmax(spacing)
        angles, scales = np.where(across, angles, 0), np.where(across, 1, scales)
    matrix = np.diag(scales)
    for axis, angle in enumerate(angles):
        i, j = (a for a in range(3) if a != axis)
        rotation = np.eye(3)
        rotation[[i, j, i, j], [i, j, j, i]] = *[np.cos(angle)] * 2, -np.sin(angle), np.sin(angle)
        matrix = rotation @ matrix
    return matrix


def _grid(matrix: np.ndarray, centre: np.ndarray, size: np.ndarray, shape: Sequence[int]) -> Tensor:
    """Where `grid_sample` finds the voxels of a part of `size` voxels in maps of a shape.

    Args:
        matrix: (3, 3) voxels of the maps for a voxel of the part, zyx.
        centre: of the part, in voxels of the maps from their first corner, zyx.
        size, shape: voxels, zyx.
    """
    shape = np.array(shape)
    scaled = matrix * (size / 2) * (2 / shape)[:, None]
    theta = np.column_stack([scaled[::-1, ::-1], (centre * 2 / shape - 1)[::-1]])  # torch has xyz
    theta = torch.from_numpy(theta.astype(np.float32))
    return F.affine_grid(theta[None], [1, 1, *size.tolist()], align_corners=False)


def _other_contrast(image: Tensor, rng: np.random.Generator) -> Tensor:
    """An image in [0, 255] of another brightness, contrast, gamma and noise."""
    image = image * rng.uniform(0.75, 1.3) + rng.uniform(-15, 15)
    if rng.random() < 0.3:
        image = 255 * (image.clamp(0, 255) / 255) ** float(np.exp(rng.uniform(-0.4, 0.4)))
    if rng.random() < 0.2:
        noise = rng.normal(0, rng.uniform(2, 12), image.shape)
        image = image + torch.from_numpy(noise.astype(np.float32))
    return image.clamp(0, 255)

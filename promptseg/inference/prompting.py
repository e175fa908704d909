"""Prompts in prediction: given ones by label, and automatic ones, by strategies and the network.

The network's own (`coarse`, `hybrid`) come from its look at the whole volume, resized to one patch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from promptseg.boxes import mask_box
from promptseg.inference.decoder import ASKED_AT_ONCE, ImageDecoder, PreparedImage
from promptseg.networks.locator import Locator
from promptseg.networks.prompt_encoder import Query
from promptseg.plans import Plans
from promptseg.preprocessing.lazy import LazyImage
from promptseg.presets import preset_of
from promptseg.prompts.auto_prompter import LOCATOR
from promptseg.prompts.automatic import propose_boxes
from promptseg.prompts.strategies import AUTO_PROMPTERS
from promptseg.prompts.types import Prompts, make_prompts

log = logging.getLogger(__name__)

PLANS = "plans"
NAME = "name"  # no prompt but the label's name
COARSE = "coarse"  # the box of the mask that the label's name gives in the whole volume
HYBRID = "hybrid"  # that or the plans' box, whichever the network predicts the better mask from
OWN = (COARSE, HYBRID)
TIE = 0.002  # of Dice, within which the faster strategy is as good


AnswersInWhole = Callable[[Sequence[Query]], tuple[Tensor, Tensor]]


class Proposer:
    """Proposes prompts for labels of an image, in two steps: without the network, then with it.

    Args:
        plans: of the model.
        measured_dice: for each label the Dice of the masks that strategies led to in the
            validation of training, the fastest strategy first.
        locator: for the strategy of that name; None where planning trained none.
    """

    def __init__(
        self,
        plans: Plans,
        measured_dice: Mapping[str, Mapping[str, float]],
        locator: Locator | None = None,
    ) -> None:
        self.plans, self.locator = plans, locator
        self.measured_dice = {label: dict(dice) for label, dice in measured_dice.items()}

    def check(self, strategy: str) -> None:
        """Refuse a strategy that this model cannot use.

        Raises:
            ValueError: for an unknown name, listing the known ones.
        """
        if strategy == PLANS:
            return
        if strategy == LOCATOR:
            if self.locator is None:
                raise ValueError(
                    f"this model has no {LOCATOR}; it is trained by promptseg_plan without "
                    f"--no-locator, before the model; choose another automatic prompt"
                )
            return
        if strategy not in (NAME, *OWN):
            if strategy not in AUTO_PROMPTERS:
                known = ", ".join([PLANS, NAME, *OWN, *AUTO_PROMPTERS, LOCATOR])
                raise ValueError(f"unknown automatic prompt {strategy!r}; registered: {known}")
        elif (preset := preset_of(self.plans)) and not preset.knows_names:
            raise ValueError(
                f"{strategy} asks the network by the labels' names, which {preset.title} do not "
                f"know; choose another strategy, such as intensity"
            )

    def strategy_of(self, label: str, strategy: str) -> str:
        """The strategy that prompts a label.

        `plans` is the one that led to the best masks in validation, of those within `TIE` of it
        the fastest; where nothing was measured, the plans' choice.
        """
        if strategy != PLANS:
            return strategy
        if not (dice := self.measured_dice.get(label)):
            return self.planned_strategy(label)
        return next(name for name, value in dice.items() if value >= max(dice.values()) - TIE)

    def planned_strategy(self, label: str) -> str:
        """The plans' choice; `none` where no strategy was usable."""
        return self._of_plans(label)["strategy"]

    def log_choice(self, strategy: str) -> None:
        """Log for which labels `plans` is not the plans' choice, and why."""
        if strategy != PLANS:
            return
        others = []
        for label in self.plans.labels:
            planned, chosen = self.planned_strategy(label), self.strategy_of(label, PLANS)
            if chosen != planned:
                dice = self.measured_dice[label]
                beaten = f", {planned} {dice[planned]:.3f}" if planned in dice else ""
                alone = "its name alone" if chosen == NAME else chosen
                others.append(f"{label} by {alone} ({dice[chosen]:.3f}{beaten})")
        if others:
            log.info(
                "prompted as validation found best, not as planned (Dice): %s", "; ".join(others)
            )

    def propose(
        self, image: PreparedImage, labels: Sequence[str], strategy: str
    ) -> dict[str, Prompts]:
        """Automatic prompts in the voxels of the image's file.

        Without boxes, and with the reason, where none is found.

        Other threads can do this while an image is being segmented. The network's own prompts are
        left to `ask_network`.
        """
        self.check(strategy)
        forced = None if strategy in (PLANS, NAME, *OWN) else strategy
        ways = {label: self.strategy_of(label, strategy) for label in labels}
        proposed = [label for label, way in ways.items() if way not in (NAME, COARSE)]
        by_name = make_prompts(shape=image.file_shape, source=NAME)
        found = {label: by_name for label, way in ways.items() if way == NAME}
        if not proposed:
            return found
        preprocessed = image.decoder.image
        proposals = propose_boxes(
            image.raw,
            image.spacing,
            auto_prompts={label: self._of_plans(label) for label in proposed},
            normalizations=self.plans.normalizations,
            strategy=forced,
            scale=preprocessed.scales[0] if isinstance(preprocessed, LazyImage) else None,
            locate=self.locator and self.locator.propose,
        )
        for label, proposal in proposals.items():
            source = forced or self.planned_strategy(label)
            found[label] = make_prompts(
                boxes=np.asarray(proposal.boxes, float),
                shape=image.raw_shape,
                where=f"{source} for {label!r}",
                source=source if len(proposal.boxes) else "label name",
                score=proposal.score,
                reason=proposal.reason,
            ).turned(image.turn.back, image.raw_shape)
        return found

    def ask_network(
        self,
        image: PreparedImage,
        labels: Sequence[str],
        strategy: str,
        proposals: Mapping[str, Prompts],
    ) -> dict[str, Prompts]:
        """The network's own prompts for the labels whose strategy is `coarse` or `hybrid`.

        Args:
            image: from `Predictor.prepare`.
            labels: to find prompts for.
            strategy: as in `propose`.
            proposals: the result of `propose`.
        """
        nothing = make_prompts(shape=image.file_shape, source="label name")
        others = {
            label: proposals.get(label, nothing).turned(image.turn, image.file_shape)
            for label in labels
            if self.strategy_of(label, strategy) in OWN
        }
        indices = {label: index for index, label in enumerate(self.plans.labels)}
        own = own_prompts(image.decoder, others, indices, image.raw_shape)
        return {label: p.turned(image.turn.back, image.raw_shape) for label, p in own.items()}

    def _of_plans(self, label: str) -> Mapping[str, Any]:
        return self.plans.auto_prompts.get(label, {"strategy": "none"})


def boxes_in_whole(
    queries: Sequence[Query], in_whole: AnswersInWhole
) -> list[tuple[np.ndarray | None, float]]:
    """Boxes of the masks that queries give in a whole volume, resized to one patch.

    Args:
        queries: in voxels of the resized volume.
        in_whole: logits (n, *patch_size) and predicted IoU (n,) of queries there; called with a
            few queries at a time, see `ImageDecoder.in_whole`.

    Returns:
        For each query the (2, 3) box of its mask, None for an empty one, and the predicted IoU.
    """
    found = []
    for first in range(0, len(queries), ASKED_AT_ONCE):
        logits, ious = in_whole(queries[first : first + ASKED_AT_ONCE])
        masks = ((answer > 0).cpu().numpy() for answer in logits)
        found += zip(map(mask_box, masks), ious.tolist(), strict=True)
    return found


@torch.inference_mode()
def own_prompts(
    decoder: ImageDecoder,
    proposals: Mapping[str, Prompts],
    label_indices: Mapping[str, int],
    raw_shape: Sequence[int],
) -> dict[str, Prompts]:
    """Box labels by what the network finds by their names, or keep a better proposal.

    Everything is decoded in the volume resized to one patch, which is encoded once.

    Args:
        decoder: of the image.
        proposals: for every label to find, another strategy's prompts in raw voxels, empty when
            there are none (`coarse`).
        label_indices: index of each label in the plans.
        raw_shape: voxels, zyx.

    Returns:
        For each label prompts in raw voxels; without a box, and with the reason, when nothing was
        found. Where there were a box of the network's and a proposal to choose from, `score` is
        the predicted IoU of the mask that the chosen one gives in the resized volume. A box
        without an alternative is not decoded again: the network's own has the predicted IoU of
        the mask that it encloses, which the label's name gave, and a proposal keeps its score.
    """
    if not proposals:
        return {}
    labels = list(proposals)
    queries = [Query(label=label_indices[label]) for label in labels]
    found = {}
    for label, (box, iou) in zip(labels, boxes_in_whole(queries, decoder.in_whole), strict=True):
        coarse = _coarse_prompts(label, box, decoder.patch_size, raw_shape, iou)
        found[label] = _better(decoder, coarse, proposals[label], label_indices[label], raw_shape)
    return found


def _coarse_prompts(
    label: str,
    box: np.ndarray | None,
    patch_size: np.ndarray,
    raw_shape: Sequence[int],
    predicted_iou: float,
) -> Prompts:
    """The box of a mask in the resized volume as prompts in raw voxels."""
    boxes = [] if box is None else [box * (np.asarray(raw_shape) / patch_size)]
    return make_prompts(
        boxes=boxes,
        shape=raw_shape,
        where=f"{COARSE} for {label!r}",
        source=COARSE if boxes else "label name",
        score=predicted_iou if boxes else None,
        reason="ok" if boxes else "not_found_by_name",
    )


def _better(
    decoder: ImageDecoder,
    coarse: Prompts,
    proposal: Prompts,
    label_index: int,
    raw_shape: Sequence[int],
) -> Prompts:
    """Of two prompts the one with the higher predicted IoU in the whole volume, as its score.

    Where only one of them has a box, it is returned as it is.
    """
    candidates = [prompts for prompts in (coarse, proposal) if len(prompts.boxes)]
    if len(candidates) < 2:
        return candidates[0] if candidates else coarse
    boxes = [p.scaled(raw_shape, tuple(decoder.patch_size)).boxes for p in candidates]
    queries = [Query(label=label_index, box=box) for of_one in boxes for box in of_one]
    ious = decoder.in_whole(queries)[1].tolist()
    # a proposal of several boxes is as good as their mean
    predicted = [float(np.mean(ious[: len(boxes[0])])), float(np.mean(ious[len(boxes[0]) :]))]
    best = int(np.argmax(predicted))
    return replace(candidates[best], score=min(max(predicted[best], 0.0), 1.0))


def prompts_by_label(
    kinds: Mapping[str, Mapping[str, Any] | None], shape: Sequence[int]
) -> dict[str, Prompts]:
    """Prompts of each label, checked, from keywords of `make_prompts` with values by label."""
    given = {kind: by_label or {} for kind, by_label in kinds.items()}
    return {
        label: make_prompts(
            **{kind: by_label.get(label) for kind, by_label in given.items()},
            shape=shape,
            where=f"label {label!r}",
        )
        for label in dict.fromkeys(name for by_label in given.values() for name in by_label)
    }

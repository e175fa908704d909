"""Automatic prompts in prediction: by the plans' strategies, and by the network itself."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from promptseg.inference.coarse import COARSE, HYBRID, OWN, own_prompts
from promptseg.inference.decoder import PreparedImage
from promptseg.plans import Plans
from promptseg.preprocessing.lazy import LazyImage
from promptseg.presets import preset_of
from promptseg.prompts.automatic import propose_boxes
from promptseg.prompts.strategies import AUTO_PROMPTERS
from promptseg.prompts.types import Prompts, make_prompts

log = logging.getLogger(__name__)

PLANS = "plans"


class Proposer:
    """Proposes prompts for labels of an image, in two steps: without the network, then with it.

    Args:
        plans: of the model.
        measured_coarse: for each label, the box IoU that was measured for `coarse`, the box of
            the network's own mask, in the validation of training.
    """

    def __init__(self, plans: Plans, measured_coarse: Mapping[str, float]) -> None:
        self.plans = plans
        self.measured_coarse = dict(measured_coarse)

    def check(self, strategy: str) -> None:
        """Refuse a strategy that this model cannot use.

        Raises:
            ValueError: for an unknown name, listing the known ones.
        """
        if strategy == PLANS:
            return
        if strategy not in OWN:
            if strategy not in AUTO_PROMPTERS:
                known = ", ".join([PLANS, *OWN, *AUTO_PROMPTERS])
                raise ValueError(f"unknown automatic prompt {strategy!r}; registered: {known}")
        elif (preset := preset_of(self.plans)) and not preset.knows_names:
            raise ValueError(
                f"{strategy} asks the network by the labels' names, which {preset.title} do not "
                f"know; choose another strategy, such as intensity"
            )

    def strategy_of(self, label: str, strategy: str) -> str:
        """The strategy that prompts a label.

        `plans` is the plans' choice, but `hybrid` where a higher box IoU was measured for
        `coarse` in validation than for that choice in planning.
        """
        if strategy != PLANS:
            return strategy
        planned = self._of_plans(label)["strategy"]
        return HYBRID if self._coarse_is_better(label) else planned

    def log_choice(self, strategy: str) -> None:
        """Log for which labels `plans` is not the plans' choice, and why."""
        if strategy != PLANS:
            return
        better = [
            f"{label} (box IoU {self.measured_coarse[label]:.3f} in validation, "
            f"{self._of_plans(label)['strategy']} {self._planned_iou(label):.3f} in planning)"
            for label in self.plans.labels
            if self._coarse_is_better(label)
        ]
        if better:
            log.info(
                "%s in place of the plans' choice, which the network's own box beat: %s",
                HYBRID,
                ", ".join(better),
            )

    def propose(
        self, image: PreparedImage, labels: Sequence[str], strategy: str
    ) -> dict[str, Prompts]:
        """Automatic prompts in raw voxels; without boxes, and with the reason, if none is found.

        Other threads can do this while an image is being segmented. The network's own prompts are
        left to `ask_network`.
        """
        self.check(strategy)
        forced = None if strategy in (PLANS, *OWN) else strategy
        proposed = [label for label in labels if self.strategy_of(label, strategy) != COARSE]
        if not proposed:
            return {}
        preprocessed = image.decoder.image
        proposals = propose_boxes(
            image.raw,
            image.spacing,
            auto_prompts={label: self._of_plans(label) for label in proposed},
            normalizations=self.plans.normalizations,
            strategy=forced,
            scale=preprocessed.scales[0] if isinstance(preprocessed, LazyImage) else None,
        )
        found = {}
        for label, proposal in proposals.items():
            source = forced or self._of_plans(label)["strategy"]
            found[label] = make_prompts(
                boxes=np.asarray(proposal.boxes, float),
                shape=image.raw_shape,
                where=f"{source} for {label!r}",
                source=source if len(proposal.boxes) else "label name",
                score=proposal.score,
                reason=proposal.reason,
            )
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
        nothing = make_prompts(shape=image.raw_shape, source="label name")
        others = {
            label: proposals.get(label, nothing)
            for label in labels
            if self.strategy_of(label, strategy) in OWN
        }
        indices = {label: index for index, label in enumerate(self.plans.labels)}
        return own_prompts(image.decoder, others, indices, image.raw_shape)

    def _coarse_is_better(self, label: str) -> bool:
        return self.measured_coarse.get(label, 0.0) > self._planned_iou(label)

    def _planned_iou(self, label: str) -> float:
        """The box IoU that planning measured for its choice; 0 when it chose none."""
        planned = self._of_plans(label)
        return planned.get("candidates", {}).get(planned["strategy"], {}).get("iou_mean") or 0.0

    def _of_plans(self, label: str) -> Mapping[str, Any]:
        return self.plans.auto_prompts.get(label, {"strategy": "none"})

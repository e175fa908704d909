"""Automatic prompts for every label of one image, as the plans say or as the user forces."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from promptseg.preprocessing.normalize import (
    Normalization,
    intensity_range,
    rescale_part,
    scale_of,
)
from promptseg.prompts.automatic.base import AUTO_PROMPTERS, Proposal
from promptseg.prompts.automatic.expected_iou import evidence, expected_iou
from promptseg.prompts.automatic.fitted import FittedPrompter, View, view_of


def propose_boxes(
    image: np.ndarray,
    spacing: tuple[float, float, float],
    *,
    auto_prompts: dict[str, dict[str, Any]],
    normalizations: tuple[Normalization, ...],
    strategy: str | None = None,
    scale: tuple[float, float] | None = None,
) -> dict[str, Proposal]:
    """Propose boxes for every label in the plans.

    Normalizing, reducing and strategies without fitted parameters run once for all labels. Only
    the latter need the whole normalized volume; the others see a small view, made slab by slab.

    Args:
        image: (c, z, y, x) raw intensities; channel 0 is looked at.
        spacing: mm, zyx.
        auto_prompts: the plans' entry of the same name: for each label the chosen strategy and
            all candidates with their parameters.
        normalizations: the plans' normalization of each channel.
        strategy: forces one strategy for all labels; None follows the plans.
        scale: of channel 0, from `scale_of`, where it is known already.

    Returns:
        A proposal for each label; where the plans found no usable strategy, one without a box
        and with the reason `no_usable_strategy`.

    Raises:
        ValueError: if a strategy is unknown, or was not fitted for a label.
    """
    chosen = {label: strategy or entry["strategy"] for label, entry in auto_prompts.items()}
    prompters = {
        label: _prompter(name, label, auto_prompts[label])
        for label, name in chosen.items()
        if name != "none"
    }
    if scale is None:
        scale = scale_of(image[0], *intensity_range(image[0], normalizations[0]))
    view = view_of(image[0], spacing, normalized=lambda slab: rescale_part(slab, *scale))
    proposals, shared = {}, {}
    for label, name in chosen.items():
        if label not in prompters:
            proposals[label] = Proposal(box=None, score=0.0, reason="no_usable_strategy")
        elif isinstance(prompters[label], FittedPrompter):
            proposals[label] = prompters[label].propose(view)
        else:
            if name not in shared:
                normalized = rescale_part(image[0], *scale)
                shared[name] = prompters[label].propose(normalized, spacing)
            proposals[label] = shared[name]
        proposals[label] = _with_score(proposals[label], name, auto_prompts[label], view)
    return proposals


def _with_score(proposal: Proposal, name: str, entry: dict[str, Any], view: View) -> Proposal:
    """The same with the box IoU that the training cases let one expect, where they do."""
    model = entry.get("candidates", {}).get(name, {}).get("score")
    if proposal.box is None or not model:
        return proposal
    row = evidence(view, proposal.box, np.asarray(model["usual"]))
    return replace(proposal, score=expected_iou(model, row))


def _prompter(name: str, label: str, entry: dict[str, Any]) -> Any:
    """The strategy with the parameters that the plans have for it."""
    cls = AUTO_PROMPTERS.get(name)
    candidates = entry.get("candidates", {})
    if name in candidates:
        return cls(**candidates[name]["parameters"])
    if issubclass(cls, FittedPrompter):
        fitted = ", ".join(sorted(candidates)) or "none"
        raise ValueError(
            f"automatic prompt {name!r} has no fitted parameters for label {label!r} in the plans, "
            f"which have: {fitted}; plan the dataset again, or name one of these, or 'intensity'"
        )
    return cls()

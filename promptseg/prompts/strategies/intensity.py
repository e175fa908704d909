"""`intensity`: the paper's Algorithm 1, boxes around what is brighter than average."""

from __future__ import annotations

import numpy as np

from promptseg.boxes import box_volume, clip_box, is_nearly_whole, widen_box
from promptseg.components import largest_component_box, largest_component_boxes
from promptseg.prompts.auto_prompter import AUTO_PROMPTERS, AutoPrompter, Proposal
from promptseg.prompts.intensity.algorithm import candidate_mask


@AUTO_PROMPTERS.register("intensity")
class IntensityPrompter(AutoPrompter):
    """Algorithm 1: smooth, threshold by mean and deviation, close, largest component, its box.

    The defaults are the paper's; where it is silent (border, truncation, ties, strictness), as the
    functions in `intensity/` say.

    Args:
        sigma: of the Gaussian, voxels.
        low, high: thresholds in standard deviations above the mean of the smoothed volume.
        radius: of the ball that closes gaps, voxels.
        margin: added on each side of the box, voxels.
        clip: whether the box ends at the volume's borders; the paper's may reach beyond.
        components: `largest` for one box; a number for at most so many, or `all_above` for all
            components of at least `min_voxels`, largest first.
        min_voxels: voxels of the smallest component that gets a box.

    Source:
        Paper, section 2.3 and Algorithm 1. Differs: several components on request.
    """

    def __init__(
        self,
        *,
        sigma: float = 2.0,
        low: float = 0.5,
        high: float = 2.0,
        radius: float = 3,
        margin: int = 5,
        clip: bool = True,
        components: str | int = "largest",
        min_voxels: int = 1,
    ) -> None:
        _check_number("sigma", sigma, "voxels, at least 0", lambda v: v >= 0)
        _check_number("low", low, "standard deviations", lambda v: True)
        _check_number("high", high, f"standard deviations above low ({low})", lambda v: v > low)
        _check_number("radius", radius, "voxels, at least 0", lambda v: v >= 0)
        _check_number("margin", margin, "whole voxels, at least 0", _is_natural)
        _check_number("min_voxels", min_voxels, "whole voxels, at least 0", _is_natural)
        if components not in ("largest", "all_above"):
            allowed = "'largest', 'all_above' or a whole number of boxes, at least 1"
            _check_number("components", components, allowed, lambda v: v >= 1 and v == int(v))
        self.sigma, self.low, self.high = float(sigma), float(low), float(high)
        self.radius, self.margin, self.clip = float(radius), int(margin), bool(clip)
        self.components, self.min_voxels = components, int(min_voxels)

    def propose(
        self, image: np.ndarray, spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    ) -> Proposal:
        """Propose a box, or several, for whatever is brighter than average.

        Args:
            image: (z, y, x) finite numbers in [0, 255], of any real type; of a torch tensor, the
                heavy steps run on its device.
            spacing: not used; Algorithm 1 works in voxels.

        Returns:
            A proposal with the reason `ok`; `box_is_whole_volume` if the first box covers at
            least 90 % of the volume; `constant_image` or `no_component` without a box. The
            algorithm does not know how good its box is: the score is the fraction of the box
            that its component fills, times the fraction of the volume outside the box.
        """
        found = self._components(self.candidate_mask(image))
        if not found:
            reason = "constant_image" if image.min() == image.max() else "no_component"
            return Proposal(box=None, score=0.0, reason=reason)
        boxes = [widen_box(box, self.margin) for box, _ in found]
        inside = [clip_box(box, image.shape) for box in boxes]
        filled = found[0][1] / box_volume(found[0][0])
        return Proposal(
            box=(inside if self.clip else boxes)[0],
            boxes=tuple(inside if self.clip else boxes),
            score=float(filled * (1 - box_volume(inside[0]) / np.prod(image.shape))),
            reason="box_is_whole_volume" if is_nearly_whole(boxes[0], image.shape) else "ok",
        )

    def candidate_mask(self, image: np.ndarray) -> np.ndarray:
        """(z, y, x) bool: the closed mask whose components are proposed; lines 1 to 7."""
        return candidate_mask(
            image, sigma=self.sigma, low=self.low, high=self.high, radius=self.radius
        )

    def _components(self, mask: np.ndarray) -> list[tuple[np.ndarray, int]]:
        if self.components == "largest":
            largest = largest_component_box(mask)
            return [largest] if largest and largest[1] >= self.min_voxels else []
        most = None if self.components == "all_above" else int(self.components)
        return largest_component_boxes(mask, most, self.min_voxels)


def _is_natural(value: float) -> bool:
    return value >= 0 and value == int(value)


def _check_number(name: str, value: object, allowed: str, is_allowed) -> None:
    number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(
        value, bool
    )
    if not number or not np.isfinite(value) or not is_allowed(value):
        raise ValueError(f"intensity: {name} must be {allowed}, found {value!r}")

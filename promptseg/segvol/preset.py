"""The preset `segvol`: plans, network and predictor for SegVol's released weights.

Network and predictor are imported when asked for, so that planning's worker processes never
import torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptseg.plans import Plans
from promptseg.preprocessing.normalize import foreground_clipping
from promptseg.presets import Preset

if TYPE_CHECKING:
    from torch import nn


class SegVolPreset(Preset):
    """See `Preset`; sizes are those of the released weights."""

    name = "segvol"
    title = "SegVol's weights"
    encoder = "vit"
    trainer = "ViTTrainer"
    size = "base"
    patch_size = (32, 256, 256)
    stride = (4, 16, 16)
    normalization = foreground_clipping()
    normalization_reason = "SegVol's, between percentiles of the voxels above the mean"
    knows_names = False

    def check_channels(self, dataset_name: str, channel_names: Sequence[str]) -> None:
        """Raise a ValueError unless there is one channel."""
        if len(channel_names) != 1:
            raise ValueError(
                f"{dataset_name} has {len(channel_names)} channels ({', '.join(channel_names)}), "
                f"but SegVol's weights look at one; make a dataset of the channel you want"
            )

    def build_network(self, plans: Plans, encoder: str) -> nn.Module:
        """A `SegVolNetwork` with random weights."""
        from promptseg.segvol.network import build_segvol_network

        return build_segvol_network(plans, encoder)

    def load_weights(
        self, network: nn.Module, content: Any, source: Path | str, *, only: str = ""
    ) -> Any:
        """Put a SegVol checkpoint into a network, see `load_segvol`."""
        from promptseg.segvol.weights import load_segvol, segvol_state

        return load_segvol(network, segvol_state(content, source), only=only, source=str(source))

    @property
    def predictor_class(self) -> type:
        """`SegVolPredictor`."""
        from promptseg.segvol.predictor import SegVolPredictor

        return SegVolPredictor


PRESET = SegVolPreset()

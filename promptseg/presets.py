"""Presets: what plans for weights that were trained elsewhere replace, behind one object.

Each is implemented in a room of its own, which is imported when a preset is first asked for, by
the name in the table below and never by the content of a file.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptseg.plans import PRESETS, Normalization, Plans

if TYPE_CHECKING:
    from torch import nn

_MODULES = {"segvol": "promptseg.segvol.preset"}  # each defines `PRESET`


class Preset(ABC):
    """What a preset puts in place of planning's rules, the usual network and its predictor.

    Attributes:
        name: as in plans.
        title: names the preset's weights in messages.
        encoder: the only encoder that its network has.
        trainer: the trainer of that encoder.
        size: the encoder's size.
        patch_size: voxels, zyx.
        stride: voxels, zyx, of one token.
        normalization: of every channel, and in words in `normalization_reason`.
        knows_names: whether the weights answer to a label's name alone before they are trained;
            the strategies `coarse` and `hybrid` need that.
    """

    name: str
    title: str
    encoder: str
    trainer: str
    size: str
    patch_size: tuple[int, int, int]
    stride: tuple[int, int, int]
    normalization: Normalization
    normalization_reason: str
    knows_names: bool

    @abstractmethod
    def check_channels(self, dataset_name: str, channel_names: Sequence[str]) -> None:
        """Raise a ValueError if the weights cannot read images of these channels."""

    @abstractmethod
    def build_network(self, plans: Plans, encoder: str) -> nn.Module:
        """A network with random weights.

        Raises:
            ValueError: for another encoder than the preset's, and for an unknown size.
        """

    @abstractmethod
    def load_weights(
        self, network: nn.Module, content: Any, source: Path | str, *, only: str = ""
    ) -> Any:
        """Put weights in the layout of their authors into a network.

        Args:
            network: of this preset, or with `only` any.
            content: of the file of weights.
            source: of the content, for messages.
            only: prefix of the parameters to load, those that fit, into a network without the
                preset; everything when empty.

        Returns:
            A `PretrainedReport`.

        Raises:
            ValueError: if the content is not of this layout, or does not fit the network.
        """

    @property
    @abstractmethod
    def predictor_class(self) -> type:
        """The subclass of `Predictor` for plans of the preset."""


def preset_of(plans: Plans) -> Preset | None:
    """The preset that plans name; None where planning's rules decide."""
    return find_preset(plans.preset)


def find_preset(name: str) -> Preset | None:
    """The preset of that name; None for `none`.

    Raises:
        ValueError: for an unknown name, listing the known ones.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; there are {', '.join(PRESETS)}")
    return None if name == "none" else importlib.import_module(_MODULES[name]).PRESET

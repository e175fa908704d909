"""An exponential moving average of a network's weights."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def weight_average(network: nn.Module, decay: float) -> AveragedModel:
    """A copy of the network whose `update_parameters` moves its weights towards the network's.

    Args:
        network: network on the device and in the memory format it trains in.
        decay: fraction of the average that an update keeps, above 0 and below 1; see `decay_after`.
    """

    def update(averaged: Sequence[Tensor], current: Sequence[Tensor], count: Tensor) -> None:
        get_ema_multi_avg_fn(decay_after(int(count), decay))(averaged, current, count)

    return AveragedModel(network, multi_avg_fn=update).requires_grad_(False)


def decay_after(count: int, decay: float) -> float:
    """The decay after `count` updates: it begins small, so that the initial weights are forgotten.

    With 0.999 from the start, a third of the average after 1000 steps would be the initial weights.
    This way it reaches back over about a ninth of the run, until `decay` bounds it.

    Source:
        TensorFlow's `tf.train.ExponentialMovingAverage` with `num_updates`.
    """
    return min(decay, (1 + count) / (10 + count))

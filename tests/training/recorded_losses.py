"""Imported by `promptseg_train --import`: the loss of every step goes to $RECORDED_LOSSES.

Adam's epsilon is larger than any rounding of a gradient. Else a weight with hardly a gradient makes
full steps where rounding sends it, until masks differ by the voxels that decide a click.
"""

import os

from promptseg.training import step
from promptseg.training.trainer import BaseTrainer

optimize = BaseTrainer._optimize
make_optimizer = step.make_optimizer


def recording(trainer, batch):
    loss = optimize(trainer, batch)
    with open(f"{os.environ['RECORDED_LOSSES']}{os.environ.get('RANK', 0)}.txt", "a") as file:
        file.write(f"{loss!r}\n")
    return loss


def unmoved_by_rounding(network, settings):
    optimizer = make_optimizer(network, settings)
    for group in optimizer.param_groups:
        group["eps"] = 1e-2
    return optimizer


BaseTrainer._optimize = recording
step.make_optimizer = unmoved_by_rounding

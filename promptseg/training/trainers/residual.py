"""The trainer of the encoder residual."""

from promptseg.training.trainer import TRAINERS, BaseTrainer


@TRAINERS.register("ResidualTrainer")
class ResidualTrainer(BaseTrainer):
    encoder = "residual"

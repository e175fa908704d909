"""The trainer of the encoder residual."""

from promptseg.training.base_trainer import TRAINERS, BaseTrainer


@TRAINERS.register("ResidualTrainer")
class ResidualTrainer(BaseTrainer):
    encoder = "residual"

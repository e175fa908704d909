"""The trainer of the encoder mobilenet."""

from promptseg.training.trainer import TRAINERS, BaseTrainer


@TRAINERS.register("MobileNetTrainer")
class MobileNetTrainer(BaseTrainer):
    encoder = "mobilenet"

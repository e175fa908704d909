"""The trainer of the encoder mobilenet."""

from promptseg.training.base_trainer import TRAINERS, BaseTrainer


@TRAINERS.register("MobileNetTrainer")
class MobileNetTrainer(BaseTrainer):
    encoder = "mobilenet"

"""The trainer of the encoder mobilenet_v3."""

from promptseg.training.trainer import TRAINERS, BaseTrainer


@TRAINERS.register("MobileNetV3Trainer")
class MobileNetV3Trainer(BaseTrainer):
    encoder = "mobilenet_v3"

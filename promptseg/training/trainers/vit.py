"""The trainer of the vision transformer."""

from promptseg.training.trainer import TRAINERS, BaseTrainer


@TRAINERS.register("ViTTrainer")
class ViTTrainer(BaseTrainer):
    encoder = "vit"

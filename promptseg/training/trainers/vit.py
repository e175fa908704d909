"""The trainer of the vision transformer."""

from promptseg.training.base_trainer import TRAINERS, BaseTrainer


@TRAINERS.register("ViTTrainer")
class ViTTrainer(BaseTrainer):
    encoder = "vit"

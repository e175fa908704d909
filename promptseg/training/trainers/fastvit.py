"""The trainer of the encoder fastvit."""

from promptseg.training.base_trainer import TRAINERS, BaseTrainer


@TRAINERS.register("FastViTTrainer")
class FastViTTrainer(BaseTrainer):
    encoder = "fastvit"

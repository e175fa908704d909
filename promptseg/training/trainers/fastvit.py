"""The trainer of the encoder fastvit."""

from promptseg.training.settings import TrainingSettings
from promptseg.training.trainer import TRAINERS, BaseTrainer


@TRAINERS.register("FastViTTrainer")
class FastViTTrainer(BaseTrainer):
    """Its transformer is twice as wide as ViT's `tiny`, and diverges at the latter's 1e-3."""

    encoder = "fastvit"
    default_settings = TrainingSettings(initial_lr=3e-4)

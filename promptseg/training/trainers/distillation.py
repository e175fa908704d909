"""The trainer of a light encoder that also learns from a trained model (`--teacher`)."""

from promptseg.training.trainer import TRAINERS, BaseTrainer


@TRAINERS.register("DistillationTrainer")
class DistillationTrainer(BaseTrainer):
    encoder = "mobilenet"
    needs_teacher = True

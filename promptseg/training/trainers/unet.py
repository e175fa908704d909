"""The trainer of the U-Net."""

from promptseg.training.settings import TrainingSettings
from promptseg.training.trainer import TRAINERS, BaseTrainer


@TRAINERS.register("UNetTrainer")
class UNetTrainer(BaseTrainer):
    encoder = "unet"
    default_settings = TrainingSettings(
        initial_lr=3e-3,
        focal_gamma=0.0,
        gradient_clip=5.0,
        objects_per_step=2,
        answer_every=4,
        unnamed_fraction=0.5,
        iterations_per_epoch=250,
        epochs=100,
        zoom_out_fraction=0.1,
    )

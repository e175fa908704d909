"""`nnUNetv2_train` for a given time, to be run by the Python of nnU-Net's environment.

    NNUNET_ENVIRONMENT/bin/python benchmarks/nnunet_for_a_time.py SECONDS 4 3d_fullres 0 -device cpu

The seconds are followed by the arguments of nnUNetv2_train.
"""

import json
import sys
import time
from pathlib import Path

from nnunetv2.run.run_training import run_training_entry
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as module


class nnUNetTrainer(module.nnUNetTrainer):
    """nnU-Net's default trainer, stopped after a given time.

    Network, loss, optimizer, augmentation and batches are the default's. The learning rate falls
    as usual, (1 - progress)^0.9 from 0.01, except that progress is the fraction of the time. All
    of the time is spent on training steps: the clock starts when the first batches are ready, and
    validation on patches, which takes a sixth of nnU-Net's steps and is only reported, is omitted.

    The name is that of the default, so that nnUNetv2_predict finds the network.
    """

    time_budget: float  # seconds

    def run_training(self):
        self.on_train_start()
        self.network.train()
        start, elapsed, steps = time.monotonic(), 0.0, 0
        while elapsed < self.time_budget:
            for group in self.optimizer.param_groups:
                group["lr"] = self.initial_lr * (1 - elapsed / self.time_budget) ** 0.9
            loss = self.train_step(next(self.dataloader_train))["loss"]
            steps, elapsed = steps + 1, time.monotonic() - start
            if steps % 25 == 0:
                self.print_to_log_file(f"step {steps}, {elapsed:.0f} s, loss {loss:.4f}")
        self.on_train_end()  # writes checkpoint_final.pth
        trained = {"steps": steps, "seconds": elapsed, "batch_size": self.batch_size}
        Path(self.output_folder, "for_a_time.json").write_text(json.dumps(trained))

    def perform_actual_validation(self, save_probabilities=False):
        """Omitted: nnUNetv2_predict segments the held-out cases afterwards."""


if __name__ == "__main__":
    nnUNetTrainer.time_budget = float(sys.argv.pop(1))
    module.nnUNetTrainer = nnUNetTrainer
    run_training_entry()

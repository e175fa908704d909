"""nnU-Net's trainer for a given time. nnU-Net's own process imports it, by nnUNet_extTrainer."""

import json
import os
import time
from pathlib import Path

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class nnUNetTrainerTimeBudget(nnUNetTrainer):
    """Trains for `nnUNet_time_budget` seconds (environment variable).

    Network, loss, optimizer, augmentation and batches are nnU-Net's defaults, and its learning
    rate falls as always, (1 - progress)^0.9 from 0.01, but progress is the share of the time. All
    of the time is for training steps: the clock starts when the first batches are there, and
    there is no validation on patches between, which only reports and costs a sixth of nnU-Net's
    time.
    """

    def run_training(self):
        self.on_train_start()
        self.network.train()
        budget, steps = float(os.environ["nnUNet_time_budget"]), 0
        start = time.monotonic()
        while (elapsed := time.monotonic() - start) < budget:
            for group in self.optimizer.param_groups:
                group["lr"] = self.initial_lr * (1 - elapsed / budget) ** 0.9
            loss = self.train_step(next(self.dataloader_train))["loss"]
            steps += 1
            if steps % 25 == 0:
                self.print_to_log_file(f"step {steps}, {elapsed:.0f} s, loss {loss:.4f}")
        trained = {"steps": steps, "seconds": elapsed, "batch_size": self.batch_size}
        self.on_train_end()  # writes checkpoint_final.pth
        Path(self.output_folder, "time_budget.json").write_text(json.dumps(trained))

    def perform_actual_validation(self, save_probabilities=False):
        """Left out: nnUNetv2_predict segments the held-back cases afterwards."""

"""promptseg: self-configuring promptable 3D segmentation with automatic prompts.

The names below are the public surface. They are loaded when first used, so that importing the
package, and every worker process that does, stays quick.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

__version__ = "0.1.0"

# oneDNN reads it at torch's first convolution. Its bf16 kernels for Intel's AMX write beyond their
# memory in the gradients of weights (3.12, of torch 2.13): training ended in "double free".
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_FP16")  # the last one without AMX

_HOMES = {
    "AUTO_PROMPTERS": "promptseg.prompts.strategies",
    "AutoPromptOptions": "promptseg.prompts.image_files",
    "Folders": "promptseg.folders",
    "Plans": "promptseg.plans",
    "PredictionOptions": "promptseg.inference.options",
    "Predictor": "promptseg.inference.predictor",
    "Prompts": "promptseg.prompts.types",
    "Proposal": "promptseg.prompts.auto_prompter",
    "RunOptions": "promptseg.training.request",
    "TRAINERS": "promptseg.training.trainers",
    "Tolerances": "promptseg.evaluation.inputs",
    "TrainingRequest": "promptseg.training.request",
    "auto_prompt": "promptseg.prompts.automatic",
    "auto_prompt_files": "promptseg.prompts.image_files",
    "convert_msd": "promptseg.conversion.msd",
    "convert_npz": "promptseg.conversion.npz_dataset",
    "convert_predictions_to_dicom": "promptseg.conversion.dicom_seg",
    "convert_predictions_to_npz": "promptseg.conversion.predictions",
    "evaluate_challenge": "promptseg.evaluation.challenge_files",
    "evaluate_folders": "promptseg.evaluation.evaluate",
    "export_model": "promptseg.export.export_model",
    "find_folders": "promptseg.folders",
    "find_model_folder": "promptseg.folders",
    "import_segvol": "promptseg.segvol.import_weights",
    "load_predictor": "promptseg.inference.load",
    "plan_dataset": "promptseg.experiment_planning.planner",
    "predict_files": "promptseg.inference.batch.predict_files",
    "predict_iterator": "promptseg.inference.batch.predict_files",
    "preprocess_dataset": "promptseg.preprocessing.preprocess",
    "run_demo": "promptseg.demo.run",
    "train": "promptseg.pipeline.train",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'promptseg' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])

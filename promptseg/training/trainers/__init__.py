"""Trainers; each module beside this one registers its own."""

from promptseg.registry import import_modules_of
from promptseg.training.trainer import TRAINERS

import_modules_of(__name__, __path__)

__all__ = ["TRAINERS"]

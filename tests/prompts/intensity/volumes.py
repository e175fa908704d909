"""Shapes and masks for the tests of the array steps."""

from __future__ import annotations

import numpy as np

SHAPES = [(9, 31, 20), (1, 40, 17), (3, 5, 70), (40, 2, 1), (1, 1, 1), (7, 64, 130), (25, 18, 19)]


def random_mask(shape, share, seed=0):
    return np.random.default_rng(seed).random(shape) < share

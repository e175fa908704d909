"""Algorithm 1's thresholds."""

from __future__ import annotations

import numpy as np

from promptseg.prompts.intensity.algorithm import between


def test_thresholds_are_strict_and_not_rounded_to_the_images_type():
    image = np.array([[[1.0, 1.5, 2.0, np.nextafter(np.float32(1), np.float32(2))]]], np.float32)

    assert between(image, 1.0, 2.0).tolist() == [[[False, True, False, True]]]
    # 1 - 1e-12 rounds to 1 in float32, yet 1 lies above it.
    assert between(image, 1 - 1e-12, 2 + 1e-12).all()

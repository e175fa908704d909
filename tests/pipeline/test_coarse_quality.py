import numpy as np
import pytest

from promptseg.inference.prompting import own_prompts
from promptseg.io.dataset import RawCase
from promptseg.io.images import Geometry, write_image
from promptseg.pipeline.coarse_quality import measure_coarse
from tests.inference.fakes import LEVELS, LevelNetwork
from tests.inference.test_coarse import (
    CUBE,
    INDICES,
    SHAPE,
    SPACING,
    cube_image,
    prepared,
    proposal,
)


def test_the_networks_own_boxes_are_measured_on_cases(tmp_path):
    # Of two cases one has the liver where it looks like liver; in the other, what is marked as
    # liver looks like nothing, so that it is not found and counts as 0.
    geometry = Geometry(
        shape=SHAPE, spacing=SPACING, origin=(0, 0, 0), direction=tuple(np.eye(3).ravel())
    )
    cases, truth = [], {}
    for name, level in (("seen", LEVELS[0]), ("unseen", 0.0)):
        write_image(tmp_path / f"{name}_0000.nii.gz", cube_image(level=level), geometry)
        truth[name] = tmp_path / f"{name}.nii.gz"
        write_image(truth[name], (cube_image() > 0).astype(np.uint8), geometry)
        cases.append(RawCase(case_id=name, images=(tmp_path / f"{name}_0000.nii.gz",), label=None))
    model, image = prepared(LevelNetwork())
    box = own_prompts(image.decoder, {"liver": proposal()}, INDICES, SHAPE)["liver"].boxes[0]
    common = np.prod(np.minimum(box[1], CUBE[1]) - np.maximum(box[0], CUBE[0]))
    iou = common / (np.prod(box[1] - box[0]) + np.prod(CUBE[1] - CUBE[0]) - common)
    measured = measure_coarse(model, cases, truth)
    assert measured == {"liver": pytest.approx(iou / 2)} and iou > 0.5  # no case has others
    assert measure_coarse(model, cases[:1], truth) == {"liver": pytest.approx(iou)}
    assert measure_coarse(model, [], truth) == {}

from __future__ import annotations

import pytest

from promptseg.io.geometry import Geometry
from tests.io.test_images import GEOMETRY, SHAPE


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"shape": (4, 5, 8)}, "shape"),
        ({"spacing": (2.5, 0.81, 0.7)}, "spacing"),
        ({"origin": (-12.5, 30.25, 7.2)}, "origin"),
        ({"direction": (1.0, 0, 0, 0, 1, 0, 0, 0, 1)}, "direction"),
    ],
)
def test_each_field_of_a_geometry_is_compared(change, field):
    other = Geometry(**{**GEOMETRY.__dict__, **change})

    assert [name for name, _, _ in GEOMETRY.differences_from(other)] == [field]
    assert GEOMETRY.difference_from(other).startswith(field)


def test_rounding_in_headers_is_no_difference():
    other = Geometry(
        shape=SHAPE,
        spacing=(2.5001, 0.80001, 0.7),
        origin=(-12.49, 30.25, 7.01),  # less than a tenth of a voxel
        direction=(0.80002, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, 1.0),
    )
    assert GEOMETRY.difference_from(other) is None

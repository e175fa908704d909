"""Presets are found by name, and what has none follows the rules."""

import subprocess
import sys

import pytest

from promptseg.plans import KEEPING_SPACING, PRESETS
from promptseg.presets import Preset, find_preset, preset_of
from tests.small_plans import small_plans


def test_a_preset_is_found_by_its_name():
    assert PRESETS[0] == "none" and set(KEEPING_SPACING) < set(PRESETS)
    for name in PRESETS[1:]:
        preset = find_preset(name)
        assert isinstance(preset, Preset) and preset.name == name
        assert preset_of(small_plans(preset=name)) is preset
    assert find_preset("none") is None and preset_of(small_plans()) is None
    with pytest.raises(ValueError, match="unknown preset 'os'; there are none, segvol"):
        find_preset("os")


def test_finding_a_preset_loads_no_torch():
    # Planning's worker processes would each spend seconds and memory on it.
    code = (
        "import sys; from promptseg.presets import find_preset; find_preset('segvol').stride; "
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

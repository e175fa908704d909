"""Networks of every kind with few layers, for tests that take longer with each of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from promptseg.networks.encoders import fastvit, mobilenet, mobilenet_v3, vit


@contextmanager
def shallow_networks() -> Iterator[None]:
    """Build encoders without the repetitions of what they have: two layers, or each block once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(vit.SIZES, "tiny", replace(vit.SIZES["tiny"], layers=2))
        patch.setattr(fastvit, "WIDTHS", replace(fastvit.WIDTHS, layers=2))
        stages = [replace(stage, blocks=min(stage.blocks, 2)) for stage in mobilenet.STAGES]
        patch.setattr(mobilenet, "STAGES", stages)
        stages = [list(dict.fromkeys(stage)) for stage in mobilenet_v3.STAGES]
        patch.setattr(mobilenet_v3, "STAGES", stages)
        yield

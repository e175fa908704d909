"""Networks of every kind, small, for tests that take longer with each layer and channel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from promptseg.networks.encoders import fastvit, mobilenet, mobilenet_v3, residual, unet, vit


@contextmanager
def shallow_networks() -> Iterator[None]:
    """Build encoders without what they only repeat: two layers, each block once, few channels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(vit.SIZES, "tiny", replace(vit.SIZES["tiny"], layers=2))
        patch.setattr(fastvit, "WIDTHS", replace(fastvit.WIDTHS, layers=2))
        stages = [replace(stage, blocks=min(stage.blocks, 2)) for stage in mobilenet.STAGES]
        patch.setattr(mobilenet, "STAGES", stages)
        stages = [list(dict.fromkeys(stage)) for stage in mobilenet_v3.STAGES]
        patch.setattr(mobilenet_v3, "STAGES", stages)
        stages = [replace(stage, channels=stage.channels // 4) for stage in residual.STAGES["tiny"]]
        patch.setitem(residual.STAGES, "tiny", stages)
        patch.setitem(unet.WIDTHS, "tiny", unet.Widths(finest=4, most=16, blocks=1))
        yield

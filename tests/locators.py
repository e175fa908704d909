"""Locators as planning makes them, untrained."""

from __future__ import annotations

import torch

from promptseg.networks.locator import Locator, LocatorNetwork


def make_locator(
    labels: tuple[str, ...] = ("liver", "spleen"),
    spacing: tuple[float, float, float] = (4.0, 2.0, 2.5),
    networks: int = 2,
) -> Locator:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        made = tuple(LocatorNetwork(len(labels), spacing).eval() for _ in range(networks))
    return Locator(labels=labels, spacing=spacing, networks=made)

"""One function over many pieces of a volume, in threads where these pay."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from promptseg.parallel import cores

WORTH_THREADS = 500_000  # voxels; below, starting threads costs more than they save
MOST_THREADS = 8  # beyond this the steps wait for memory, not for cores


def map_pieces(function: Callable[[Any], Any], pieces: Iterable[Any], voxels: int) -> list[Any]:
    """`[function(piece) for piece in pieces]`, on the cores of this process for large volumes.

    Threads pay because NumPy works on a large array without holding Python's lock.

    Args:
        function: called once per piece; pieces must not write to the same memory.
        pieces: slices, indices, ...
        voxels: of the whole volume; decides whether threads are worth it.
    """
    threads = min(MOST_THREADS, _cores())
    if voxels < WORTH_THREADS or threads == 1:
        return [function(piece) for piece in pieces]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, pieces))


def _cores() -> int:
    """Cores this process may use; `OMP_NUM_THREADS` lowers it, as it does for other libraries."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, min(cores(), int(wanted))) if wanted.isdigit() else cores()

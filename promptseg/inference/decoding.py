"""One image's windows to logits: networks and mirrorings averaged, encodings kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from promptseg.inference.queries import flipped, in_window
from promptseg.networks.prompt_encoder import Query, batch_queries
from promptseg.networks.promptable import PromptableNetwork, decode_in_parts
from promptseg.preprocessing.lazy import LazyImage
from promptseg.preprocessing.window import cut_window

ASKED_AT_ONCE = 8  # queries about a whole volume, whose logits are held together


class ImageDecoder:
    """Answers queries about one image, window by window.

    Args:
        image: preprocessed, in the end.
        networks: whose answers are averaged.
        window: voxels, zyx.
        flips: mirrorings to average over, each a tuple of axes.
        device: where the networks are.
        most_encodings: windows whose encodings are kept for further queries, each with those of
            all networks and mirrorings; the oldest window goes first.
    """

    def __init__(
        self,
        image: LazyImage,
        networks: Sequence[PromptableNetwork],
        window: Sequence[int],
        *,
        flips: Sequence[tuple[int, ...]],
        device: str | torch.device,
        most_encodings: int,
    ) -> None:
        self.image = image
        self.networks = networks
        self.window = np.asarray(window)
        self.flips = flips
        self.device = device
        self.most_encodings = most_encodings
        self._encodings: dict[Any, dict[tuple, Any]] = {}  # of each window

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the image, zyx."""
        return self.image.shape[1:]

    def in_window(self, start: Sequence[int], queries: Sequence[Query]) -> tuple[Tensor, Tensor]:
        """Logits (n, z, y, x) and predicted IoU (n,) of queries in the window at a start.

        Args:
            start: of the window, voxels, zyx.
            queries: in the image's voxels.
        """
        corner = np.array(start)
        moved = [in_window(query, corner, self.window) for query in queries]
        return self._decode(
            tuple(start), lambda: cut_window(self.image, self.shape, corner, self.window), moved
        )

    def in_whole(self, queries: Sequence[Query]) -> tuple[Tensor, Tensor]:
        """The same for the whole image resized to one window; queries in voxels of that."""
        size = tuple(self.window.tolist())
        return self._decode("whole", lambda: self.image.resized(size), queries)

    def _decode(
        self, key: Any, cut: Callable[[], np.ndarray], queries: Sequence[Query]
    ) -> tuple[Tensor, Tensor]:
        cut, encodings = cache(cut), self._encodings_of(key)
        logits_sum, iou_sum = 0.0, 0.0
        for index, network in enumerate(self.networks):
            for flip in self.flips:
                if (index, flip) not in encodings:
                    encodings[index, flip] = self._encode(network, cut(), flip)
                mirrored = [flipped(query, flip, self.window) for query in queries]
                prompts = batch_queries(mirrored).to(self.device)
                logits, iou = decode_in_parts(network, encodings[index, flip], prompts)
                logits_sum = logits_sum + logits.flip([axis + 1 for axis in flip])
                iou_sum = iou_sum + iou.sigmoid()
        count = len(self.networks) * len(self.flips)
        return logits_sum / count, iou_sum / count

    def _encodings_of(self, key: Any) -> dict[tuple, Any]:
        """Those of a window that are there, to be added to; another window makes room."""
        if key not in self._encodings:
            while len(self._encodings) >= self.most_encodings:
                self._encodings.pop(next(iter(self._encodings)))
            self._encodings[key] = {}
        return self._encodings[key]

    def _encode(self, network: PromptableNetwork, window: np.ndarray, flip: tuple[int, ...]) -> Any:
        window = torch.from_numpy(np.ascontiguousarray(window))[None].to(self.device)
        window = window.flip([axis + 2 for axis in flip]).float()
        return network.encode(window.contiguous(memory_format=torch.channels_last_3d))

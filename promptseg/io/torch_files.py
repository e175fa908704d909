"""Files written by `torch.save`, read without running any code from them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch


def load_safely(
    path: Path | str, what: str = "file of weights", device: str | torch.device = "cpu"
) -> Any:
    """The tensors and plain values of a file.

    Args:
        path: the file.
        what: what the file should be, for errors.
        device: where the tensors go.

    Raises:
        FileNotFoundError: if it does not exist.
        ValueError: if it is damaged, or holds anything other than tensors and plain values.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such {what}")
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises many kinds, none of which names the file
        if code := re.search(r"GLOBAL (\S+)", str(error)):
            raise ValueError(
                f"{path} cannot be read as a {what}: it holds pickled code ({code[1]}), which is "
                f"never run here; if you trust the file, save its tensors alone under another name"
            ) from error
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{path} cannot be read as a {what}: {why}; is it complete, and written by torch.save?"
        ) from error

"""From a trained model to `encoder.onnx`, `decoder.onnx` and `export.json`."""

from __future__ import annotations

import importlib.util
from contextlib import ExitStack
from pathlib import Path

from promptseg.export.check import check
from promptseg.export.description import describe
from promptseg.export.graphs import write_decoder, write_encoder
from promptseg.files import replacing, write_json
from promptseg.inference.load import load_networks, opened_model

FILES = ("encoder.onnx", "decoder.onnx", "export.json")
PACKAGES = ("onnx", "onnxscript")  # onnxruntime is needed for the check only


def export_model(
    model: Path | str,
    output: Path | str,
    *,
    fold: str | None = None,
    checkpoint: str = "checkpoint_final.pth",
) -> float | None:
    """Write one fold's network as ONNX files, with a description of how to use them.

    The files are written beside those they replace, checked against the network on random
    patches, and moved into place; if anything fails, nothing has changed.

    Args:
        model: folder of a trained model, or a zip file of it.
        output: folder to write to; created if missing.
        fold: `0`, ..., `all`; not needed if only one was trained.
        checkpoint: file name in the fold's folder.

    Returns:
        The largest difference from the network, relative to the largest value; None if
        onnxruntime, which the check needs, is not installed.

    Raises:
        ImportError: with the command that installs what is missing.
        FileNotFoundError: if the model is missing, listing what exists.
        ValueError: if there are several folds to choose from, or the zip file is not of a model.
        RuntimeError: if the network cannot be exported, or the files answer differently.
    """
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise ImportError(
            f"exporting needs {' and '.join(missing)}; pip install onnx onnxscript onnxruntime"
        )
    folds = None if fold is None else [fold]
    with opened_model(Path(model)) as opened:
        networks, plans, _ = load_networks(opened, folds, checkpoint)
    if len(networks) > 1:
        raise ValueError(
            f"{model} has {len(networks)} folds with a {checkpoint}, and a file holds one network; "
            f"choose a fold with -f"
        )
    (network,) = networks
    with ExitStack() as stack:
        # The last to be entered is the first to be moved into place: export.json comes last.
        about, decoder, encoder = (
            stack.enter_context(replacing(Path(output) / name)) for name in reversed(FILES)
        )
        write_decoder(network, plans, write_encoder(network, plans, encoder), decoder)
        origin = {"folder": Path(model).resolve().name, "fold": fold, "checkpoint": checkpoint}
        write_json(about, describe(plans, encoder, decoder, origin))
        difference = check(network, plans, encoder, decoder)
    return difference

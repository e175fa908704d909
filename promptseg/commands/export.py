"""promptseg_export: write a trained model as ONNX files, for use without promptseg."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from promptseg.commands.parsing import add_import, command_parser, run_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = command_parser(__doc__)
    parser.add_argument(
        "-m", "--model", type=Path, required=True, help="model folder, or a zip file of it"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("-f", "--fold", help="fold to export; needed if several were trained")
    parser.add_argument(
        "-chk",
        "--checkpoint",
        default="checkpoint_final.pth",
        help="file in the fold's folder (default: checkpoint_final.pth)",
    )
    add_import(parser)
    return run_command(parser, arguments, _run)


def _run(args: argparse.Namespace) -> int:
    from promptseg.export.export_model import FILES, export_model

    difference = export_model(args.model, args.output, fold=args.fold, checkpoint=args.checkpoint)
    print(f"{', '.join(FILES)} in {args.output}")
    if difference is not None:
        print(f"the files give the network's answers; largest relative difference {difference:.1e}")
    return 0

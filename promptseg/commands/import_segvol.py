"""promptseg_import_segvol: make a model folder from SegVol's released weights, with no dataset."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from promptseg.commands.parsing import command_parser, count, run_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = command_parser(__doc__)
    parser.add_argument(
        "weights", type=Path, help="SegVol_v1.pth, pytorch_model.bin or another SegVol checkpoint"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="model folder to make")
    parser.add_argument(
        "--labels",
        nargs="+",
        default=["object"],
        metavar="NAME",
        help="names for what your boxes and points show (default: object); the weights know no "
        "names",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an earlier import in that folder"
    )
    parser.add_argument(
        "--size",
        choices=("tiny", "small", "base"),
        default="base",
        help="size of the image encoder (default: base, as released)",
    )
    for names, what, default in (
        (("--patch-size", "--window"), "patch size", (32, 256, 256)),
        (("--stride",), "size of one token", (4, 16, 16)),
    ):
        parser.add_argument(
            *names,
            nargs=3,
            type=count,
            default=default,
            metavar=("Z", "Y", "X"),
            help=f"{what} of the weights in voxels, zyx "
            f"(default: {' '.join(map(str, default))}, as released)",
        )
    return run_command(parser, arguments, _run)


def _run(args: argparse.Namespace) -> int:
    from promptseg.segvol.import_weights import import_segvol

    report = import_segvol(
        args.weights,
        args.output,
        labels=args.labels,
        size=args.size,
        patch_size=args.patch_size,
        stride=args.stride,
        overwrite=args.overwrite,
    )
    model = shlex.quote(str(args.output))
    print(report.summary())
    print(
        f"\nmodel folder: {args.output}\n"
        f"It answers boxes and points, not names: SegVol reads names with CLIP's text model, "
        f"which is not loaded; a label without a box or point is reported as no_box.\n"
        f"  promptseg_predict -m {model} -i IMAGES -o PREDICTIONS --auto-prompt intensity\n"
        f"  promptseg_predict -m {model} -i IMAGES -o PREDICTIONS --prompts prompts.json"
    )
    return 0

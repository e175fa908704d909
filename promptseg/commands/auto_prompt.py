"""promptseg_auto_prompt: propose boxes for any images, without model or dataset."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from promptseg.commands.parsing import (
    add_import,
    add_processes,
    command_parser,
    run_command,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = command_parser(__doc__)
    parser.add_argument(
        "-i",
        "--input",
        type=Path,
        required=True,
        metavar="PATH",
        help="image file, DICOM folder, or folder of image files and DICOM folders",
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE", help="JSON file to write"
    )
    parser.add_argument(
        "--strategy",
        default="intensity",
        metavar="NAME",
        help="strategy (default: intensity, the paper's Algorithm 1)",
    )
    parser.add_argument(
        "--modality",
        help="modality of all images: CT, MRI, PET or US (default: guessed from the intensities "
        "of each image)",
    )
    parser.add_argument(
        "--window",
        help="CT window: 'soft tissue' (the default for CT), lung, brain or bone",
    )
    parser.add_argument(
        "--label",
        default="object",
        metavar="NAME",
        help="label name of the boxes (default: object)",
    )
    parser.add_argument(
        "--png",
        action="store_true",
        help="also draw the boxes of each image, into a folder beside the output",
    )
    add_processes(parser, default=0)
    parser.add_argument(
        "--set",
        dest="parameters",
        type=_parameter,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="parameter of the strategy, such as sigma=1.5 or margin=0; may be given repeatedly",
    )
    add_import(parser)
    return run_command(parser, arguments, _run)


def _run(args: argparse.Namespace) -> int:
    from promptseg.prompts.image_files import AutoPromptOptions, auto_prompt_files

    options = AutoPromptOptions(
        strategy=args.strategy,
        parameters=dict(args.parameters),
        modality=args.modality,
        window=args.window,
        label=args.label,
    )
    content = auto_prompt_files(
        args.input, args.output, options, png=args.png, processes=args.processes
    )
    for case_id, labels in content["cases"].items():
        for prompts in labels.values():
            boxes = [[list(map(int, corner)) for corner in box] for box in prompts["boxes"]]
            print(f"{case_id}: {boxes or 'no box'} ({prompts['reason']})")
    for case_id, message in content["failed"].items():
        print(f"failed: {case_id}: {message}")
    print(f"boxes are lower and upper corners, zyx, upper exclusive; written to {args.output}")
    return 1 if content["failed"] else 0


def _parameter(text: str) -> tuple[str, object]:
    """The two sides of `name=value`; the value is read as JSON where possible, else as text."""
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value

"""Planning and preprocessing a dataset: promptseg_plan against nnU-Net, in turn, in one run.

    python benchmarks/planning.py --raw RAW_ROOT -d 4 --nnunet PATH/TO/NNUNET_ENVIRONMENT/bin

Each tool runs in its own environment, with two processes, into an empty folder every time, its
start-up included. nnU-Net: `nnUNetv2_plan_and_preprocess -c 3d_fullres -np 2
--verify_dataset_integrity`. promptseg also fits and cross-validates its automatic prompts, but for
`locator`, whose training takes minutes (`--locator` includes it).
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from commands import HERE, Runner, Stopped
from nnunet import NNUNet

from promptseg.folders import find_dataset_folder


def measure(args: argparse.Namespace, runner: Runner) -> dict[str, list[float]]:
    """Wall seconds of each run, by tool."""
    raw = args.raw.absolute()
    seconds: dict[str, list[float]] = {"promptseg": [], "nnU-Net": []}
    for _ in range(args.runs):
        with tempfile.TemporaryDirectory() as scratch:
            command = [HERE / "promptseg_plan", "-d", args.dataset, "-np", 2]
            command += ["--raw", raw, "--preprocessed", Path(scratch) / "preprocessed"]
            command += [] if args.locator else ["--no-locator"]
            seconds["promptseg"].append(runner.run("plan", command)["wall_seconds"])
        if args.nnunet:
            with tempfile.TemporaryDirectory() as scratch:
                folder = Path(scratch)
                shutil.copytree(raw, folder / "raw")  # nnU-Net wants to write beside its input
                dataset = find_dataset_folder(folder / "raw", args.dataset, "name it with --raw")
                nnunet = NNUNet(programs=args.nnunet, dataset=dataset, work=folder)
                used = nnunet.plan(runner, "--verify_dataset_integrity")
                seconds["nnU-Net"].append(used["wall_seconds"])
        print({name: [round(s, 1) for s in values] for name, values in seconds.items()}, flush=True)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--raw", type=Path, required=True, help="folder of raw datasets")
    parser.add_argument("-d", "--dataset", default="4")
    parser.add_argument("--nnunet", type=Path, help="bin folder of nnU-Net's environment")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--locator", action="store_true", help="train the locator, too")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as logs:
        seconds = measure(args, Runner(Path(logs)))
    ours = statistics.median(seconds["promptseg"])
    print(f"promptseg: median {ours:.1f} s of {args.runs}")
    if args.nnunet:
        theirs = statistics.median(seconds["nnU-Net"])
        ratios = [a / b for a, b in zip(seconds["promptseg"], seconds["nnU-Net"], strict=True)]
        print(
            f"nnU-Net:   median {theirs:.1f} s; ratio of the medians {ours / theirs:.2f}, "
            f"run by run {min(ratios):.2f} to {max(ratios):.2f}"
        )


if __name__ == "__main__":
    try:
        main()
    except Stopped:
        sys.exit(143)

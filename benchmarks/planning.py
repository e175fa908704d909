"""Planning and preprocessing a dataset: promptseg_plan against nnU-Net, in turn, in one run.

    python benchmarks/planning.py --raw RAW_ROOT -d 4 --nnunet PATH/TO/NNUNET_ENVIRONMENT/bin

Each tool runs in its own environment, with two processes, into an empty folder every time, its
start-up included. nnU-Net: `nnUNetv2_plan_and_preprocess -c 3d_fullres -np 2
--verify_dataset_integrity`. promptseg also fits and cross-validates its automatic prompts.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def timed(command: list[str], environment: dict[str, str], log: Path) -> float:
    """Wall seconds of a command; its output goes to a file that is shown when it fails."""
    with open(log, "w") as output:
        start = time.perf_counter()
        code = subprocess.run(
            command, env={**os.environ, **environment}, stdout=output, stderr=output
        ).returncode
        seconds = time.perf_counter() - start
    if code:
        sys.exit(f"{command[0]} failed:\n{log.read_text()[-2000:]}")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--raw", type=Path, required=True, help="folder of raw datasets")
    parser.add_argument("-d", "--dataset", default="4")
    parser.add_argument("--nnunet", type=Path, help="bin folder of nnU-Net's environment")
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    raw, here = str(args.raw.absolute()), Path(sys.executable).parent

    seconds: dict[str, list[float]] = {"promptseg": [], "nnU-Net": []}
    for _ in range(args.runs):
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            command = [str(here / "promptseg_plan"), "-d", args.dataset, "-np", "2"]
            command += ["--raw", raw, "--preprocessed", str(folder / "preprocessed")]
            seconds["promptseg"].append(timed(command, {}, folder / "log.txt"))
        if args.nnunet:
            with tempfile.TemporaryDirectory() as scratch:
                folder = Path(scratch)
                shutil.copytree(raw, folder / "raw")  # nnU-Net wants to write beside its input
                environment = {f"nnUNet_{k}": str(folder / k) for k in ("preprocessed", "results")}
                environment |= {"nnUNet_raw": str(folder / "raw")}
                command = [str(args.nnunet / "nnUNetv2_plan_and_preprocess"), "-d", args.dataset]
                command += ["-c", "3d_fullres", "-np", "2", "--verify_dataset_integrity"]
                seconds["nnU-Net"].append(timed(command, environment, folder / "log.txt"))
        print({name: [round(s, 1) for s in values] for name, values in seconds.items()}, flush=True)

    ours = statistics.median(seconds["promptseg"])
    print(f"promptseg: median {ours:.1f} s of {args.runs}")
    if args.nnunet:
        theirs = statistics.median(seconds["nnU-Net"])
        print(f"nnU-Net:   median {theirs:.1f} s; ratio {ours / theirs:.2f}")


if __name__ == "__main__":
    main()

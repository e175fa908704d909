"""How fast is a folder of images segmented? promptseg_predict and nnU-Net take turns.

    python benchmarks/predict.py --model MODEL_FOLDER --raw RAW_ROOT -d 4 \
        --nnunet PATH/TO/NNUNET_ENVIRONMENT/bin

The images are the validation cases of fold 0. Each tool runs in its own environment on the CPU,
writes to an empty folder every time, and is timed including its start-up: `promptseg_predict
--auto-prompt` and `nnUNetv2_predict -c 3d_fullres -f 0 -device cpu`, both with their defaults,
which for nnU-Net include mirroring at test time on all three axes.

nnU-Net's model is in the folder `--nnunet-work`, where it is planned, preprocessed and built by
nnU-Net's own code if it does not exist yet. It is not trained, as the time does not depend on the
weights.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from commands import HERE, Runner, Stopped
from nnunet import NNUNet

from promptseg.folders import find_dataset_folder
from promptseg.io.dataset import read_raw_dataset
from promptseg.training.splits import fold_cases, make_splits

UNTRAINED = """
import json, os, sys, torch
from nnunetv2.run.run_training import get_trainer_from_args
trainer = get_trainer_from_args(sys.argv[1], "3d_fullres", 0, device=torch.device("cpu"))
trainer.initialize()
trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()  # which axes to mirror
assert len(trainer.inference_allowed_mirroring_axes) == 3
trainer.save_checkpoint(os.path.join(trainer.output_folder, "checkpoint_final.pth"))
for name, content in (("plans", trainer.plans_manager.plans), ("dataset", trainer.dataset_json)):
    with open(os.path.join(trainer.output_folder_base, name + ".json"), "w") as file:
        json.dump(content, file)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="model folder of promptseg")
    parser.add_argument("--raw", type=Path, required=True, help="folder of raw datasets")
    parser.add_argument("-d", "--dataset", default="4")
    parser.add_argument("--nnunet", type=Path, help="bin folder of nnU-Net's environment")
    parser.add_argument("--nnunet-work", type=Path, help="folder for nnU-Net's plans and model")
    parser.add_argument("--cases", type=int, help="number of cases to segment (default: all)")
    parser.add_argument("--runs", type=int, default=3, help="of each tool (default: %(default)s)")
    parser.add_argument(
        "--options",
        nargs=argparse.REMAINDER,
        default=[],
        help="further flags of promptseg_predict; must come last",
    )
    args = parser.parse_args()
    if args.nnunet and not args.nnunet_work:
        parser.error("--nnunet needs --nnunet-work, a folder to keep nnU-Net's model in")
    dataset = find_dataset_folder(args.raw.absolute(), args.dataset, "name its folder with --raw")

    with tempfile.TemporaryDirectory() as scratch:
        images = Path(scratch) / "images"
        count = _link_images(dataset, images, args.cases)
        command = [HERE / "promptseg_predict", "-m", args.model, "--auto-prompt", "-device", "cpu"]
        tools = {"promptseg": ([*command, *args.options], {})}
        if args.nnunet:
            work = args.nnunet_work.absolute()
            nnunet = NNUNet(programs=args.nnunet, dataset=dataset, work=work)
            _build_if_missing(nnunet)
            tools["nnU-Net"] = (nnunet.predict_command(0), nnunet.environment)
        runner = Runner(Path(scratch) / "logs")
        spent: dict[str, list[tuple[float, float]]] = {name: [] for name in tools}
        for _ in range(args.runs):
            for name, (command, environment) in tools.items():
                with tempfile.TemporaryDirectory(dir=scratch) as output:
                    command = [*command, "-i", images, "-o", output]
                    used = runner.run(name, command, environment=environment)
                    spent[name].append((used["wall_seconds"], used["cpu_seconds"]))
                    written = len(list(Path(output).glob("*.nii.gz")))
                    assert written == count, f"{name} wrote {written} of {count} segmentations"
            last = {name: [round(s, 1) for s in values[-1]] for name, values in spent.items()}
            print(f"wall and CPU seconds: {last}", flush=True)

    medians = {
        name: [statistics.median(s) for s in zip(*v, strict=True)] for name, v in spent.items()
    }
    for name, (wall, processor) in medians.items():
        print(
            f"{name}: medians of {args.runs}: {wall:.1f} s, {wall / count:.3f} s per case; "
            f"CPU {processor:.1f} s"
        )
    if args.nnunet:
        ratios = [n / p for n, p in zip(medians["nnU-Net"], medians["promptseg"], strict=True)]
        print(
            f"{count} cases: promptseg is {ratios[0]:.1f} times as fast "
            f"and uses 1/{ratios[1]:.1f} of the CPU time"
        )


def _link_images(dataset: Path, folder: Path, cases: int | None) -> int:
    """Link the images of fold 0's validation cases into a folder; returns the number of cases."""
    by_name = {case.case_id: case for case in read_raw_dataset(dataset).cases}
    _, validation = fold_cases(make_splits(list(by_name)), "0", list(by_name))
    folder.mkdir()
    for case_id in validation[:cases]:
        for image in by_name[case_id].images:
            (folder / image.name).symlink_to(image)
    return len(validation[:cases])


def _build_if_missing(nnunet: NNUNet) -> None:
    """Make a 3d_fullres model of the dataset with the initial weights of training."""
    if not (nnunet.model / "fold_0" / "checkpoint_final.pth").is_file():
        runner = Runner(nnunet.work / "logs")
        nnunet.plan(runner)
        command = [nnunet.programs / "python", "-c", UNTRAINED, nnunet.dataset.name]
        runner.run("build", command, environment=nnunet.environment)


if __name__ == "__main__":
    try:
        main()
    except Stopped:
        sys.exit(143)

"""Several processes that share each batch do what one process does with all of it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import torch.multiprocessing
from torch import nn

from promptseg.commands.train import main
from promptseg.files import read_json
from promptseg.parallel import cores
from promptseg.plans import load_plans
from promptseg.preprocessing.dataset import PreprocessedDataset
from promptseg.training import distributed
from promptseg.training.checkpoint import load_checkpoint
from promptseg.training.dataset import TrainingSteps
from promptseg.training.settings import TrainingSettings
from tests.training.rank import in_each_of_two
from tests.training.test_training import wait_for, weights

STEPS = 20
FLAGS = (
    "-d",
    "7",
    "-tr",
    "MobileNetTrainer",
    "-f",
    "all",
    "-np",
    "0",
    "-device",
    "cpu",
    "--precision",
    "fp32",
)
# with this seed rounding decides no click, and nothing of what is meant
LENGTH = ("--seed", "3", "--epochs", "4", "--iterations", "5")
RECORDING = ("--import", "tests.training.recorded_losses")
FOLD = "Dataset007_Boxes/MobileNetTrainer__PromptSegPlans__3d/fold_all"


def start(preprocessed, results, *command, flags=(*FLAGS, *LENGTH), threads="1"):
    """A command of python in a process of its own; losses go to results/0.txt, 1.txt."""
    roots = ("--preprocessed", str(preprocessed), "--results", str(results))
    return subprocess.Popen(
        [sys.executable, *command, *flags, *RECORDING, *roots],
        env={**os.environ, "OMP_NUM_THREADS": threads, "RECORDED_LOSSES": f"{results}/"},
        cwd=Path(__file__).parents[2],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )


def test_two_processes_have_the_losses_of_one_also_when_they_are_stopped(planned, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir(), two.mkdir()
    process = start(planned.preprocessed, one, "-m", "promptseg", "train")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors

    process = start(planned.preprocessed, two, "-m", "promptseg", "train", "-num_gpus", "2")
    wait_for(lambda: (two / FOLD / "checkpoint_latest.pth").is_file(), process)
    process.send_signal(signal.SIGTERM)  # to the launcher alone, as a cluster does
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1, errors
    assert errors.count("stopped before the end; the same command with --c continues") == 1
    assert 5 <= load_checkpoint(two / FOLD / "checkpoint_latest.pth")["step"] < STEPS

    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    process = start(planned.preprocessed, two, *launcher, "-m", "promptseg", "train", "--c")
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert printed.count("trained: ") == 1  # the first process alone speaks

    expected = np.loadtxt(one / "0.txt")
    assert len(expected) == STEPS and np.ptp(expected) > 0.05
    for rank in range(2):
        # sums are rounded in another order, and Adam magnifies that a little
        np.testing.assert_allclose(np.loadtxt(two / f"{rank}.txt"), expected, rtol=1e-4)
    alone, shared = weights(one / FOLD), weights(two / FOLD)
    assert alone.keys() == shared.keys()
    # Adam goes by signs: a weight with hardly a gradient goes where rounding sends it, some steps
    # of 1e-3. They are few: biases, which were 0, differ by 0.3 % of what they are now.
    off = {name: (shared[name] - alone[name]).double() for name in alone}
    assert all((o.abs() < 5e-3).all() for o in off.values())  # not of NaN
    apart = {name: float(o.norm() / alone[name].double().norm()) for name, o in off.items()}
    assert max(apart.values()) < 0.02, max(apart.items(), key=lambda item: item[1])
    written = {path.name for path in (two / FOLD).iterdir()}
    assert written == {path.name for path in (one / FOLD).iterdir()}


@pytest.mark.skipif(sys.platform != "linux" or cores() < 2, reason="one process trains alone")
def test_on_a_cpu_two_processes_train_and_end_with_the_one_that_started_them(planned, tmp_path):
    long = ("--epochs", "1000", "--iterations", "2")
    command = ("-m", "promptseg", "train")
    process = start(planned.preprocessed, tmp_path, *command, flags=(*FLAGS, *long), threads="2")
    recorded = [tmp_path / f"{rank}.txt" for rank in range(2)]
    wait_for(lambda: all(f.is_file() and len(f.read_text().split()) > 2 for f in recorded), process)
    started = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate(timeout=60)
    _, alive = psutil.wait_procs(started, timeout=60)
    assert not alive
    stopped = load_checkpoint(tmp_path / FOLD / "checkpoint_latest.pth")["step"]

    flags = (*FLAGS, "--epochs", str(stopped // 2 + 1), "--iterations", "2", "--c")
    process = start(planned.preprocessed, tmp_path, *command, flags=flags)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert f"from step {stopped}" in errors


@pytest.mark.parametrize(
    ("images", "length", "environment", "expected"),
    [
        (2, {"seconds": None, "steps": 5000}, {}, min(2, cores())),
        (2, {"seconds": 1200.0, "steps": 10}, {}, min(2, cores())),
        (1, {"seconds": 1200.0, "steps": 5000}, {}, 0),
        (2, {"seconds": 60.0, "steps": 5000}, {}, 0),
        (2, {"seconds": None, "steps": 100}, {}, 0),
        (2, {"seconds": None, "steps": 5000}, {"OMP_NUM_THREADS": "1"}, 0),
        (2, {"seconds": None, "steps": 5000}, {"WORLD_SIZE": "2"}, 0),
    ],
)
def test_a_cpu_is_shared_by_a_process_for_each_image(
    images, length, environment, expected, monkeypatch
):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if sys.platform != "linux" or expected == 1:
        expected = 0
    assert distributed.processes_on_cpu(images, **length) == expected


def test_numbers_that_processes_exchange(tmp_path):
    with socket.socket() as found:  # a port that is free now
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    torch.multiprocessing.spawn(in_each_of_two, (port, str(tmp_path)), nprocs=2)
    one, two = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert one.pop("images") + two.pop("images") == [0, 1, 2, 3, 4]
    assert one == two
    # answers w.x + b with all weights 0.5: 2, 1.5, 2.75, 3; the second part of the network
    # answers 1 and has the weight 3/4
    answers, inputs = np.array([2, 1.5, 2.75, 3]), [[1, 2], [3, -1], [0.5, 4], [-2, 7]]
    assert one["mean"] == pytest.approx((answers**2).mean() + 0.75)
    np.testing.assert_allclose(one["gradient"], (2 * answers) @ inputs / 4)
    assert one["gradient here"] == pytest.approx(0.75)
    assert one["sums"] == [4, -3] and one["slope"] == [8, -6]
    assert one["agreed"] == (10.0, True) and one["no stop"] == (0.5, False)
    assert one["from first"] == {"rank": 0}
    assert one["weights"] == [0.0]


def test_shares_of_a_batch_are_the_batch(planned):
    folder = planned.preprocessed / "Dataset007_Boxes"
    plans = load_plans(folder / "PromptSegPlans.json")
    boxes = read_json(folder / "PromptSegPlans_auto_prompt_boxes.json")
    cases = folder / plans.data_identifier
    settings = TrainingSettings(seed=4, objects_per_step=5)
    arguments = (cases, PreprocessedDataset(cases).case_ids, plans, settings, boxes)
    for step in (0, 3):
        whole = TrainingSteps(*arguments)[step]
        parts = [TrainingSteps(*arguments, images)[step] for images in ([0], [1])]
        for name in ("image", "segmentation", "targets"):
            joined = torch.cat([getattr(part, name) for part in parts])
            assert torch.equal(joined, getattr(whole, name))
        assert torch.equal(torch.cat([p.prompts.boxes for p in parts]), whole.prompts.boxes)
        assert [int(p.prompts.image_index.max()) for p in parts] == [0, 0]
        # corrections are drawn alike, too
        assert [p.seed for p in parts] == [whole.seed] * 2
        drawn = [g.random() for p in parts for g in p.generators()]
        assert drawn == [g.random() for g in whole.generators()]
        assert len(set(drawn)) == len(drawn) == len(whole.prompts)


def test_one_process_is_the_first_and_takes_everything():
    loss, network = torch.tensor(3.0, requires_grad=True), nn.Linear(1, 1)
    assert distributed.join("cuda:1") == "cuda:1"
    assert distributed.is_rank_zero() and distributed.process_count() == 1
    assert list(distributed.own_images(3)) == [0, 1, 2]
    assert distributed.mean_of_all(loss, 4) is loss and distributed.sum_of_all(loss) is loss
    assert distributed.agree(2.5, True) == (2.5, True)
    assert distributed.run_on_rank_zero(lambda: "made") == "made"
    distributed.sum_gradients(network)
    distributed.broadcast_weights(network, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-num_gpus", "0"], "-num_gpus must be 1 or more, got 0"),
        (["-num_gpus", "-2"], "-num_gpus must be 1 or more, got -2"),
        (["-num_gpus", "99"], r"-num_gpus 99, but torch \S+ can use \d+ GPUs of this machine"),
        (["-num_gpus", "99", "-device", "cuda"], "or -device cpu to have 99 processes on the CPU"),
        (["-num_gpus", "2", "-device", "cuda:1"], "-device cuda:1 names another device"),
        (["-num_gpus", "2", "-device", "mps"], "set CUDA_VISIBLE_DEVICES to choose among the GPUs"),
    ],
)
def test_processes_that_cannot_be_had_are_refused(arguments, message, capsys):
    assert main(["-d", "7", *arguments]) == 1
    assert re.search(message, capsys.readouterr().err)


def test_another_number_than_torchrun_started_is_refused(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert distributed.processes_to_start(2) == 0
    assert distributed.processes_to_start(None) == 0
    with pytest.raises(ValueError, match="-num_gpus 4, but torchrun started 2 processes"):
        distributed.processes_to_start(4)
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert distributed.processes_to_start(4) == 4
    assert distributed.processes_to_start(1) == 0


def test_more_processes_than_gpus_are_refused(monkeypatch):
    for name, value in {"WORLD_SIZE": "99", "LOCAL_WORLD_SIZE": "99", "LOCAL_RANK": "98"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=r"99 processes for \d+ GPUs of this machine; start at"):
        distributed.join("cuda")

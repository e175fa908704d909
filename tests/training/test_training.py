"""Whole runs on a small synthetic dataset: determinism, resuming, killing, stopping."""

import csv
import dataclasses
import itertools
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from promptseg.commands.train import main
from promptseg.experiment_planning.planner import plan_dataset
from promptseg.files import read_json, write_json
from promptseg.folders import Folders
from promptseg.io.images import read_segmentation, write_image
from promptseg.pipeline import validate_fold
from promptseg.training import batches, distributed
from promptseg.training.checkpoint import load_checkpoint
from promptseg.training.settings import TrainingSettings, extended
from promptseg.training.step import Learner
from promptseg.training.trainer import BaseTrainer
from promptseg.training.trainers import TRAINERS
from promptseg.training.validation import WAYS
from tests.synthetic import write_raw_dataset
from tests.trained import train

SHORT = {"epochs": 3, "iterations_per_epoch": 3, "seed": 5}


def weights(folder, name="final"):
    return load_checkpoint(folder / f"checkpoint_{name}.pth")["network"]


def assert_same_weights(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key


def folders_for(planned, tmp_path):
    return dataclasses.replace(planned, results=tmp_path)


BUDGET = 6.0  # seconds


def in_one_step(folders):
    """Flags of the command for epochs of one step, in this process."""
    roots = ["--preprocessed", str(folders.preprocessed), "--results", str(folders.results)]
    return ["-d", "7", "-np", "0", "-device", "cpu", "--iterations", "1", *roots]


@pytest.fixture(scope="module")
def uninterrupted(planned, tmp_path_factory):
    """Fold folder of one run with `SHORT` settings and samples made in the process itself."""
    results = tmp_path_factory.mktemp("uninterrupted")
    model = train(7, folders_for(planned, results), fold="0", processes=0, **SHORT)
    return model / "fold_0"


def test_a_run_writes_all_that_it_should(uninterrupted):
    names = {path.name for path in uninterrupted.iterdir()}
    assert names == {
        "checkpoint_best.pth",
        "checkpoint_final.pth",
        "checkpoint_latest.pth",
        "dice_samples.json",
        "locator.npz",
        "metrics.csv",
        "progress.png",
        "prompt_strategies.json",
        "training_log.txt",
        "validation",
    }
    beside = {path.name for path in uninterrupted.parent.iterdir()}
    assert beside == {"fold_0", "plans.json", "dataset.json", "dataset_fingerprint.json"}
    validation = {path.name for path in (uninterrupted / "validation").iterdir()}
    assert {"summary.json", "predict_report.json", "prompts_used.json"} <= validation
    assert sum(name.endswith(".nii.gz") for name in validation) == 2  # 6 cases: folds of 2, 1, ...


def test_metrics_have_a_row_for_each_epoch_with_all_ways_of_asking(uninterrupted):
    with open(uninterrupted / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    assert [row["step"] for row in rows] == ["3", "6", "9"]
    for row in rows:
        for column in ("train_loss", "val_loss", *(f"val_dice_{way}" for way in (*WAYS, "clicks"))):
            assert float(row[column]) >= 0


def test_a_run_with_worker_processes_ends_in_the_same_weights(planned, tmp_path, uninterrupted):
    model = train(7, folders_for(planned, tmp_path), fold="0", processes=2, **SHORT)
    assert_same_weights(weights(model / "fold_0"), weights(uninterrupted))


def test_another_seed_ends_in_other_weights(planned, tmp_path, uninterrupted):
    changed = {**SHORT, "seed": 6}
    model = train(7, folders_for(planned, tmp_path), fold="0", processes=0, **changed)
    name = "name_head.classes.weight"
    assert not torch.equal(weights(model / "fold_0")[name], weights(uninterrupted)[name])


def test_a_finished_run_can_be_extended_and_only_by_continuing(planned, tmp_path):
    folders = folders_for(planned, tmp_path)
    train(7, folders, fold="all", processes=0, **{**SHORT, "epochs": 1})
    with pytest.raises(FileExistsError, match="continue with --c, or start again"):
        train(7, folders, fold="all", processes=0, **SHORT)

    model = train(7, folders, fold="all", processes=0, resume=True, epochs=2)

    content = load_checkpoint(model / "fold_all" / "checkpoint_final.pth")
    assert content["step"] == 6
    assert [row["epoch"] for row in content["rows"]] == [0, 1]
    assert content["settings"]["seed"] == 5  # kept from the first run


def start_command(planned, results, *arguments):
    """promptseg_train in a process of its own, as a user would have it."""
    code = "import sys; from promptseg.commands.train import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "-d", "7", "-f", "0", *arguments]
    roots = ["--preprocessed", str(planned.preprocessed), "--results", str(results)]
    # the same number of threads as in this process: sums of floats depend on it
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.Popen(
        command + roots,
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )


def wait_for(condition, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


FLAGS = ("--epochs", "3", "--iterations", "3", "--seed", "5")


@pytest.mark.parametrize(
    ("number", "workers"), [(signal.SIGKILL, "1"), (signal.SIGTERM, "0"), (signal.SIGINT, "1")]
)
def test_a_killed_run_continues_to_the_weights_of_an_uninterrupted_one(
    planned, tmp_path, uninterrupted, number, workers
):
    fold = tmp_path / "Dataset007_Boxes" / "UNetTrainer__PromptSegPlans__3d" / "fold_0"
    process = start_command(planned, tmp_path, *FLAGS, "-np", workers)
    # the first epoch is in `latest`; the next one has begun when the signal comes, to the whole
    # process group as from a terminal or a cluster
    wait_for(lambda: (fold / "checkpoint_latest.pth").is_file(), process)
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 1), errors
    if number != signal.SIGKILL:
        assert "the same command with --c continues" in errors
    assert not (fold / "checkpoint_final.pth").exists()
    stopped_at = load_checkpoint(fold / "checkpoint_latest.pth")["step"]
    assert 3 <= stopped_at < 9

    process = start_command(planned, tmp_path, *FLAGS, "-np", "0", "--c")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors

    assert_same_weights(weights(fold), weights(uninterrupted))
    with open(fold / "metrics.csv", newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["3", "6", "9"]


def test_continuing_what_never_began_begins_it(planned, tmp_path, caplog):
    folders = folders_for(planned, tmp_path)
    model = train(7, folders, fold="all", processes=0, resume=True, **{**SHORT, "epochs": 1})
    assert "no checkpoint to continue; training starts from step 0" in caplog.text
    assert load_checkpoint(model / "fold_all" / "checkpoint_final.pth")["step"] == 3


def test_starting_again_removes_the_old_network_first(planned, tmp_path, monkeypatch):
    folders = folders_for(planned, tmp_path)
    model = train(7, folders, fold="all", processes=0, **{**SHORT, "epochs": 1})
    leftover = model / "fold_all" / ".writing_abc"
    leftover.mkdir()
    monkeypatch.setattr(BaseTrainer, "run", lambda trainer: False)  # stopped at once
    assert train(7, folders, fold="all", processes=0, overwrite=True, **SHORT) is None
    names = {path.name for path in (model / "fold_all").iterdir()}
    assert not any(name.endswith(".pth") for name in names) and leftover.name not in names


def test_epochs_given_to_a_timed_run_replace_its_time():
    timed = TrainingSettings(time_budget=60.0, epochs=200)
    assert extended(timed, {"epochs": 5, "time_budget": None}) == TrainingSettings(epochs=5)
    assert extended(timed, {"epochs": None, "time_budget": 90.0}).time_budget == 90.0
    assert extended(timed, {"epochs": None, "time_budget": None}) == timed


def test_a_validation_with_failures_is_made_again_and_one_without_is_kept(
    planned, uninterrupted, tmp_path
):
    results = tmp_path / "results"
    shutil.copytree(uninterrupted.parents[2], results)
    folders = folders_for(planned, results)
    path = results / uninterrupted.relative_to(uninterrupted.parents[2]) / "validation/summary.json"
    whole = read_json(path)

    write_json(path, {**whole, "failures": [], "kept": True})
    train(7, folders, fold="0", processes=0, resume=True)
    assert read_json(path)["kept"]

    write_json(path, {**whole, "failures": ["case_1: the disk was full"]})
    train(7, folders, fold="0", processes=0, resume=True)
    assert read_json(path)["failures"] == []
    assert read_json(path)["foreground_mean"] == whole["foreground_mean"]


def test_validation_uses_boxes_of_fits_that_did_not_see_the_case(planned, uninterrupted):
    folder = planned.preprocessed / "Dataset007_Boxes"
    held_out = read_json(folder / "PromptSegPlans_auto_prompt_boxes.json")
    validation = uninterrupted / "validation"
    used = read_json(validation / "prompts_used.json")["cases"]
    assert len(used) == 2
    for case_id, labels in used.items():
        for label, prompts in labels.items():
            assert prompts["boxes"] == held_out[case_id].get(label, [])
    summary = read_json(validation / "summary.json")
    assert summary["missing"] == [] and len(summary["metric_per_case"]) == 2


def test_a_time_budget_ends_the_run_and_brings_the_rate_to_zero(planned, tmp_path):
    started = time.monotonic()
    model = train(
        7, folders_for(planned, tmp_path), fold="all", processes=0, time_budget=BUDGET,
        iterations_per_epoch=1,
    )  # fmt: skip
    content = load_checkpoint(model / "fold_all" / "checkpoint_final.pth")
    assert content["seconds"] >= BUDGET
    assert time.monotonic() - started < 60
    # The rate follows the clock and falls after the warm-up: that of a row's last step, which
    # began before the row's seconds were taken and after those of the row before, lies between
    # the rates for these seconds.
    settings = TrainingSettings.from_json(content["settings"])
    rows = content["rows"]
    assert all(0 < row["learning_rate"] <= settings.initial_lr for row in rows)
    after_warmup = [
        pair for pair in itertools.pairwise(rows) if pair[0]["seconds"] > BUDGET * settings.warmup
    ]
    assert after_warmup
    for before, row in after_warmup:
        slowest = settings.learning_rate(row["seconds"] / BUDGET, 0)
        fastest = settings.learning_rate(before["seconds"] / BUDGET, 0)
        assert slowest <= row["learning_rate"] <= fastest < settings.initial_lr


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"dataset": 8}, FileNotFoundError, "run `promptseg_plan -d 8` first"),
        ({"trainer": "SwinTrainer"}, ValueError, "unknown trainer 'SwinTrainer'; registered: .*V"),
        ({"fold": "9"}, ValueError, "unknown fold '9'"),
        ({"recipe": "best"}, ValueError, "unknown recipe 'best'"),
        ({"epochs": -1}, ValueError, "epochs must be positive"),
        ({"plans_name": "Other"}, FileNotFoundError, "`promptseg_plan -d ID` writes them"),
    ],
)
def test_wrong_requests_are_refused_with_what_to_do(planned, tmp_path, changes, error, message):
    arguments = {"dataset": 7, "processes": 0, **changes}
    with pytest.raises(error, match=message):
        train(arguments.pop("dataset"), folders_for(planned, tmp_path), **arguments)


def test_the_command_looks_at_all_its_folds_before_it_trains_the_first(planned, tmp_path, capsys):
    folders = folders_for(planned, tmp_path)
    trained = train(7, folders, fold="1", processes=0, **{**SHORT, "epochs": 1}) / "fold_1"
    (trained / "checkpoint_latest.pth").unlink()  # its final one is worth keeping, too
    flags = (*in_one_step(folders), "--epochs", "1")
    for folds, more, message in (
        (("0", "5"), (), "unknown fold '5'; there are 0 to 4, and `all`"),
        (("0", "2", "x"), ("--overwrite",), "unknown fold 'x'"),
        (("0", "1"), (), f"{trained} has been trained before (step 3); continue with --c"),
    ):
        assert main([*flags, "-f", *folds, *more]) == 1
        assert message in capsys.readouterr().err
        assert [path.name for path in trained.parent.glob("fold_*")] == ["fold_1"]
    # all training cases, and then a fold that goes on
    assert main([*flags, "-f", "all", "1", "--c"]) == 0
    assert load_checkpoint(trained / "checkpoint_final.pth")["step"] == 3
    assert load_checkpoint(trained.parent / "fold_all" / "checkpoint_final.pth")["step"] == 1


def test_a_checkpoint_of_other_plans_is_not_continued(planned, tmp_path):
    folders = folders_for(planned, tmp_path)
    model = train(7, folders, fold="all", processes=0, **{**SHORT, "epochs": 1})
    path = model / "fold_all" / "checkpoint_latest.pth"
    content = load_checkpoint(path)
    content["plans"]["patch_size"] = [8, 8, 8]
    torch.save(content, path)
    with pytest.raises(ValueError, match="was trained with other plans"):
        train(7, folders, fold="all", processes=0, resume=True)


def test_a_fold_is_continued_on_its_own_cases_alone_and_in_their_order(planned, tmp_path):
    name = "Dataset007_Boxes"
    shutil.copytree(planned.preprocessed / name, tmp_path / "preprocessed" / name)
    folders = dataclasses.replace(
        planned, preprocessed=tmp_path / "preprocessed", results=tmp_path / "results"
    )
    one_step = {"fold": "1", "processes": 0, "iterations_per_epoch": 1}
    latest = train(7, folders, epochs=1, **one_step) / "fold_1" / "checkpoint_latest.pth"
    file = folders.preprocessed / name / "splits_final.json"
    splits = read_json(file)
    assert load_checkpoint(latest)["training_cases"] == splits[1]["train"]
    assert load_checkpoint(latest)["validation_cases"] == splits[1]["val"]

    write_json(file, splits[::-1])  # five folds: 1 is now what 3 was
    with pytest.raises(ValueError, match="1 more for training .* 1 fewer for validation .*--over"):
        train(7, folders, epochs=2, resume=True, **one_step)

    # samples are drawn by the cases' order
    write_json(file, [{half: cases[::-1] for half, cases in fold.items()} for fold in splits])
    train(7, folders, epochs=2, resume=True, **one_step)
    content = load_checkpoint(latest)
    assert (content["step"], content["training_cases"]) == (2, splits[1]["train"])

    write_json(file, splits[::-1])  # a checkpoint from before cases were recorded goes on
    del content["training_cases"], content["validation_cases"], content["cuda_random_state"]
    torch.save(content, latest)
    train(7, folders, epochs=3, resume=True, **one_step)
    assert load_checkpoint(latest)["training_cases"] == splits[3]["train"]


def test_a_trained_fold_without_its_latest_checkpoint_goes_on_from_the_final_one(planned, tmp_path):
    folders = folders_for(planned, tmp_path)
    short = {"fold": "all", "processes": 0, "iterations_per_epoch": 2}
    fold = train(7, folders, epochs=2, **short) / "fold_all"
    (fold / "checkpoint_latest.pth").unlink()
    trained = (fold / "checkpoint_final.pth").read_bytes()
    with pytest.raises(FileExistsError, match=r"trained before \(step 4\); continue with --c, or"):
        train(7, folders, epochs=2, **short)
    assert (fold / "checkpoint_final.pth").read_bytes() == trained

    train(7, folders, epochs=3, resume=True, **short)
    content = load_checkpoint(fold / "checkpoint_final.pth")
    assert [row["step"] for row in content["rows"]] == [2, 4, 6]
    assert content["step"] == load_checkpoint(fold / "checkpoint_latest.pth")["step"] == 6


@pytest.mark.parametrize("name", list(TRAINERS))
def test_every_trainer_is_a_leaf(name):
    trainer = TRAINERS.get(name)
    assert trainer.__mro__[1] is BaseTrainer
    assert "__init__" not in vars(trainer)
    assert isinstance(trainer.encoder, str)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"seed": -1}, "seed must be 0 or more, got -1"),
        ({}, "a batch of 2 images cannot be split over 4 processes; start at most 2"),
    ],
)
def test_what_is_refused_removes_no_trained_fold(planned, tmp_path, monkeypatch, request_, message):
    folders = folders_for(planned, tmp_path)
    short = {"fold": "all", "processes": 0, "epochs": 1, "iterations_per_epoch": 1}
    fold = train(7, folders, **short) / "fold_all"
    before = {path.name: path.stat().st_mtime_ns for path in fold.iterdir()}
    if not request_:
        monkeypatch.setattr(distributed, "process_count", lambda: 4)
    with pytest.raises(ValueError, match=message):
        train(7, folders, overwrite=True, **short, **request_)
    del before["training_log.txt"]
    assert before.items() <= {path.name: path.stat().st_mtime_ns for path in fold.iterdir()}.items()


def test_a_killed_sample_worker_is_explained(planned, tmp_path, monkeypatch):
    folders = folders_for(planned, tmp_path)
    long = {"fold": "all", "epochs": 400, "iterations_per_epoch": 100}
    optimize = BaseTrainer._optimize

    def killing(trainer, batch):
        if trainer.progress.step == 2:
            (worker,) = multiprocessing.active_children()
            os.kill(worker.pid, signal.SIGKILL)
        return optimize(trainer, batch)

    monkeypatch.setattr(BaseTrainer, "_optimize", killing)
    with pytest.raises(RuntimeError, match="makes samples was killed, .* memory .*--c and fewer"):
        train(7, folders, processes=1, **long)


@pytest.mark.parametrize("error", [ConnectionResetError(104, "reset by peer"), EOFError("gone")])
def test_so_is_one_that_was_killed_while_it_was_sending(error, monkeypatch):
    monkeypatch.setattr(batches, "SECONDS_TO_NOTICE", 0.0)
    with pytest.raises(RuntimeError, match="killed, .* memory .*--c and fewer of them .* here 3"):
        with batches.deaths_explained(3):
            raise error
    with pytest.raises(type(error)), batches.deaths_explained(0):  # no process that could have died
        raise error


def test_training_that_comes_apart_says_so_also_in_the_log(planned, tmp_path, monkeypatch, capsys):
    folders = folders_for(planned, tmp_path)
    compute_loss = Learner.compute_loss

    def apart(learner, batch, **flags):
        loss = compute_loss(learner, batch, **flags)
        apart.steps += 1
        return loss * (float("nan") if apart.steps > 2 else 1)

    apart.steps = 0
    monkeypatch.setattr(Learner, "compute_loss", apart)
    assert main([*in_one_step(folders), "-f", "all", "--epochs", "4"]) == 1
    said = "error: training diverged at step 2: the loss is nan; start again with a lower learning "
    assert said in capsys.readouterr().err
    (fold,) = folders.results.glob("*/*/fold_all")
    assert said in (fold / "training_log.txt").read_text()
    assert load_checkpoint(fold / "checkpoint_latest.pth")["step"] == 2


def test_stopped_while_it_validates_it_says_so_and_validates_again(
    planned, tmp_path, monkeypatch, capsys
):
    folders = folders_for(planned, tmp_path)
    flags = [*in_one_step(folders), "-f", "0", "--epochs", "2", "--early-stopping", "9"]
    measure = validate_fold.measure_strategies

    def stopped(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)  # as a batch system does, when all is predicted
        return measure(*arguments)

    monkeypatch.setattr(validate_fold, "measure_strategies", stopped)
    assert main(flags) == 1
    said = capsys.readouterr().err
    assert "stopped; training is finished, and --c validates the whole cases again" in said
    assert "the same command with --c continues" in said
    (fold,) = folders.results.glob("*/*/fold_0")
    validation = fold / "validation"
    assert not (validation / "summary.json").exists()
    monkeypatch.undo()
    assert main([*flags, "--c"]) == 0
    summary = validation / "summary.json"
    assert read_json(summary)["failures"] == []

    # the same command again measures nothing anew; it does where other weights may be the final
    measured = summary.stat().st_mtime_ns
    assert main([*flags, "--c"]) == 0
    assert summary.stat().st_mtime_ns == measured
    assert main([*flags[:-1], "0", "--c"]) == 0
    assert summary.stat().st_mtime_ns > measured


def test_flags_are_called_ignored_only_where_a_run_is_continued(planned, tmp_path, caplog):
    folders = folders_for(planned, tmp_path)
    once = {"fold": "all", "processes": 0, "iterations_per_epoch": 1, "recipe": "scratch"}
    train(7, folders, epochs=1, resume=True, **once)
    assert "ignored: a continued run" not in caplog.text
    fold = train(7, folders, epochs=2, resume=True, **once) / "fold_all"
    said = "--recipe, --iterations-per-epoch ignored: a continued run keeps its own"
    assert said in caplog.text and said in (fold / "training_log.txt").read_text()


def test_a_timed_run_that_is_extended_counts_its_epochs_on(planned, tmp_path):
    folders = folders_for(planned, tmp_path)
    once = {"fold": "all", "processes": 0}
    train(7, folders, time_budget=1e-3, iterations_per_epoch=3, **once)  # ends within epoch 0
    fold = train(7, folders, epochs=2, resume=True, **once) / "fold_all"
    rows = load_checkpoint(fold / "checkpoint_final.pth")["rows"]
    assert [(row["epoch"], row["step"]) for row in rows] == [(0, 1), (1, 3), (2, 6)]


def test_negative_cases_are_trained_and_validated_on(tmp_path):
    folders = Folders(**{name: tmp_path / name for name in ("raw", "preprocessed", "results")})
    raw = write_raw_dataset(folders.raw, cases=5, shape=(9, 14, 17), modality="MRI")
    for case in ("case_0", "case_3"):
        path = raw / "labelsTr" / f"{case}.nii.gz"
        segmentation, geometry = read_segmentation(path)
        write_image(path, np.zeros_like(segmentation), geometry)
    plan_dataset(1, folders, processes=0)
    write_json(
        folders.preprocessed / raw.name / "splits_final.json",
        [{"train": ["case_0", "case_1", "case_2"], "val": ["case_3", "case_4"]}],
    )
    model = train(1, folders, epochs=1, iterations_per_epoch=3, processes=0, device="cpu")
    summary = read_json(model / "fold_0" / "validation" / "summary.json")
    assert len(summary["metric_per_case"]) == 2
    assert np.isfinite(summary["foreground_mean"]["Dice"])

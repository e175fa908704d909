"""Cases shared out over worker processes, one of which is killed in the middle of a case."""

from __future__ import annotations

import importlib
import sys

import numpy as np
import pytest
import torch

from promptseg import parallel
from promptseg.files import read_json
from promptseg.inference.batch.predict_files import predict_files
from promptseg.io.images import Geometry, read_image, write_image
from promptseg.prompts.strategies import AUTO_PROMPTERS
from promptseg.prompts.types import write_prompts_file
from tests.inference.test_predictor import SMALL, SPACING, blocks, save_fold
from tests.small_plans import small_plans

PROMPTER = "tests.inference.batch.dying_prompter"
NUMBERS = (3, 5, 7, 9, 11, 13)  # first voxel of each image; see dying_prompter


@pytest.fixture(scope="module")
def dying(tmp_path_factory):
    """The folder that the dying prompter writes to; registered here only meanwhile."""
    module, folder = importlib.import_module(PROMPTER), tmp_path_factory.mktemp("dying")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(module.FOLDER, str(folder))
        yield folder
    del AUTO_PROMPTERS._classes["dying"], sys.modules[PROMPTER]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    (folder / "fold_0").mkdir()
    save_fold(folder, "0", small_plans())
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for number in NUMBERS:
        image = blocks(SMALL)[0] + np.float32(number)
        geometry = Geometry(shape=SMALL, spacing=SPACING)
        write_image(folder / f"case_{number:02d}_0000.nii.gz", image, geometry)
    (folder / "broken_0000.nii.gz").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def workers(dying):  # the environment is set before they start
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as started:
        yield started


def test_a_killed_worker_costs_nothing_but_time(model_folder, images, dying, workers, tmp_path):
    options = {"auto_prompt": "dying", "tta": False, "folds": ["0"]}
    report = predict_files(
        model_folder,
        images,
        tmp_path / "shared",
        dask=workers.scheduler_address,
        imports=[PROMPTER],
        **options,
    )
    proposed = [line.split() for line in (dying / "proposed").read_text().splitlines()]
    assert (dying / "died").exists() and [n for n, _ in proposed].count("7") == 2
    assert len({process for _, process in proposed}) >= 2

    alone = predict_files(model_folder, images, tmp_path / "alone", **options)  # dies no more
    names = [f"case_{number:02d}" for number in NUMBERS]
    assert list(report["cases"]) == list(alone["cases"]) == ["broken", *names]
    assert (
        report["failed"] == 1 and read_json(tmp_path / "shared" / "predict_report.json") == report
    )
    assert "broken_0000.nii.gz cannot be read" in report["cases"]["broken"]["error"]
    for name in names:
        one, other = (
            read_image(tmp_path / folder / f"{name}.nii.gz") for folder in ("shared", "alone")
        )
        np.testing.assert_array_equal(one[0], other[0])
        assert one[1] == other[1]
        ours, theirs = report["cases"][name], alone["cases"][name]
        assert ours["prediction"] == str(tmp_path / "shared" / f"{name}.nii.gz")
        for field in ("status", "images"):
            assert ours[field] == theirs[field]
        for label, result in theirs["labels"].items():
            iou = result.pop("predicted_iou")
            assert ours["labels"][label].pop("predicted_iou") == pytest.approx(iou, abs=1e-5)
            assert ours["labels"][label] == result
    # Nothing half-written, and nothing twice.
    assert sorted(path.name for path in (tmp_path / "shared").iterdir()) == [
        *(f"{name}.nii.gz" for name in names), "predict_report.json", "prompts_used.json",
    ]  # fmt: skip


def test_each_case_comes_with_its_prompts_and_what_is_there_is_kept(
    model_folder, images, workers, tmp_path
):
    prompts = {
        f"case_{n:02d}": {"spleen": {"boxes": [[[1, 1, 4], [4, 6, n]]]}} for n in NUMBERS[1:4]
    }
    write_prompts_file(tmp_path / "prompts.json", prompts)
    folder, output = tmp_path / "images", tmp_path / "out"
    folder.mkdir()
    for number in NUMBERS[:4]:
        name = f"case_{number:02d}_0000.nii.gz"
        (folder / name).symlink_to(images / name)
    options = {"prompts": tmp_path / "prompts.json", "dask": workers.scheduler_address}
    output.mkdir()
    kept = output / "case_05.nii.gz"
    kept.write_bytes(b"of an earlier run")
    report = predict_files(model_folder, folder, output, continue_prediction=True, **options)
    status = {name: entry["status"] for name, entry in report["cases"].items()}
    assert status == {"case_03": "failed", "case_05": "kept", "case_07": "done", "case_09": "done"}
    assert kept.read_bytes() == b"of an earlier run"
    for number in NUMBERS[2:4]:
        labels = report["cases"][f"case_{number:02d}"]["labels"]
        assert list(labels) == ["spleen"]
        assert labels["spleen"]["boxes"] == [[[1, 1, 4], [4, 6, number]]]


def test_a_case_that_kills_every_worker_fails_alone(
    model_folder, images, dying, workers, tmp_path, monkeypatch
):
    monkeypatch.setattr(workers.scheduler, "allowed_failures", 0)
    (dying / "died").unlink(missing_ok=True)
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("case_07_0000.nii.gz", "case_09_0000.nii.gz"):
        (folder / name).symlink_to(images / name)
    report = predict_files(
        model_folder,
        folder,
        tmp_path / "out",
        dask=workers.scheduler_address,
        auto_prompt="dying",
        imports=[PROMPTER],
    )
    assert report["failed"] == 1 and report["cases"]["case_09"]["status"] == "done"
    assert "its workers were lost (KilledWorker: " in report["cases"]["case_07"]["error"]
    assert "--continue_prediction" in report["cases"]["case_07"]["error"]
    assert not (tmp_path / "out" / "case_07.nii.gz").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
def test_only_workers_need_the_device(model_folder, images, workers, tmp_path):
    report = predict_files(
        model_folder,
        images / f"case_{NUMBERS[0]:02d}_0000.nii.gz",
        tmp_path / "out",
        dask=workers.scheduler_address,
        device="cuda",
    )
    ((case_id, entry),) = report["cases"].items()
    assert case_id == "case_03" and entry["status"] == "failed"
    with pytest.raises((ValueError, RuntimeError)) as here:
        predict_files(model_folder, images, tmp_path / "here", device="cuda")
    assert entry["error"] == str(here.value)


def test_only_lost_workers_are_said_to_be_lost():
    error = str(parallel.unfinished(TypeError("cannot pickle it")))
    assert "(TypeError: cannot pickle it)" in error and "run the same command again" in error
    assert "lost" not in error and "memory" not in error


def test_what_is_missing_is_said_before_anything_is_done(
    model_folder, images, tmp_path, monkeypatch
):
    monkeypatch.setattr(parallel, "_CONNECT_SECONDS", 0.2)
    for address in ("tcp://127.0.0.1:9", "nowhere:1", "smoke://signals:5"):
        with pytest.raises(
            ConnectionError, match=rf"no Dask scheduler at '{address}'.*dask worker"
        ):
            predict_files(model_folder, images, tmp_path / "out", dask=address)
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ImportError, match=r'--dask needs Dask.*pip install "promptseg\[dask\]"'):
        predict_files(model_folder, images, tmp_path / "out", dask="tcp://127.0.0.1:9")
    assert not (tmp_path / "out").exists()

"""Zipped models, and how well strategies of prompts did, as training notes it."""

from __future__ import annotations

import json
import logging
import re
import shutil
import stat
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from promptseg.files import read_json, write_json
from promptseg.inference import load as module
from promptseg.inference.load import (
    load_predictor,
    opened_model,
    read_prompt_quality,
    write_prompt_quality,
)
from promptseg.pipeline import strategy_quality
from tests.inference.test_predictor import SMALL, SPACING, save_fold
from tests.locators import make_locator
from tests.small_plans import small_plans
from tests.trained import train

STORED = zipfile.ZIP_STORED  # weights hardly shrink, and deflating them takes long


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A model folder of two folds, with what training leaves beside the checkpoints."""
    folder = tmp_path_factory.mktemp("results") / "ViTTrainer__PromptSegPlans__3d"
    for fold in ("0", "1"):
        (folder / f"fold_{fold}" / "validation").mkdir(parents=True)
        save_fold(folder, fold, small_plans(), seed=int(fold))
        (folder / f"fold_{fold}" / "training_log.txt").write_text("long")
        (folder / f"fold_{fold}" / "validation" / "summary.json").write_text("{}")
    seconds = {"name": 2.0, "atlas": 1.5}
    of_both = {"name": 0.5, "atlas": 0.7}
    measured = {"dice": {"liver": of_both, "spleen": {"name": 0.25}}, "seconds": seconds}
    write_prompt_quality(folder / "fold_0", measured)
    measured = {"dice": {"liver": {"name": 0.75}}, "seconds": {"name": 0.5}}
    write_prompt_quality(folder / "fold_1", measured)
    write_json(folder / "dataset.json", {"labels": {"background": 0, "liver": 1}})
    return folder


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch) -> Path:
    """The folder of temporary folders, where no model is left after any test."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert not list(folder.glob("promptseg_model_*"))


def zipped(
    model: Path, path: Path, prefix: str = "", separator: str = "/", compression: int = STORED
) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for file in sorted(model.rglob("*")):
            if file.is_file():
                name = (prefix + file.relative_to(model).as_posix()).replace("/", separator)
                archive.writestr(name, file.read_bytes())
    return path


def answers(path: Path, **options):
    image = np.random.default_rng(0).uniform(0, 255, SMALL)
    predictor = load_predictor(path, **options)
    predictor.set_image(image, SPACING)
    found = predictor.predict(boxes={"liver": [[0, 1, 1], [5, 8, 9]]}, labels=["liver", "lesion"])
    return found, predictor


@pytest.mark.parametrize("prefix", ["", "ViTTrainer__PromptSegPlans__3d/", "a b/Dataset001/model/"])
def test_a_zip_predicts_what_its_folder_does(model, tmp_path, prefix, caplog):
    archive = zipped(model, tmp_path / "model.ZIP", prefix)
    caplog.set_level(logging.INFO, logger="promptseg")
    for options in ({},) if prefix else ({}, {"folds": ["1"]}):
        expected, from_folder = answers(model, **options)
        caplog.clear()
        found, from_zip = answers(archive, **options)
        assert "model model.ZIP, fold_" in caplog.text
        np.testing.assert_array_equal(found.segmentation, expected.segmentation)
        for label, result in expected.labels.items():
            assert found.labels[label].predicted_iou == result.predicted_iou
        assert from_zip.proposer.measured_dice == from_folder.proposer.measured_dice
        assert len(from_zip.networks) == len(from_folder.networks)
    with pytest.raises(FileNotFoundError, match="fold_7.*folds with a .*: fold_0, fold_1"):
        load_predictor(archive, folds=["7"])


def test_a_locator_is_part_of_the_model(tmp_path):
    folder = tmp_path / "model"
    for fold in "01":
        (folder / f"fold_{fold}").mkdir(parents=True)
    locator = make_locator(tuple(small_plans().labels))
    candidates = {"locator": {"parameters": {"networks": locator.digest}}}
    plans = small_plans(auto_prompts={"liver": {"strategy": "locator", "candidates": candidates}})
    for fold in "01":
        save_fold(folder, fold, plans)
    with pytest.raises(FileNotFoundError, match=r"fold_0.locator\.npz: no such file, by which"):
        load_predictor(folder, folds=["0"])
    make_locator(("liver", "another")).save(folder / "fold_0" / "locator.npz")
    with pytest.raises(ValueError, match=r"locator\.npz is not the locator of this model's plans"):
        load_predictor(folder)
    (folder / "fold_0" / "locator.npz").unlink()
    locator.save(folder / "fold_1" / "locator.npz")
    archive = zipped(folder, tmp_path / "model.zip")
    boxes = []
    for path in (folder, archive):
        predictor = load_predictor(path)
        predictor.set_image(np.random.default_rng(0).uniform(0, 255, SMALL), SPACING)
        found = predictor.predict(labels=["liver"], auto_prompt="plans").labels["liver"].prompts
        boxes.append(found.boxes.tolist())
    assert boxes[0] == boxes[1]


def test_a_zip_made_by_shutil_or_on_windows_or_macos_is_read(model, tmp_path):
    made = shutil.make_archive(str(tmp_path / "made"), "zip", model.parent, model.name)
    windows = zipped(model, tmp_path / "windows.zip", "model\\", separator="\\")
    macos = zipped(model, tmp_path / "macos.zip", "model/")
    with zipfile.ZipFile(macos, "a") as archive:
        archive.writestr("__MACOSX/model/fold_0/._checkpoint_final.pth", b"Mac OS X")
        archive.writestr("model/fold_0/._checkpoint_best.pth", b"Mac OS X")
        archive.writestr("model/.DS_Store", b"Mac OS X")
    for path in (Path(made), windows, macos):
        with opened_model(path) as opened:
            names = {p.relative_to(opened).as_posix() for p in opened.rglob("*") if p.is_file()}
        assert names == {"dataset.json"} | {
            f"fold_{fold}/{name}"
            for fold in (0, 1)
            for name in (
                "checkpoint_final.pth",
                "prompt_strategies.json",
                "validation/summary.json",
            )
        }


def test_only_what_is_asked_for_is_unpacked_and_removed_also_after_an_error(model, tmp_path):
    archive = zipped(model, tmp_path / "model.zip")
    with opened_model(archive, endings=(".json",)) as opened:
        assert not list(opened.rglob("*.pth")) and (opened / "dataset.json").is_file()
    assert not opened.exists()
    with pytest.raises(RuntimeError, match="in the block"), opened_model(archive) as opened:
        assert (opened / "fold_0" / "checkpoint_final.pth").is_file()
        raise RuntimeError("in the block")
    assert not opened.exists()
    with opened_model(model) as opened:
        assert opened == model
    assert model.is_dir()


@pytest.mark.parametrize(
    "name",
    [
        "../out.pth",
        "model/../../out.json",
        "model/fold_0/../../../out.pth",
        "/out.json",
        "//server/out.json",
        "C:/out.pth",
        "C:out.json",
        "model/C:/out.json",
        "..\\out.json",
        "model\\..\\..\\out.pth",
        "\\out.json",
        "C:\\out.pth",
        "out.json:stream.json",
    ],
)
def test_members_that_leave_the_folder_are_refused_before_anything_is_written(
    model, tmp_path, name
):
    archive = zipped(model, tmp_path / "m.zip")
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr(name, b"{}")
    before = sorted(tmp_path.rglob("*"))
    message = rf"m\.zip holds {re.escape(repr(name))}, which leaves its folder"
    with pytest.raises(ValueError, match=message), opened_model(archive):
        pass
    assert sorted(tmp_path.rglob("*")) == before and not Path("/out.json").exists()


def test_links_in_a_zip_are_not_followed(model, tmp_path):
    secret = tmp_path / "secret.json"
    secret.write_text('{"dice": {"liver": {"name": 1}}}')
    archive = zipped(model, tmp_path / "model.zip")
    link = zipfile.ZipInfo("fold_2/prompt_strategies.json")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    folder = zipfile.ZipInfo("fold_3")
    folder.create_system, folder.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr(link, str(secret))
        file.writestr(folder, str(tmp_path))
    with opened_model(archive) as opened:
        assert not any(path.is_symlink() for path in opened.rglob("*"))
        assert (opened / "fold_2" / "prompt_strategies.json").read_text() == str(secret)
        with pytest.raises(ValueError, match="prompt_strategies.json is not valid JSON"):
            read_prompt_quality([opened], None)


def damaged(model: Path, tmp_path: Path, kind: str) -> Path:
    compression = zipfile.ZIP_DEFLATED if kind == "cut deflated" else STORED
    path = zipped(model, tmp_path / "model.zip", "one/", compression=compression)
    whole = path.read_bytes()
    if kind.startswith("cut"):
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("not a zip file")
    elif kind == "bits":
        at = whole.index(b"one/fold_0/checkpoint_final.pth") + 2000
        path.write_bytes(
            whole[:at] + bytes(b ^ 255 for b in whole[at : at + 50]) + whole[at + 50 :]
        )
    elif kind == "two":
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("two/fold_0/checkpoint_final.pth", b"")
    elif kind == "results":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("notes.json", b"{}")
            archive.writestr("checkpoint_final.pth", b"")
    elif kind == "nothing":
        with zipfile.ZipFile(path, "w"):
            pass
    elif kind == "locked":  # the bit of the flags that says so, in both headers of every member
        content = bytearray(whole)
        for magic, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            at = content.find(magic)
            while at >= 0:
                content[at + offset] |= 1
                at = content.find(magic, at + 4)
        path.write_bytes(bytes(content))
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("cut", "holds 0 models.*copy it again"),  # zipfile takes the last whole member for it
        ("cut deflated", "cannot be read as a zip file: .*; copy or zip it again"),
        ("empty", "cannot be read as a zip file"),
        ("text", "cannot be read as a zip file"),
        ("bits", "cannot be read as a zip file"),
        ("two", r"holds 2 models; expected one model folder with fold_\*/"),
        ("results", "holds 0 models; expected one"),
        ("nothing", "holds 0 models"),
        ("locked", "is encrypted; unpack it"),
    ],
)
def test_damaged_and_other_zip_files_are_refused(model, tmp_path, kind, message):
    path = damaged(model, tmp_path, kind)
    with pytest.raises(ValueError, match=rf"model\.zip {message}"):
        load_predictor(path)


def test_a_zip_that_unpacks_to_too_much_is_refused(model, tmp_path, monkeypatch):
    path = zipped(model, tmp_path / "model.zip")
    monkeypatch.setattr(module, "MOST_BYTES", 1000)
    with pytest.raises(ValueError, match=r"model\.zip would unpack to 0 GB; is it a model\?"):
        load_predictor(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [("nowhere.zip", r"nowhere\.zip: no such model"), ("nowhere", "nowhere: no such model folder")],
)
def test_a_model_that_is_not_there_is_said_to_be_missing(tmp_path, name, message):
    with pytest.raises(FileNotFoundError, match=message):
        load_predictor(tmp_path / name)


@pytest.mark.parametrize("folds", [None, ["1"]])
@pytest.mark.parametrize(
    ("part", "flags"),
    [
        ("fold_1", "-f 1"),
        ("fold_1/checkpoint_final.pth", "-f 1 -chk checkpoint_final.pth"),
    ],
)
def test_a_part_of_a_model_is_told_to_be_named_by_flags(model, part, flags, folds):
    with pytest.raises(ValueError, match=re.escape(f"-m {model} {flags}") + "$"):
        load_predictor(model / part, folds=folds)


def test_measured_strategies_are_averaged_over_the_folds_in_use_and_the_fastest_goes_first(model):
    # seconds: of fold 0 name 2, atlas 1.5; of fold 1 name 0.5
    both = read_prompt_quality([model], None)
    assert both == {"liver": {"name": 0.625, "atlas": 0.7}, "spleen": {"name": 0.25}}
    assert list(both["liver"]) == ["name", "atlas"]
    first = read_prompt_quality([model], ["0"])
    assert list(first["liver"].items()) == [("atlas", 0.7), ("name", 0.5)]
    assert read_prompt_quality([model], ["1"]) == {"liver": {"name": 0.75}}
    assert read_prompt_quality([model], ["all"]) == {}
    assert load_predictor(model).proposer.measured_dice == both
    assert load_predictor(model, folds=["0"]).proposer.measured_dice == first


@pytest.mark.parametrize(
    "content",
    [
        [],
        {},
        {"dice": 0.5},
        {"dice": {"liver": 0.5}, "seconds": {}},
        {"dice": {"liver": {"name": None}}, "seconds": {"name": 1}},
        {"dice": {"liver": {"name": 1.5}}, "seconds": {"name": 1}},
        {"dice": {"liver": {"name": "0.5"}}, "seconds": {"name": 1}},
        {"dice": {"liver": {"name": 0.5}}},
        {"dice": {"liver": {"name": 0.5}}, "seconds": {"atlas": 1}},
        {"dice": {"liver": {"name": 0.5}}, "seconds": {"name": -1}},
        {"dice": {"liver": {"name": 0.5}}, "seconds": {"name": "fast"}},
        {"dice": {"liver": {"name": 0.5}}, "seconds": {"name": None}},
    ],
)
def test_a_damaged_measurement_is_refused_by_name(tmp_path, content):
    (tmp_path / "fold_0").mkdir()
    (tmp_path / "fold_0" / "prompt_strategies.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"fold_0.*prompt_strategies\.json: expected `dice` with"):
        read_prompt_quality([tmp_path], None)


def test_training_measures_strategies_for_prediction(planned, tmp_path, monkeypatch):
    monkeypatch.setattr(strategy_quality, "LEAST_CASES", 1)  # the fold has one case
    folders = replace(planned, results=tmp_path / "results")
    folder = train(
        7, folders, fold="1", epochs=1, iterations_per_epoch=1, processes=0, device="cpu"
    )
    measured = read_json(folder / "fold_1" / "prompt_strategies.json")
    predictor = load_predictor(folder, folds=["1"], device="cpu")
    assert predictor.proposer.measured_dice == measured["dice"]
    assert set(measured["dice"]) == set(predictor.plans.labels)  # every case has both
    for label, dice in measured["dice"].items():
        planned_strategy = predictor.plans.auto_prompts[label]["strategy"]
        assert set(dice) == {"name", "coarse", "hybrid", planned_strategy}
        assert all(0 <= value <= 1 for value in dice.values())
    log = (folder / "fold_1" / "training_log.txt").read_text()
    assert "seconds a case" in log
    found = load_predictor(zipped(folder, tmp_path / "model.zip"), device="cpu")
    assert found.proposer.measured_dice == measured["dice"]

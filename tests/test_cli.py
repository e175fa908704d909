import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from promptseg import cli
from promptseg.image_io import read_image
from tests.synthetic import write_raw_dataset

COMMANDS = [cli.plan, cli.train, cli.predict, cli.auto_prompt, cli.evaluate, cli.demo]


def test_setup_declares_every_command():
    source = (Path(__file__).parents[1] / "setup.py").read_text()
    declared = re.search(r"COMMANDS = \((.*?)\)", source)[1]
    assert {c.__name__ for c in COMMANDS} == set(re.findall(r'"(\w+)"', declared))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_the_command_and_explains_every_flag(command, capsys):
    with pytest.raises(SystemExit) as stop:
        command(["--help"])
    assert stop.value.code == 0
    assert f"usage: promptseg_{command.__name__} " in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_a_mistyped_flag_fails(command, capsys):
    with pytest.raises(SystemExit) as stop:
        command(["--no-such-flag"])
    assert stop.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_an_unknown_dataset_is_one_clear_line_that_lists_what_is_there(tmp_path, capsys):
    write_raw_dataset(tmp_path, 3, "There", cases=1)
    assert cli.plan(["-d", "33", "--raw", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "error: no folder Dataset033_*" in error
    assert "Dataset003_There" in error and "--raw" in error
    assert "Traceback" not in error


def test_every_dataset_is_planned_although_one_is_broken(tmp_path, capsys):
    roots = ["--raw", str(tmp_path / "raw"), "--preprocessed", str(tmp_path / "pre")]
    for number in (1, 2):
        write_raw_dataset(tmp_path / "raw", number, "Some", cases=3)
    broken = tmp_path / "raw" / "Dataset001_Some" / "labelsTr" / "case_1.nii.gz"
    broken.write_bytes(b"not an image")

    assert cli.plan(["-d", "1", "2", "-np", "0", *roots]) == 1

    captured = capsys.readouterr()
    assert "case_1" in captured.err and "--skip-broken" in captured.err
    assert "Dataset002_Some" in captured.out
    assert not (tmp_path / "pre" / "Dataset001_Some" / "PromptSegPlans.json").exists()
    assert cli.plan(["-d", "1", "-np", "0", "--skip-broken", *roots]) == 0
    assert "left out: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("1.5h", 5400), ("12", 12)]
)
def test_time_budgets_have_units(text, seconds):
    assert cli._seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "-5m", "0m", "5d", "1h30m", "fast"])
def test_other_times_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected a time such as"):
        cli._seconds(text)


def test_predicting_without_a_model_says_how_to_get_one(tmp_path, capsys):
    code = cli.predict(
        ["-i", str(tmp_path), "-o", str(tmp_path / "out"), "--results", str(tmp_path)]
    )
    assert code == 1
    assert "Train one with promptseg_train, or name a model folder" in capsys.readouterr().err


def test_auto_prompt_needs_no_model_and_no_dataset(tmp_path):
    folder = write_raw_dataset(tmp_path, 1, "Some", cases=2) / "imagesTr"
    output = tmp_path / "boxes.json"
    assert cli.auto_prompt(["-i", str(folder), "-o", str(output), "--png"]) == 0
    content = json.loads(output.read_text())
    assert set(content["cases"]) == {"case_0", "case_1"}
    for case_id, labels in content["cases"].items():
        shape = read_image(folder / f"{case_id}_0000.nii.gz")[0].shape[1:]
        (box,) = labels["object"]["boxes"]
        assert all(0 <= a < b <= n for a, b, n in zip(*box, shape, strict=True))
    assert len(list(tmp_path.rglob("*.png"))) == 2


def test_importing_the_package_reads_no_environment_and_loads_no_torch():
    code = (
        "import sys, promptseg, promptseg.cli\n"
        "assert 'torch' not in sys.modules and 'monai' not in sys.modules\n"
        "assert set(promptseg.__all__) <= set(dir(promptseg))\n"
        "for name in promptseg.__all__: getattr(promptseg, name)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)

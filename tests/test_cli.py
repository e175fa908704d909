import argparse
import importlib
import json
import pkgutil
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import promptseg
import promptseg.commands
from promptseg.commands import auto_prompt, parsing, plan, predict, train
from promptseg.io.images import read_image
from tests.synthetic import write_raw_dataset

COMMANDS = {
    module.name: importlib.import_module(f"promptseg.commands.{module.name}").main
    for module in pkgutil.iter_modules(promptseg.commands.__path__)
    if module.name != "parsing"
}


def test_setup_declares_every_command():
    source = (Path(__file__).parents[1] / "setup.py").read_text()
    declared = re.search(r"COMMANDS = \((.*?)\)", source, re.DOTALL)[1]
    assert set(COMMANDS) == set(re.findall(r'"(\w+)"', declared))


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_the_command_and_explains_every_flag(name, capsys, monkeypatch):
    parsers = []
    monkeypatch.setattr(
        argparse.ArgumentParser, "print_help", lambda parser, file=None: parsers.append(parser)
    )
    with pytest.raises(SystemExit) as stop:
        COMMANDS[name](["--help"])
    assert stop.value.code == 0
    (parser,) = parsers
    assert parser.prog == f"promptseg_{name}" and parser.description
    for action in parser._actions:
        assert action.help, action.option_strings


@pytest.mark.parametrize("name", COMMANDS)
def test_a_mistyped_flag_fails(name, capsys):
    with pytest.raises(SystemExit) as stop:
        COMMANDS[name](["--no-such-flag"])
    assert stop.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_an_unknown_dataset_is_one_clear_line_that_lists_what_is_there(tmp_path, capsys):
    write_raw_dataset(tmp_path, 3, "There", cases=1)
    assert plan.main(["-d", "33", "--raw", str(tmp_path)]) == 1
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

    assert plan.main(["-d", "1", "2", "-np", "0", *roots]) == 1

    captured = capsys.readouterr()
    assert "case_1" in captured.err and "--skip-broken" in captured.err
    assert "Dataset002_Some" in captured.out
    assert not (tmp_path / "pre" / "Dataset001_Some" / "PromptSegPlans.json").exists()
    assert plan.main(["-d", "1", "-np", "0", "--skip-broken", *roots]) == 0
    assert "left out: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("1.5h", 5400), ("0.5s", 0.5)]
)
def test_time_budgets_have_units(text, seconds):
    assert parsing.seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "-5m", "0m", "5d", "1h30m", "fast", "20"])
def test_other_times_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected a time with its unit, such as"):
        parsing.seconds(text)


def test_a_call_as_nnunet_is_called_names_the_command_that_corresponds(capsys):
    with pytest.raises(SystemExit):
        train.main(["4", "3d_fullres", "2"])
    assert "corresponds to `promptseg_train -d 4 -f 2`" in capsys.readouterr().err


def test_commands_tell_their_version(capsys):
    with pytest.raises(SystemExit) as exit_:
        plan.main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"promptseg {promptseg.__version__}\n"


def test_several_models_are_listed_as_commands_to_choose_from(tmp_path, capsys):
    names = ("ViTTrainer__PromptSegPlans__3d", "ViTTrainer__Other plans__3d")
    for name in names:
        fold = tmp_path / "Dataset004_X" / name / "fold_0"
        fold.mkdir(parents=True)
        (fold / "checkpoint_final.pth").touch()
    stray = tmp_path / "Dataset004_X" / "mymodel" / "fold_0"  # no model folder of ours
    stray.mkdir(parents=True)
    (stray / "checkpoint_final.pth").touch()

    assert predict.main(["-i", "in put", "-o", "out", "--results", str(tmp_path)]) == 1

    error = capsys.readouterr().err
    for name in names:
        model = shlex.quote(str(tmp_path / "Dataset004_X" / name))
        expected = f"promptseg_predict -i 'in put' -o out --results {tmp_path} -m {model}"
        assert expected in error
    assert "mymodel" not in error


def test_epochs_and_a_time_budget_exclude_each_other(capsys):
    with pytest.raises(SystemExit):
        train.main(["-d", "4", "--epochs", "5", "--time-budget", "1m"])
    assert "not allowed with" in capsys.readouterr().err


def test_a_mistyped_import_is_one_message(tmp_path, capsys):
    assert train.main(["-d", "4", "--import", "no_such_module"]) == 1
    assert "error: No module named 'no_such_module'" in capsys.readouterr().err


def test_predicting_without_a_model_says_how_to_get_one(tmp_path, capsys):
    code = predict.main(
        ["-i", str(tmp_path), "-o", str(tmp_path / "out"), "--results", str(tmp_path)]
    )
    assert code == 1
    assert "Train one with promptseg_train, or name a model folder" in capsys.readouterr().err


def test_auto_prompt_needs_no_model_and_no_dataset(tmp_path):
    folder = write_raw_dataset(tmp_path, 1, "Some", cases=2) / "imagesTr"
    output = tmp_path / "boxes.json"
    arguments = ["-i", str(folder), "-o", str(output), "--png", "--label", "liver"]
    assert auto_prompt.main(arguments) == 0
    content = json.loads(output.read_text())
    assert set(content["cases"]) == {"case_0", "case_1"}
    for case_id, labels in content["cases"].items():
        shape = read_image(folder / f"{case_id}_0000.nii.gz")[0].shape[1:]
        (box,) = labels["liver"]["boxes"]
        assert all(0 <= a < b <= n for a, b, n in zip(*box, shape, strict=True))
    assert len(list(tmp_path.rglob("*.png"))) == 2


def test_importing_the_package_reads_no_environment_and_loads_no_torch():
    code = (
        "import os, sys\n"
        "read = []\n"
        "class Watched(type(os.environ)):\n"
        "    def __getitem__(self, key):\n"
        "        read.append(key)\n"
        "        return super().__getitem__(key)\n"
        "os.environ.__class__ = Watched\n"
        "import promptseg, promptseg.commands.parsing, promptseg.folders\n"
        "assert not [key for key in read if 'promptseg' in key.lower()], read\n"
        "assert 'torch' not in sys.modules and 'monai' not in sys.modules\n"
        "assert set(promptseg.__all__) <= set(dir(promptseg))\n"
        "for name in promptseg.__all__: getattr(promptseg, name)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)

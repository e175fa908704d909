"""`python -m promptseg COMMAND`, and the public function that shares a command's name."""

import inspect
import subprocess
import sys

import promptseg
from promptseg.__main__ import NAMES


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "promptseg", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_a_command_runs_as_a_module():
    done = run("train", "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("usage: promptseg_train [-h] [--version] (-d ID |")


def test_an_unknown_command_exits_with_2_and_the_list():
    for arguments in (["training"], []):
        done = run(*arguments)
        assert done.returncode == 2 and done.stdout == ""
        assert all(name in done.stderr for name in NAMES)
        assert ("unknown command 'training'" in done.stderr) == bool(arguments)


def test_help_lists_the_commands():
    done = run("--help")
    assert done.returncode == 0 and all(name in done.stdout for name in NAMES)
    assert {"plan", "train", "predict"} <= set(NAMES) and "parsing" not in NAMES


def test_public_functions_stay_functions_whatever_is_imported():
    code = (
        "import promptseg, promptseg.__main__, promptseg.commands.train, promptseg.pipeline.train\n"
        "assert callable(promptseg.train) and promptseg.train.__name__ == 'train'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    assert inspect.isfunction(promptseg.train)

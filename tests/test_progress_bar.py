import io
import sys

import pytest

from promptseg import progress_bar


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _shown(monkeypatch, stream, **options):
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar.progress_bar(total=4, desc="predicting", unit="case", **options) as bar:
        for _ in range(4):
            bar.update()
            bar.set_postfix_str("loss 0.5")
    return stream.getvalue()


def test_a_file_gets_lines_at_intervals_and_one_at_the_end(monkeypatch):
    text = _shown(monkeypatch, io.StringIO())
    assert "\r" not in text and len(text.splitlines()) == 1
    assert text.startswith("predicting: 100% 4/4 [") and text.endswith("loss 0.5]\n")


def test_lines_are_printed_while_the_work_goes_on(monkeypatch):
    monkeypatch.setattr(progress_bar, "SECONDS", 0.0)
    lines = _shown(monkeypatch, io.StringIO()).splitlines()
    assert any(line.startswith("predicting:  50% 2/4") for line in lines)


def test_a_format_of_ones_own_loses_its_bar_only(monkeypatch):
    text = _shown(
        monkeypatch, io.StringIO(), bar_format="{desc}: {percentage:3.0f}%|{bar}| {postfix}"
    )
    assert text == "predicting: 100%  , loss 0.5\n"


def test_a_terminal_gets_a_bar(monkeypatch):
    assert "\r" in _shown(monkeypatch, _Terminal())


@pytest.mark.parametrize("stream", [io.StringIO, _Terminal])
def test_a_hidden_bar_prints_nothing(monkeypatch, stream):
    assert _shown(monkeypatch, stream(), disable=True) == ""


def test_a_bar_that_is_not_to_stay_ends_without_a_line(monkeypatch):
    assert _shown(monkeypatch, io.StringIO(), leave=False) == ""
    assert "predicting" in _shown(monkeypatch, io.StringIO(), leave=True)

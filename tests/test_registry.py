"""Classes by name."""

from __future__ import annotations

import sys

import pytest

from promptseg.registry import Registry, import_modules_of


def test_a_registered_class_is_found_by_name_and_knows_it():
    shapes = Registry("shape")

    @shapes.register("ball")
    class Ball:
        pass

    @shapes.register("ax")
    class Ax:
        pass

    assert shapes.get("ball") is Ball and Ball.name == "ball"
    assert list(shapes) == ["ax", "ball"] and "ax" in shapes and "cube" not in shapes
    assert Ax.__name__ == "Ax"


def test_taken_and_unknown_names_are_refused_with_what_there_is():
    shapes = Registry("shape")
    with pytest.raises(ValueError, match="unknown shape 'ball'; registered: none"):
        shapes.get("ball")
    shapes.register("ball")(type("Ball", (), {}))
    with pytest.raises(ValueError, match="shape 'ball' already exists: Ball"):
        shapes.register("ball")(type("Other", (), {}))
    with pytest.raises(ValueError, match="unknown shape 'Ball'; registered: ball"):
        shapes.get("Ball")


def test_every_module_of_a_package_is_imported_and_its_errors_are_not_hidden(tmp_path, monkeypatch):
    package = tmp_path / "some_strategies"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "first.py").write_text("value = 3\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import_modules_of("some_strategies", [str(package)])
    assert sys.modules["some_strategies.first"].value == 3

    (package / "second.py").write_text("import no_such_module_anywhere\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_module_anywhere"):
        import_modules_of("some_strategies", [str(package)])

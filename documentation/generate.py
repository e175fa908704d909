"""Write what documentation takes from the code: commands, settings, layout and examples.

    python documentation/generate.py            # write the pages
    python documentation/generate.py --check    # change nothing; exit 1 if a page is out of date

`tests/test_documentation.py` runs the check.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PACKAGE = ROOT / "promptseg"
sys.path.insert(0, str(ROOT))

BEGIN, END = "<!-- generated: {} -->", "<!-- end of what is generated -->"
MIXED = (
    "architecture.md",
    "conventions.md",
    "reference/settings.md",
)  # written by hand but for marked parts


def pages() -> dict[Path, str]:
    """Every page with something generated in it, and the text that it should have."""
    reference = HERE / "reference"
    found = {reference / "commands.md": commands_page(), reference / "python.md": python_page()}
    for name in MIXED:
        text = (HERE / name).read_text(encoding="utf-8")
        for part, write in PARTS.items():
            pattern = re.escape(BEGIN.format(part)) + ".*?" + re.escape(END)
            new = f"{BEGIN.format(part)}\n\n{write()}\n\n{END}"
            text = re.sub(pattern, lambda _, new=new: new, text, flags=re.DOTALL)
        found[HERE / name] = text
    site = ROOT / "mkdocs.yml"
    found[site] = re.sub(
        r"(?<=- Decisions:\n)(?: +- decisions/\S+\n)*",
        "".join(
            f"          - decisions/{path.name}\n"
            for path in sorted((HERE / "decisions").glob("*.md"))
        ),
        site.read_text(encoding="utf-8"),
    )
    return found


# -- commands ------------------------------------------------------------------------------------


def parser_of(command: str) -> argparse.ArgumentParser:
    """The parser that a command makes, caught when it would print its help."""
    caught: list[argparse.ArgumentParser] = []

    def catch(parser: argparse.ArgumentParser, file: object = None) -> None:
        caught.append(parser)

    main = importlib.import_module(f"promptseg.commands.{command}").main
    with patch.object(argparse.ArgumentParser, "print_help", catch):
        try:
            main(["--help"])
        except SystemExit:
            pass
    return caught[0]


def command_names() -> list[str]:
    """In the order of `setup.py`."""
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    (names,) = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "COMMANDS"
    ]
    return list(names)


def commands_page() -> str:
    lines = [
        "# Commands",
        "",
        "Every flag of every command, written from the parsers by",
        "`python documentation/generate.py`. A command prints the same with `--help`.",
        "",
        "`python -m promptseg NAME ...` runs the command `promptseg_NAME`; torchrun needs this",
        "form. An error that you can do something about is one message and exit code 1; a mistyped",
        "flag is exit code 2; an interrupted command exits with 130. `PROMPTSEG_LOG_LEVEL=DEBUG`",
        "adds the traceback.",
        "",
        "| command | |",
        "|---|---|",
    ]
    parsers = {name: parser_of(name) for name in command_names()}
    for parser in parsers.values():
        lines.append(f"| [`{parser.prog}`](#{parser.prog}) | {_sentence(parser.description)} |")
    for parser in parsers.values():
        lines += ["", f"## {parser.prog}", "", f"{_sentence(parser.description)}.", ""]
        lines += ["| flag | default | meaning |", "|---|---|---|"]
        shown = [a for a in parser._actions if not isinstance(a, argparse._HelpAction)]
        lines += [_flag_row(parser, action) for action in shown]
        lines += _exclusive(parser)
    return "\n".join(lines).rstrip() + "\n"


def _flag_row(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    names = ", ".join(f"`{name}`" for name in action.option_strings) or f"`{action.dest}`"
    takes = "" if action.nargs == 0 else f" {_value(action)}"
    text = " ".join(parser._get_formatter()._expand_help(action).split())
    if action.choices and not all(re.search(rf"\b{choice}\b", text) for choice in action.choices):
        text += f"; one of {', '.join(f'`{choice}`' for choice in action.choices)}"
    default = _default(action)
    if said := re.search(r" ?\(default: ([^()]+)\)", text):  # may tell more than the value does
        default = default if default == f"`{said[1]}`" else said[1]
        text = text.replace(said[0], "")
    return f"| {names}{takes} | {_cell(default)} | {_cell(text)} |"


def _value(action: argparse.Action) -> str:
    if not action.option_strings:
        return ""
    metavar = action.metavar or action.dest.upper()
    if isinstance(metavar, tuple):
        return " ".join(metavar)
    return {"+": f"{metavar} [...]", "*": f"[{metavar} ...]", "?": f"[{metavar}]"}.get(
        action.nargs, metavar
    )


def _default(action: argparse.Action) -> str:
    if action.required:
        return "required"
    default = action.default
    if action.nargs == 0 or default is None or default in ([], "", argparse.SUPPRESS):
        return ""
    if isinstance(default, list | tuple):
        default = " ".join(map(str, default))
    return f"`{default}`"


def _exclusive(parser: argparse.ArgumentParser) -> list[str]:
    groups = [
        " and ".join(f"`{action.option_strings[-1]}`" for action in group._group_actions)
        for group in parser._mutually_exclusive_groups
    ]
    return ["", f"Exclude each other: {'; '.join(groups)}."] if groups else []


# -- Python --------------------------------------------------------------------------------------


def python_page() -> str:
    import promptseg
    from promptseg.registry import Registry

    lines = [
        "# Python",
        "",
        "The public names, written from the code by `python documentation/generate.py`. They",
        "are loaded when first used; `help(promptseg.train)` prints parameters, errors and what",
        "is returned. Everything else may change unannounced.",
        "",
        "| name | |",
        "|---|---|",
    ]
    for name in sorted(promptseg.__all__, key=str.lower):
        value = getattr(promptseg, name)
        if isinstance(value, Registry):
            about = f"Registry of every {value.kind}: iterate for the names, `get` a class"
        elif name == "__version__":
            about = "Version of the package"
        else:
            about = " ".join(inspect.getdoc(value).split("\n\n")[0].split()).rstrip(".")
        call = "()" if inspect.isfunction(value) else ""
        lines.append(f"| `promptseg.{name}{call}` | {_cell(about)} |")
    lines += [
        "",
        'A script needs `if __name__ == "__main__":` around what it does, since worker processes',
        "import it anew. Importing promptseg reads no environment, makes no folder, seeds nothing",
        "and prints nothing. [A notebook](../how-to/notebook.md) shows the calls at work.",
    ]
    return "\n".join(lines) + "\n"


# -- settings ------------------------------------------------------------------------------------


def settings_table() -> str:
    from promptseg.training.settings import RECIPES, TrainingSettings

    def default(field: dataclasses.Field) -> str:
        value = _plain(field.default)
        for recipe, changes in RECIPES.items():
            if field.name in changes and changes[field.name] != field.default:
                value += f"; `{recipe}` {_plain(changes[field.name])}"
        return value

    return _dataclass_table(TrainingSettings, default, "train")


def run_table() -> str:
    from promptseg.training.request import RunOptions

    return _dataclass_table(RunOptions, lambda field: _plain(field.default), "train")


def prediction_table() -> str:
    from promptseg.inference.options import PredictionOptions

    return _dataclass_table(PredictionOptions, lambda field: _plain(field.default), "predict")


# Fields whose flag stores its value under another name.
_STORED_AS = {
    "resume": "c",
    "folds": "fold",
    "tta": "disable_tta",
    "parts": "num_parts",
    "part": "part_id",
    "readers": "npp",
    "writers": "nps",
}


def _dataclass_table(cls: type, default, command: str) -> str:
    stored = {
        action.dest: next(
            (name for name in action.option_strings if name.startswith("--")),
            action.option_strings[0] if action.option_strings else "",
        )
        for action in parser_of(command)._actions
    }
    names = [field.name for field in dataclasses.fields(cls)]
    flags = {name: stored.get(name) or stored.get(_STORED_AS.get(name, "")) for name in names}
    meanings = attributes_of(cls)
    lines = ["| name | flag | default | meaning |", "|---|---|---|---|"]
    for field in dataclasses.fields(cls):
        flag = f"`{flags[field.name]}`" if flags.get(field.name) else ""
        meaning = _cell(meanings[field.name])
        lines.append(f"| `{field.name}` | {flag} | {default(field)} | {meaning} |")
    return "\n".join(lines)


def attributes_of(cls: type) -> dict[str, str]:
    """What a docstring's `Attributes:` say of each field; several may share one entry."""
    section = inspect.getdoc(cls).split("Attributes:\n", 1)[1]
    found: dict[str, str] = {}
    for entry in re.split(r"\n    (?=\w)", "\n" + section.split("\n\n")[0])[1:]:
        names, text = entry.split(":", 1)
        for name in names.split(","):
            found[name.strip()] = " ".join(text.split()).rstrip(".")
    return found


def _plain(value: object) -> str:
    special = {None: "none", True: "on", False: "off", (): "none"}
    if isinstance(value, bool | None | tuple) and value in special:
        return special[value]
    if isinstance(value, float) and 0 < value < 1e-2:
        return re.sub(r"e-0?", "e-", f"{value:g}" if value < 1e-4 else f"{value:.0e}")
    return f"{value:g}" if isinstance(value, float) else str(value)


# -- layout --------------------------------------------------------------------------------------


def layers_list() -> str:
    """The rooms from the lowest up, as the test of imports has them."""
    from tests.test_house import ORDER

    return " < ".join(f"`{room}`" for room in ORDER)


def layout() -> str:
    """Every module under its room, with the first sentence of its docstring."""
    from tests.test_house import ORDER, modules, room_of

    lines = []
    for room in ORDER:
        of_room = [(n, path) for n, path in modules().items() if room_of(n) == room]
        package = PACKAGE / room / "__init__.py"
        about = _docstring(package) if package.is_file() else ""
        lines += [f"### {room}", "", *([f"{about}.", ""] if about else [])]
        lines += ["| module | |", "|---|---|"]
        lines += [
            f"| `{path.relative_to(PACKAGE).as_posix()}` | {_cell(about)} |"
            for _, path in of_room
            if path != package and (about := _docstring(path))
        ]
        lines.append("")
    return "\n".join(lines).rstrip()


def _docstring(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split()).rstrip(".")


# -- examples ------------------------------------------------------------------------------------


def registry_example() -> str:
    """The registry down to `get`, and a trainer that registers itself."""
    source, registry = _source_of("promptseg/registry.py", "Registry")
    *_, get = [node for node in registry.body if getattr(node, "name", "") == "get"]
    upper = "\n".join(source.splitlines()[registry.lineno - 1 : get.end_lineno])
    return _fenced(upper, _code("promptseg/training/trainers/fastvit.py", "FastViTTrainer"))


def docstring_example() -> str:
    """A function down to the end of its docstring."""
    source, node = _source_of("promptseg/prompts/simulated.py", "jitter_box")
    return _fenced("\n".join(source.splitlines()[node.lineno - 1 : node.body[0].end_lineno]))


def error_example() -> str:
    """The error for points outside an image."""
    source, node = _source_of("promptseg/prompts/checks.py", "check_inside")
    raised = [n for n in ast.walk(node) if isinstance(n, ast.Raise)]
    (found,) = [
        text
        for n in raised
        if "lie outside" in (text := ast.get_source_segment(source, n, padded=True))
    ]
    return _fenced(textwrap.dedent(found))


def test_example() -> str:
    name = "test_blending_constant_patches_gives_the_constant_everywhere"
    return _fenced(_code("tests/inference/test_sliding_window.py", name))


def _source_of(file: str, name: str) -> tuple[str, ast.ClassDef | ast.FunctionDef]:
    source = (ROOT / file).read_text(encoding="utf-8")
    (node,) = [n for n in ast.parse(source).body if getattr(n, "name", "") == name]
    return source, node


def _code(file: str, name: str) -> str:
    source, node = _source_of(file, name)
    first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
    return "\n".join(source.splitlines()[first - 1 : node.end_lineno])


def _fenced(*pieces: str) -> str:
    return "```python\n" + "\n\n\n".join(pieces) + "\n```"


# -- Markdown ------------------------------------------------------------------------------------


def _sentence(text: str) -> str:
    text = text.strip().rstrip(".")
    return text[:1].upper() + text[1:]


def _cell(text: str) -> str:
    """Text that may stand in a table: no bars, and no tag where it means a placeholder."""
    return text.replace("|", "\\|").replace("<", "&lt;")


PARTS = {
    "settings": settings_table,
    "run": run_table,
    "prediction": prediction_table,
    "layers": layers_list,
    "layout": layout,
    "registry": registry_example,
    "docstring": docstring_example,
    "error": error_example,
    "test": test_example,
}


def out_of_date() -> Iterator[Path]:
    for path, text in pages().items():
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            yield path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing")
    args = parser.parse_args()
    stale = list(out_of_date())
    for path in stale:
        print(f"{'out of date' if args.check else 'written'}: {path.relative_to(ROOT)}")
    if not args.check:
        for path, text in pages().items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return 1 if stale and args.check else 0


if __name__ == "__main__":
    sys.exit(main())

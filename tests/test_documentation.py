import ast
import re
import shlex
import sys
import unicodedata
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTATION = ROOT / "documentation"
PAGES = sorted(DOCUMENTATION.rglob("*.md"))
TEXTS = [*PAGES, ROOT / "README.md", ROOT / "CHANGELOG.md"]
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+)\)")

sys.path.insert(0, str(DOCUMENTATION))
import generate  # noqa: E402  (a script beside the pages, in no package)


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def without_code(text: str) -> str:
    """Markdown without fenced or indented blocks and without what is quoted in a line."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^(?: {4}|\t).*$", "", text, flags=re.MULTILINE)
    return re.sub(r"`[^`\n]+`", "", text)


@cache
def anchors(path: Path) -> set[str]:
    """Of the headings, as GitHub makes them and as mkdocs does, where both agree."""
    text = re.sub(r"^```.*?^```", "", path.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+?)\s*$", text, re.MULTILINE):
        heading = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        plain = unicodedata.normalize("NFKD", heading).encode("ascii", "ignore").decode()
        plain = re.sub(r"[^\w\s-]", "", plain).strip().lower()
        of_github, of_mkdocs = re.sub(r"\s", "-", plain), re.sub(r"[-\s]+", "-", plain)
        if of_github == of_mkdocs and of_github not in found:
            found.add(of_github)
    return found


def problem_of(target: str, page: Path) -> str | None:
    """What is wrong with a link from a page; nothing that leads out of the project is opened."""
    if re.match(r"(https?|mailto):", target):
        return None
    file, _, anchor = target.partition("#")
    path = (page.parent / file).resolve() if file else page
    if not path.is_relative_to(ROOT) or not path.exists():
        return "there is no such file"
    if DOCUMENTATION in page.parents and not path.is_relative_to(DOCUMENTATION):
        return "leads out of documentation/, where the site cannot follow"
    if anchor and (path.suffix != ".md" or anchor not in anchors(path)):
        return f"{name(path)} has no heading #{anchor}"
    return None


@pytest.mark.parametrize("page", TEXTS, ids=name)
def test_links_lead_somewhere(page):
    links = LINK.findall(without_code(page.read_text("utf-8")))
    dead = {link: problem for link in links if (problem := problem_of(link, page))}
    assert not dead


def test_a_dead_link_is_found(tmp_path):
    page = DOCUMENTATION / "index.md"
    assert LINK.findall("[a](b.md) ![c `d`](e/f.png) [g](h.md#i-j)") == [
        "b.md", "e/f.png", "h.md#i-j"
    ]  # fmt: skip
    assert problem_of("getting-started.md", page) is None
    assert problem_of("getting-started.md#install", page) is None
    assert problem_of("https://example.org", page) is None
    assert problem_of("no-such-page.md", page) == "there is no such file"
    assert "no heading #nothing" in problem_of("getting-started.md#nothing", page)
    assert "leads out" in problem_of("../README.md", page)


def test_files_of_the_documentation_that_are_named_anywhere_exist():
    sources = [p for folder in ("promptseg", "benchmarks") for p in (ROOT / folder).rglob("*.py")]
    dead = [
        f"{name(path)}: {mentioned}"
        for path in [*sources, *TEXTS]
        for mentioned in re.findall(r"documentation/[\w/.-]*\.\w+", path.read_text("utf-8"))
        if not (ROOT / mentioned).is_file()
    ]
    assert not dead


def test_every_page_is_in_the_site_and_can_be_reached():
    nav = (ROOT / "mkdocs.yml").read_text("utf-8").split("\nnav:\n")[1]
    listed = re.findall(r"- ([\w/-]+\.md)", nav)
    assert sorted(listed) == [page.relative_to(DOCUMENTATION).as_posix() for page in PAGES]


def test_generated_pages_are_up_to_date():
    stale = [name(path) for path in generate.out_of_date()]
    assert not stale, f"run `python documentation/generate.py`; out of date: {', '.join(stale)}"


def test_everything_is_generated():
    commands = generate.commands_page()
    for command in generate.command_names():
        assert f"\n## promptseg_{command}\n" in commands
        for action in generate.parser_of(command)._actions[1:]:  # but --help
            assert all(f"`{flag}`" in commands for flag in action.option_strings)
    assert "| `epochs` | `--epochs` | 200; `paper` 3000 |" in generate.settings_table()
    layout = generate.layout()
    for path in (ROOT / "promptseg").rglob("*.py"):
        if path.name != "__init__.py":
            assert f"| `{path.relative_to(ROOT / 'promptseg').as_posix()}` | " in layout


def test_the_walk_passes_files_that_exist_none_twice():
    text = (DOCUMENTATION / "architecture.md").read_text("utf-8")
    walk = text[text.index("## A walk") : text.index("## Layout")]
    passed = re.findall(r"^\| `([\w/]+\.py)` \|", walk, re.MULTILINE)
    assert len(passed) > 40 and len(set(passed)) == len(passed)
    assert [path for path in passed if not (ROOT / "promptseg" / path).is_file()] == []


# Commands and code of the pages: what they show must at least be readable for what it is for.


def shown_commands() -> list[tuple[str, str]]:
    found = []
    for page in TEXTS:
        text = re.sub(r" *\\\n\s*", " ", page.read_text("utf-8"))
        for line in re.findall(r"^(?: {4})?(promptseg_\w+ -.+)$", text, re.MULTILINE):
            found.append((name(page), line.strip()))
    return found


def test_the_pages_show_commands():
    assert len(shown_commands()) > 50


@pytest.mark.parametrize(("page", "line"), shown_commands())
def test_commands_that_are_shown_are_understood(page, line):
    if re.search(r"(\.\.\.|\[-)", line):
        pytest.skip("an outline, not a command to type")
    program, *arguments = shlex.split(line.replace("$SLURM_ARRAY_TASK_ID", "0"), comments=True)
    parser = generate.parser_of(program.removeprefix("promptseg_"))
    parser.parse_args([word for word in arguments if word not in ("&", "$continue")])


def shown_code() -> list[tuple[str, str]]:
    return [
        (f"{name(page)}-{number}", code)
        for page in TEXTS
        for number, code in enumerate(
            re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
        )
    ]


@pytest.mark.parametrize(("where", "code"), shown_code(), ids=[where for where, _ in shown_code()])
def test_code_that_is_shown_imports_what_exists(where, code):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "promptseg":
            module = __import__(node.module, fromlist=[alias.name for alias in node.names])
            missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
            assert not missing
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "promptseg":
            assert hasattr(__import__("promptseg"), node.attr), node.attr

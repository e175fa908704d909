"""The package's layout: imports go down, modules and functions are small, one word a thing."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "promptseg"

# Each imports from those before it and from itself; all modules beside the rooms but the last few
# are tools that every room may use.
ORDER = (
    "tools",
    "io",
    "preprocessing",
    "prompts",
    "networks",
    "training",
    "experiment_planning",
    "inference",
    "segvol",
    "evaluation",
    "export",
    "conversion",
    "pipeline",
    "demo",
    "commands",
    "__main__",
)
MOST_LINES = 350  # of a module
MOST_LINES_OF_FUNCTION = 60
MOST_PARAMETERS = 8
LONG, MANY = "Longer than usual:", "More parameters than usual:"  # in a docstring, with the reason

FORMER_WORDS = {  # what is not to be found, and what it is called instead
    r"\bheld[ -_]back\b": "held out",
    r"\b(go|goes|going|went|gone) on\b": "continue",
    r"\bthe truth\b": "ground truth",
    r"\bin one step\b": "atomically",
    r"\bnumber types?\b": "dtype",
    r"\b(came|comes|come|falls|fall) apart\b": "diverged",
    r"\bis there twice\b|\bthere twice\b": "duplicate",
    r"\bname is taken\b|\bis taken by\b|\bis taken\b[.,;:]": "already exists",
    r"(?<!--)\b(jitters|moved prompts?|moved copies)\b": "n_perturbations, perturbed prompts",
    r"\bagreement\b": "prompt_consistency",
    r"\b(is_first|from_first|start_alike)\b": "is_rank_zero, run_on_rank_zero, broadcast_weights",
    r"\b(descend|loss_of)\b": "optimizer_step, compute_loss",
    r"\b(is_own|places=|sought)\b": "token_mask, image_pe, scheduled",
    r"\w_share\b": "..._fraction",
    r"(?<![Tt]here )\b(is|are|was|were) no (?!longer|more|less|such|fewer|better)": "is not a",
    r"\b(one|once|two|row|line|file|box|entry|network|page|number|value|name|map|batch) an? "
    r"(axis|box|bound|case|channel|class|column|decision|encoder|face|file|fold|image|item|label"
    r"|machine|network|object|page|point|problem|prompt|query|row|run|slice|step|strategy|structure"
    r"|task|time|voxel|worker)\b": "per",
    r"\b(drawn|cropped|look|placed|turned|mirrored|boxes|box|closed|voxels) round\b": "around",
}


def room_of(module: str) -> str:
    """The place in `ORDER` of a dotted module name."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in ORDER else "tools"


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports() -> dict[str, set[str]]:
    """For each module those of the package that it imports, in functions and for types, too."""
    known = modules()
    found = {}
    for module, path in known.items():
        found[module] = names = set()
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{module}: relative imports are not followed here"
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    names.add(inner if inner in known else node.module)
        found[module] = {name for name in names if name in known} - {module}
    return found


def test_imports_only_go_down():
    up = [
        f"{module} imports {other}"
        for module, others in imports().items()
        for other in sorted(others)
        if ORDER.index(room_of(other)) > ORDER.index(room_of(module))
    ]
    assert not up


def test_no_imports_go_round_in_a_circle():
    graph, done, cycles = imports(), set(), []

    def visit(module: str, path: tuple[str, ...]) -> None:
        if module in path:
            cycles.append(" -> ".join([*path[path.index(module) :], module]))
        elif module not in done:
            for other in sorted(graph[module]):
                visit(other, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())
    assert not cycles


def test_the_walk_finds_an_import_that_goes_up_and_a_circle():
    # The two tests above would pass on an empty graph.
    graph = imports()
    assert "promptseg.io.images" in graph["promptseg.preprocessing.preprocess"]
    assert ORDER.index(room_of("promptseg.plans")) < ORDER.index(room_of("promptseg.io.images"))
    assert room_of("promptseg.inference.batch.case") == "inference"
    assert room_of("promptseg.pipeline") == "pipeline" and room_of("promptseg") == "tools"


def test_modules_can_be_read_at_a_sitting():
    lengths = {module: len(path.read_text().splitlines()) for module, path in modules().items()}
    assert {module: n for module, n in lengths.items() if n > MOST_LINES} == {}


def test_inference_has_few_files():
    assert len(list((PACKAGE / "inference").rglob("*.py"))) <= 18


def functions() -> list[tuple[str, ast.FunctionDef]]:
    return [
        (f"{module}.{node.name}", node)
        for module, path in modules().items()
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def test_functions_are_short_or_say_why_not():
    long = [
        f"{name}: {lines} lines"
        for name, node in functions()
        if (lines := node.end_lineno - node.lineno + 1) > MOST_LINES_OF_FUNCTION
        and LONG not in (ast.get_docstring(node) or "")
    ]
    assert not long


def test_functions_have_few_parameters_or_say_why_not():
    many = []
    for name, node in functions():
        all_of_them = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        names = [argument.arg for argument in all_of_them if argument.arg not in ("self", "cls")]
        if len(names) > MOST_PARAMETERS and MANY not in (ast.get_docstring(node) or ""):
            many.append(f"{name}: {len(names)} parameters")
    assert not many


@pytest.mark.parametrize("former", FORMER_WORDS)
def test_one_word_is_used_for_one_thing(former):
    pattern = re.compile(former)
    files = [*PACKAGE.rglob("*.py"), *(ROOT / "documentation").rglob("*.md"), ROOT / "README.md"]
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in files
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line) and "_FORMER_NAMES = " not in line
    ]
    assert not found, f"write {FORMER_WORDS[former]!r}:\n" + "\n".join(found)

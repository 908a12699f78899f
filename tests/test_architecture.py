"""The layers of the package and its limits, read from the source."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "cmdvid"
FILES = sorted(SOURCE.rglob("*.py"))
LAYERS = (  # a row imports only from rows above it
    {"types", "frames", "signals", "whole"},
    {"container", "pixels"},
    {"window"},
    {"video", "reencode", "sheet", "losses", "optim", "metrics"},
    {"models", "data"},
    {"report", "report_html", "manifest", "protocols"},
    {"vectors", "draws", "evaluation", "evaluator"},
    {"request", "pipeline", "stages", "callbacks", "progress", "export", "preemption"},
    {"profiling", "memory", "cost_parts", "cost_report"},
    {"profile_command", "evaluate_command", "settings", "trainer", "cli", "slurm"},
    {"__main__", "__init__"},
)
STRANGERS = ({"models", "data"},)  # same row, and yet they never meet
EXCEPTIONS = {
    ("metrics/shapes.py", "data"),  # asks the oracle of the shapes, which reads nothing but pixels
}
# module: who alone may import it
ONLY = {
    "lightning": {
        "stages",
        "callbacks",
        "progress",
        "data",
        "evaluation",
        "preemption",
        "profile_command",
        "settings",
        "trainer",
        "cli",
    },
    "av": {"container", "pixels", "video", "reencode"},
    "jsonargparse": {
        "profile_command",
        "evaluate_command",
        "protocols",
        "settings",
        "cli",
        "slurm",
        "__main__",
    },
}


def unit(path: Path) -> str:
    """Name the module or package of cmdvid that a file belongs to."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Collect the dotted names of all modules that a file imports, at any depth."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import in line {node.lineno}"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own_imports(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imports(path) if name.startswith("cmdvid.")}


def layer(name: str) -> int:
    rows = [row for row, names in enumerate(LAYERS) if name in names]
    assert rows, f"cmdvid.{name} has no layer: give it one in LAYERS"
    return rows[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_file_imports_only_from_layers_below(path):
    here, file = unit(path), str(path.relative_to(SOURCE))
    for name in own_imports(path) - {here, "__version__"}:
        if (file, name) in EXCEPTIONS:
            continue
        assert layer(name) <= layer(here), f"{here} must not import cmdvid.{name}"
        assert not any({name, here} <= pair for pair in STRANGERS), f"{here} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_library_is_imported_only_where_it_belongs(path):
    for library, allowed in ONLY.items():
        if unit(path) not in allowed:
            assert library not in {name.split(".")[0] for name in imports(path)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_file_is_small_and_named_by_what_it_does(path):
    assert len(path.read_text().splitlines()) <= 300
    assert path.stem not in {"utils", "util", "helpers", "common", "misc"}


def test_own_classes_inherit_from_each_other_only_where_libraries_leave_no_other_way():
    trees = [(path, ast.parse(path.read_text())) for path in FILES]
    classes = [
        (p, node) for p, tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)
    ]
    # hooks that Lightning looks for on the module itself; a mixin, as diffusers' own loaders are
    allowed = {"VideoError", "DiffusionStage", "LoraLoader"}
    own = {node.name for _, node in classes} - allowed
    for path, node in classes:
        bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
        assert not bases & own, f"{path}: {node.name} inherits from {bases & own}"

"""The structure of docs/architecture.md: allowed imports between packages, no cycles, size limits."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

ALLOWED = {
    "kernels": frozenset[str](),
    "models": frozenset({"kernels"}),
    "pipelines": frozenset({"kernels"}),
    "graph_train": frozenset({"kernels", "models", "pipelines"}),
    "benchmarks": frozenset({"kernels", "models", "pipelines", "graph_train"}),
}
LAYERS: dict[str, tuple[tuple[str, ...], ...]] = {
    "graph_train": (
        ("host", "metrics"),
        ("ranks",),
        ("settings",),
        ("engine",),
        ("detection", "runs"),
        ("exporting", "hooks", "plots"),
        ("validation",),
        ("prediction", "training"),
        ("checks",),
        ("report",),
        ("evolution",),
        ("launch",),
        ("cli",),
    ),
    "pipelines": (("data",), ("augmentation",), ("pixels",)),
    "benchmarks": (("harness",), ("peers", "step"), ("data",), ("inference", "resilience", "training")),
}
"""Subpackages, lowest first: each imports only those below it, also within functions. Modules may import all of
them."""
MAX_FUNCTION_LINES = 50
MAX_P90_FUNCTION_LINES = 25
MAX_FILE_LINES = 500


CODE_SUFFIXES = (".py", ".cpp", ".h", ".cu", ".js", ".css", ".html")


def code_files(*packages: str) -> list[Path]:
    paths = (path for package in packages for path in sorted((ROOT / package).rglob("*")))
    return [path for path in paths if path.suffix in CODE_SUFFIXES]


def sources(*packages: str) -> list[Path]:
    return [path for path in code_files(*packages) if path.suffix == ".py"]


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(tree: ast.AST) -> Iterator[str]:
    """Yield the full names of all imports: modules, and for `from m import n` both m and m.n."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, f"line {node.lineno}: a relative import hides where it leads"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_at_load(path: Path) -> Iterator[str]:
    """Yield as `imported` does, without imports inside functions."""
    for node in parsed(path).body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            yield from imported(node)


@pytest.mark.parametrize("package", ALLOWED)
def test_packages_import_only_lower_ones(package: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources(package)
        for name in imported(parsed(path))
        if name.split(".")[0] in ALLOWED.keys() | {"tests"} and name.split(".")[0] not in ALLOWED[package] | {package}
    ]
    assert not wrong


@pytest.mark.parametrize("whole", LAYERS)
def test_subpackages_import_only_lower_ones(whole: str) -> None:
    floor = {part: number for number, parts in enumerate(LAYERS[whole]) for part in parts}
    assert {path.parent.name for path in (ROOT / whole).glob("*/__init__.py")} == floor.keys()
    wrong = []
    for part, own in floor.items():
        for path in sources(f"{whole}/{part}"):
            others = {name.split(".")[1] for name in imported(parsed(path)) if name.startswith(f"{whole}.")} - {part}
            wrong += [f"{path.relative_to(ROOT)} imports {other}" for other in others if floor.get(other, own) >= own]
    assert not wrong


def test_no_import_cycles() -> None:
    modules = {module_name(path): path for path in sources(*ALLOWED)}
    graph = {
        name: {other for other in imported_at_load(path) if other in modules and other != name}
        for name, path in modules.items()
    }
    # A package's __init__ is loaded with each of its modules, so its imports of them are not cycles.
    for name, path in modules.items():
        if path.name == "__init__.py":
            graph[name] = {other for other in graph[name] if not other.startswith(f"{name}.")}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_only_runtime_imports_oneflow() -> None:
    loaders = {
        str(path.relative_to(ROOT))
        for path in sources(*ALLOWED)
        if any(name.split(".")[0] == "oneflow" for name in imported(parsed(path)))
    }
    assert loaders == {"kernels/runtime.py"}


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count the lines of a function without its docstring."""
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    first = function.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        lines -= (first.end_lineno or first.lineno) - first.lineno + 1
    return lines


def functions(source: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield all functions, including methods and nested functions."""
    for node in ast.walk(source):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


MEASURED = """
class Thing:
    async def method(self):
        '''Docstrings
        do not count.'''
        def inner():
            return 1

        return inner
"""


def test_code_lines_known_values() -> None:
    assert [(item.name, code_lines(item)) for item in functions(ast.parse(MEASURED))] == [("method", 5), ("inner", 2)]


def test_no_formatter_exceptions() -> None:
    marks = re.compile(r"# fmt: ?(skip|off)|clang-format (off)")
    assert [
        str(path.relative_to(ROOT)) for path in code_files(*ALLOWED, "tests") if marks.search(path.read_text())
    ] == []


def test_function_and_file_sizes() -> None:
    sizes = {
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}": code_lines(node)
        for path in sources(*ALLOWED, "tests")
        for node in functions(parsed(path))
    }
    assert len(sizes) > 3000
    assert [name for name, lines in sizes.items() if lines > MAX_FUNCTION_LINES] == []
    assert sorted(sizes.values())[int(0.9 * len(sizes))] <= MAX_P90_FUNCTION_LINES
    lengths = {path: len(path.read_text().splitlines()) for path in code_files(*ALLOWED, "tests")}
    assert [str(path.relative_to(ROOT)) for path, lines in lengths.items() if lines > MAX_FILE_LINES] == []


def test_no_merge_conflict_markers() -> None:
    mark = re.compile(rb"^(?:<{7}|>{7}) ", re.MULTILINE)
    folders = [ROOT / name for name in (*ALLOWED, "docs", "tests")]
    files = [file for folder in folders for file in folder.rglob("*") if file.suffix in (".md", ".py", ".cpp", ".yaml")]
    files += [*ROOT.glob("*.md"), *ROOT.glob("*.toml")]
    assert [str(file.relative_to(ROOT)) for file in files if mark.search(file.read_bytes())] == []

"""`graph-bench report`: turns result files into a page of the documentation, with pictures."""

import argparse
import os
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.cli import benchmark_parser
from benchmarks.harness.machine import PROJECT_FOLDER, is_busy
from benchmarks.harness.points import Point
from benchmarks.harness.results import is_result, read_result, without_folders
from benchmarks.harness.tables import as_markdown
from benchmarks.registry import BENCHMARKS
from kernels.host.files import write_atomically

RESULTS_FOLDER = PROJECT_FOLDER / "benchmarks" / "results"
PAGE = PROJECT_FOLDER / "docs" / "benchmarks.md"
_PICTURES = Path("images") / "benchmarks"
_LISTS = ("points", "variants", "ranks")
"""Flags that list what has a row each: results are compared by their rows instead."""
_SAME = ("repeats", "starts", "seed", "torch_python", "work")
"""Flags that change neither what is measured nor how much; results that differ in others are both shown."""
_ROW = ("variant", "model", "batch_size", "imgsz", "ranks")
"""What makes a row of a benchmark that has `--points`."""
Kept = tuple[Path, Mapping[str, Any]]
"""A result and where it is."""

_HEAD = """# Benchmarks

Written by `graph-bench report` from the raw files below `benchmarks/results/`; nothing here was typed by hand.

What is compared ran in turn within one run (A B A B …) after a warm-up, each side in a process of its own that slept
while the others worked. Numbers are medians, with quartiles beside them; ratios were taken within each turn, so that
other work on the machine meets both sides. `uv run graph-bench NAME --help` tells how to repeat one,
`uv run graph-bench all --out FOLDER` repeats those that take minutes. A later result replaces an earlier one of the
same benchmark and settings; an earlier one of which only a part was measured again says so.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add flags: where results are and where the page goes."""
    parser.add_argument("--results", metavar="FOLDER", default=str(RESULTS_FOLDER), help="folder of *.json results")
    parser.add_argument("--out", metavar="FILE", default=str(PAGE), help="Markdown page; pictures go beside it")


def run(flags: argparse.Namespace) -> int:
    """Write the page."""
    results, page = Path(flags.results), Path(flags.out)
    found = newest(results)
    if not found:
        raise ValueError(f"--results {results}: no result of graph-bench below it; run graph-bench all --out FOLDER")
    if not page.parent.is_dir():
        raise ValueError(f"--out {page}: the folder does not exist; make it first")
    pictures = page.parent / _PICTURES
    pictures.mkdir(parents=True, exist_ok=True)
    for path, result in found:
        module = import_module(BENCHMARKS[result["benchmark"]].module)
        module.plot(result, pictures / _picture_name(path, results))
    write_atomically(page, page_text(found, results))
    print(f"{page}: {len(found)} results")
    return 0


def page_text(found: Sequence[Kept], results: Path) -> str:
    """Return the page with the tables of all results; `results` is the folder they are below."""
    sections = [_HEAD]
    for name, entry in BENCHMARKS.items():
        mine = [(path, result) for path, result in found if result["benchmark"] == name]
        if mine:
            sections.append(f"## {name}\n\n{entry.summary[0].upper()}{entry.summary[1:]}.\n")
            sections += [_section(path, result, found, results) for path, result in mine]
    return "\n".join(sections)


def newest(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Return the newest result of each benchmark, machine and setting; log the files that are no results.

    A result is in the place of another of the same benchmark, machine and settings (but for `_SAME`) if it has all of
    its rows (`_ROW`), where the benchmark has points.

    Raises:
        ValueError: a result of another format.
    """
    found: list[tuple[Path, dict[str, Any]]] = []
    for path in sorted(folder.rglob("*.json")):
        result = read_result(path) if is_result(path) else {}
        if result.get("benchmark") in BENCHMARKS:
            found.append((path, result))
        else:
            print(f"{path}: left out, not a result of graph-bench")
    return [
        (path, result)
        for path, result in found
        if not any(_rows(result) <= _rows(other) for _, other in _newer(result, found))
    ]


def _newer(result: Mapping[str, Any], found: Sequence[Kept]) -> list[Kept]:
    """Return the later results of the same benchmark, machine and settings."""
    return [
        (path, other)
        for path, other in found
        if other["created"] > result["created"] and _measured(other) == _measured(result)
    ]


def _measured(result: Mapping[str, Any]) -> tuple[object, ...]:
    """Return benchmark, machine, and what the flags that the benchmark has today were set to."""
    defaults = _defaults(result["benchmark"])
    # Of a benchmark with points `--quick` only chooses other ones.
    told_by_rows = (*_LISTS, "quick") if "points" in defaults else ()
    asked = (
        _plain(result["settings"].get(name, default))
        for name, default in defaults.items()
        if name not in (*_SAME, *told_by_rows)
    )
    machine = result["machine"]
    return (result["benchmark"], machine["processor"], *machine["gpus"], *asked)


@cache
def _defaults(benchmark: str) -> Mapping[str, object]:
    """Return the defaults of a benchmark's flags that say how to measure."""
    actions = benchmark_parser(benchmark)._actions
    return {action.dest: action.default for action in actions if action.dest not in ("help", "json", "plot", "debug")}


def _plain(value: object) -> str:
    """Return a setting as text; older results have whole paths, and both forms name the same yaml."""
    return str(without_folders(value)).removesuffix(".yaml")


def _rows(result: Mapping[str, Any]) -> frozenset[tuple[object, ...]]:
    """Return the points that a result has measured; a benchmark without points has none."""
    if "points" not in _defaults(result["benchmark"]):
        return frozenset()
    return frozenset(tuple(row.get(name) for name in _ROW) for row in result["rows"])


def superseded(result: Mapping[str, Any], found: Sequence[Kept]) -> str:
    """Return a remark on a result of older code, some of whose rows were measured again; "" for others."""
    newer = [
        (path, other)
        for path, other in _newer(result, found)
        if other["commit"] != result["commit"] and _rows(other) & _rows(result)
    ]
    if not newer:
        return ""
    files = ", ".join(f"`{_shown(path)}`" for path, _ in newer)
    left = _rows(result).difference(*(_rows(other) for _, other in newer))
    but = f", but for {', '.join(sorted(map(_row_name, left)))}" if left else ""
    return f" **Older code: superseded by {files}{but}.**"


def _row_name(row: tuple[Any, ...]) -> str:
    variant, model, batch_size, imgsz, ranks = row
    what = variant or f"{ranks} ranks"
    return f"{what} ({Point(model, batch_size, imgsz)})"


def _section(path: Path, result: Mapping[str, Any], found: Sequence[Kept], results: Path) -> str:
    shown = f"![{result['benchmark']}]({_PICTURES / _picture_name(path, results)})"
    return "\n\n".join([_origin(path, result) + superseded(result, found), tables_text(result), shown]) + "\n"


def _picture_name(path: Path, results: Path) -> str:
    return "-".join(path.relative_to(results).with_suffix("").parts) + ".png"


def tables_text(result: Mapping[str, Any]) -> str:
    """Return a result's tables as the page has them."""
    module = import_module(BENCHMARKS[result["benchmark"]].module)
    return "\n\n".join(f"**{table.title}**\n\n{as_markdown(table)}" for table in module.tables(result))


def _shown(path: Path) -> str:
    return os.path.relpath(path, PROJECT_FOLDER) if path.is_relative_to(PROJECT_FOLDER) else path.name


def _origin(path: Path, result: Mapping[str, Any]) -> str:
    machine = result["machine"]
    where = ", ".join([machine["processor"], f"{machine['cores']} cores", *machine["gpus"]])
    busy = f" **The machine was busy (load {machine['load_average']}): only ratios count.**" if is_busy(machine) else ""
    versions = result["versions"]
    commit = result["commit"][:10] or "none"
    return (
        f"{where}; {result['created'][:10]}, commit `{commit}`, OneFlow {versions['oneflow']}; "
        f"flags: {_flags(result['settings'])}; raw file `{_shown(path)}`.{busy}"
    )


def _flags(settings: Mapping[str, Any]) -> str:
    shown: list[str] = []
    for name, value in settings.items():
        if value in (None, False, "") or name == "torch_python":
            continue
        # Older results have whole paths of the machine that measured, which tell a reader nothing.
        kept = without_folders(value)
        text = " ".join(map(str, kept)) if isinstance(kept, Sequence) and not isinstance(kept, str) else str(kept)
        shown.append(f"`--{name.replace('_', '-')}`" if value is True else f"`--{name.replace('_', '-')} {text}`")
    return " ".join(shown)

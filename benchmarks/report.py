"""`graph-bench report`: turns result files into a page of the documentation, with pictures."""

import argparse
import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.machine import PROJECT_FOLDER, is_busy
from benchmarks.registry import BENCHMARKS
from benchmarks.results import is_result, read_result
from benchmarks.tables import as_markdown
from graph_train.files import write_atomically

RESULTS_FOLDER = PROJECT_FOLDER / "benchmarks" / "results"
PAGE = PROJECT_FOLDER / "docs" / "benchmarks.md"
_PICTURES = Path("images") / "benchmarks"
_TOLD_APART = ("device", "signal", "variants", "points", "epochs")
"""Flags that make a different measurement of a benchmark, so that both are shown."""

_HEAD = """# Benchmarks

Written by `graph-bench report` from the raw files below `benchmarks/results/`; nothing here was typed by hand.

What is compared ran in turn within one run (A B A B …) after a warm-up, each side in a process of its own that slept
while the others worked. Numbers are medians, with quartiles beside them; ratios were taken within each turn, so that
other work on the machine meets both sides. `graph-bench NAME --help` tells how to repeat one, `graph-bench all --out
FOLDER` repeats them all.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where results are and where the page goes."""
    parser.add_argument("--results", metavar="FOLDER", default=str(RESULTS_FOLDER), help="folder of *.json results")
    parser.add_argument("--out", metavar="FILE", default=str(PAGE), help="Markdown page; pictures go beside it")


def run(flags: argparse.Namespace) -> int:
    """Writes the page."""
    results, page = Path(flags.results), Path(flags.out)
    found = newest(results)
    if not found:
        raise ValueError(f"--results {results}: no result of graph-bench below it; run graph-bench all --out FOLDER")
    if not page.parent.is_dir():
        raise ValueError(f"--out {page}: the folder does not exist; make it first")
    pictures = page.parent / _PICTURES
    pictures.mkdir(parents=True, exist_ok=True)
    sections = [_HEAD]
    for name, entry in BENCHMARKS.items():
        mine = [(path, result) for path, result in found if result["benchmark"] == name]
        if mine:
            sections.append(f"## {name}\n\n{entry.summary[0].upper()}{entry.summary[1:]}.\n")
            sections += [_section(path, result, results, pictures) for path, result in mine]
    write_atomically(page, "\n".join(sections))
    print(f"{page}: {len(found)} results")
    return 0


def newest(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The newest result of each benchmark on each kind of machine, device and signal; says which files are none.

    Raises:
        ValueError: a result of another format.
    """
    kept: dict[tuple[str, ...], tuple[Path, dict[str, Any]]] = {}
    for path in sorted(folder.rglob("*.json")):
        result = read_result(path) if is_result(path) else {}
        if result.get("benchmark") not in BENCHMARKS:
            print(f"{path}: left out, not a result of graph-bench")
            continue
        machine = result["machine"]
        asked = [str(result["settings"].get(name)) for name in _TOLD_APART]
        key = (result["benchmark"], machine["processor"], *asked, *machine["gpus"])
        if key not in kept or kept[key][1]["created"] < result["created"]:
            kept[key] = (path, result)
    return list(kept.values())


def _section(path: Path, result: Mapping[str, Any], results: Path, pictures: Path) -> str:
    module = import_module(BENCHMARKS[result["benchmark"]].module)
    name = "-".join(path.relative_to(results).with_suffix("").parts)
    picture = pictures / f"{name}.png"
    module.plot(result, picture)
    tables = [f"**{table.title}**\n\n{as_markdown(table)}" for table in module.tables(result)]
    shown = f"![{result['benchmark']}]({_PICTURES / picture.name})"
    return "\n\n".join([_origin(path, result), *tables, shown]) + "\n"


def _origin(path: Path, result: Mapping[str, Any]) -> str:
    machine = result["machine"]
    where = ", ".join([machine["processor"], f"{machine['cores']} cores", *machine["gpus"]])
    raw = os.path.relpath(path, PROJECT_FOLDER) if path.is_relative_to(PROJECT_FOLDER) else path.name
    busy = f" **The machine was busy (load {machine['load_average']}): only ratios count.**" if is_busy(machine) else ""
    versions = result["versions"]
    commit = result["commit"][:10] or "none"
    return (
        f"{where}; {result['created'][:10]}, commit `{commit}`, OneFlow {versions['oneflow']}; "
        f"flags: {_flags(result['settings'])}; raw file `{raw}`.{busy}"
    )


def _flags(settings: Mapping[str, Any]) -> str:
    shown: list[str] = []
    for name, value in settings.items():
        # Paths of the machine that measured tell a reader nothing.
        if value in (None, False) or name == "torch_python":
            continue
        text = " ".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)
        shown.append(f"`--{name.replace('_', '-')}`" if value is True else f"`--{name.replace('_', '-')} {text}`")
    return " ".join(shown)

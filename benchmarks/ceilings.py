"""`graph-bench ceilings`: how fast this machine multiplies matrices and copies memory, the yardstick of speeds."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.measure import summarise, take_turns
from benchmarks.tables import Table, rows_of
from benchmarks.workers import Worker


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No flags of its own."""


def run(flags: argparse.Namespace) -> dict[str, Any]:
    """Measures both ceilings."""
    return {"rows": measure_ceilings(flags.device, flags.threads, flags.repeats)}


def measure_ceilings(device: str, threads: int, repeats: int) -> list[dict[str, Any]]:
    """Rows with `what`, `unit`, `value` (the median) and quartiles; what a device cannot compute is left out."""
    with Worker("ceilings", "benchmarks.ceilings_worker", threads=threads) as worker:
        kinds = worker.call("prepare", device=device, threads=threads)
        runners = {kind: lambda kind=kind: float(worker.call("once", kind=kind)) for kind in kinds}
        measured = take_turns(runners, repeats=repeats, label="ceilings")
    rows = []
    for kind, unit in kinds.items():
        summary = summarise(measured[kind])
        rows.append({"what": kind, "unit": unit, "value": summary.median, **summary.as_dict()})
    return rows


def ceilings_by_name(rows: list[dict[str, Any]]) -> dict[str, float]:
    """What -> the fastest turn: a ceiling is what the machine can do, not what it did beside other work."""
    return {row["what"]: row["highest"] for row in rows}


def tables(body: Mapping[str, Any]) -> list[Table]:
    """One table."""
    columns = {"what": "what", "median": "value", "lower quartile": "lower_quartile",
               "upper quartile": "upper_quartile", "unit": "unit"}  # fmt: skip
    return [rows_of(body["rows"], columns, "Ceilings", "copy counts bytes read and bytes written")]


def plot(body: Mapping[str, Any], path: Path) -> None:
    """One panel per unit."""
    from benchmarks.plots import bars

    groups: dict[str, dict[str, tuple[float, float, float]]] = {}
    for row in body["rows"]:
        quartiles = (row["value"], row["lower_quartile"], row["upper_quartile"])
        groups.setdefault(row["unit"], {})[row["what"]] = quartiles
    bars(groups, path, title="Ceilings of the machine", unit="")

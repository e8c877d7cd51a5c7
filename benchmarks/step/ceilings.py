"""`graph-bench ceilings`: peak matrix multiplication and memory copy speed of this machine."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.harness.flags import add_repeats
from benchmarks.harness.measure import summarise, take_turns
from benchmarks.harness.tables import Table, rows_of
from benchmarks.harness.workers import BLAS_LIMITS, Worker


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--repeats`."""
    add_repeats(parser)


def run(flags: argparse.Namespace) -> dict[str, Any]:
    """Measure both ceilings."""
    return {"rows": measure_ceilings(flags.device, flags.threads, flags.repeats)}


def measure_ceilings(device: str, threads: int, repeats: int) -> list[dict[str, Any]]:
    """Return rows with `what`, `unit`, `value` (the median) and quartiles, for all types that the device supports.

    They are measured without `BLAS_LIMITS`, which each row records as "without".
    """
    with Worker("ceilings", "benchmarks.step.ceilings_worker", threads=threads) as worker:
        kinds = worker.call("prepare", device=device, threads=threads)
        runners = {kind: lambda kind=kind: float(worker.call("once", kind=kind)) for kind in kinds}
        measured = take_turns(runners, repeats=repeats, label="ceilings")
    rows = []
    for kind, unit in kinds.items():
        summary = summarise(measured[kind])
        rows.append(
            {"what": kind, "unit": unit, "value": summary.median, **summary.as_dict(), "without": list(BLAS_LIMITS)}
        )
    return rows


def ceilings_by_name(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return the fastest turn of each ceiling, as the median may suffer from other load."""
    return {row["what"]: row["highest"] for row in rows}


def tables(body: Mapping[str, Any]) -> list[Table]:
    """Return one table."""
    columns = {
        "what": "what",
        "median": "value",
        "lower quartile": "lower_quartile",
        "upper quartile": "upper_quartile",
        "unit": "unit",
    }
    return [rows_of(body["rows"], columns, "Ceilings", "copy counts bytes read and bytes written")]


def plot(body: Mapping[str, Any], path: Path) -> None:
    """Plot one panel per unit."""
    from benchmarks.harness.plots import bars

    groups: dict[str, dict[str, tuple[float, float, float]]] = {}
    for row in body["rows"]:
        quartiles = (row["value"], row["lower_quartile"], row["upper_quartile"])
        groups.setdefault(row["unit"], {})[row["what"]] = quartiles
    bars(groups, path, title="Ceilings of the machine", unit="")

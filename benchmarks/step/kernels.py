"""`graph-bench kernels`: each public fused kernel against the composed ops or stock kernel that it replaces."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness.flags import add_repeats
from benchmarks.harness.measure import calls_per_turn, ratios, summarise, take_turns
from benchmarks.harness.tables import Table, number
from benchmarks.harness.workers import Worker

OURS, STOCK = "ours", "reference"
UPDATE, MEMCPY = "update SGD + average", "memcpy of the bytes an update touches"
CIOU = "CIoU loss, forward + backward"
_TURN_SECONDS = 0.1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--repeats` and `--only`."""
    add_repeats(parser)
    parser.add_argument(
        "--only", nargs="+", metavar="WORD", help="measure only kernels whose name contains one of these words"
    )


def run(flags: argparse.Namespace) -> dict[str, Any]:
    """Measure both sides of each kernel in turn, in a process with the plugin and one without."""
    module = "benchmarks.step.kernels_worker"
    with Worker(OURS, module, threads=flags.threads) as ours, Worker(STOCK, module, threads=flags.threads) as stock:
        names = ours.call("prepare", plugin=True, device=flags.device, threads=flags.threads)
        stock.call("prepare", plugin=False, device=flags.device, threads=flags.threads)
        memcpy = names.pop(MEMCPY, None)
        rows = [
            _measure(name, names[name], {OURS: ours, STOCK: stock}, flags.repeats)
            for name in _chosen(names, flags.only)
        ]
        compared = memcpy is not None and any(row["kernel"] == UPDATE for row in rows)
        return {"rows": rows, "against_memcpy": _against_memcpy(ours, flags.repeats) if compared else None}


def _chosen(names: Mapping[str, str], only: Sequence[str] | None) -> list[str]:
    chosen = [name for name in names if only is None or any(word.lower() in name.lower() for word in only)]
    if not chosen:
        raise ValueError(f"--only {' '.join(only or ())}: no such kernel; must be (part of) one of {', '.join(names)}")
    return chosen


def _runner(worker: Worker, name: str) -> Callable[[], float]:
    """Load a case and return a function that measures it in one turn."""
    count = calls_per_turn(worker.call("load", name=name), wanted_seconds=_TURN_SECONDS)
    return lambda: float(worker.call("once", name=name, count=count))


def _measure(name: str, size: str, workers: Mapping[str, Worker], repeats: int) -> dict[str, Any]:
    runners = {side: _runner(worker, name) for side, worker in workers.items()}
    seconds = take_turns(runners, repeats=repeats, label=name)
    for worker in workers.values():
        worker.call("drop", name=name)
    ours, reference = summarise(seconds[OURS]), summarise(seconds[STOCK])
    return {
        "kernel": name,
        "size": size,
        "ours_ms": ours.median * 1000,
        "ours_spread": ours.spread,
        "reference_ms": reference.median * 1000,
        "reference_spread": reference.spread,
        "speedup": ratios(seconds[STOCK], seconds[OURS]).as_dict(),
    }


def _against_memcpy(worker: Worker, repeats: int) -> dict[str, Any]:
    """Return the ratios of the update's time to that of a memcpy with the same traffic, within each turn."""
    seconds = take_turns({name: _runner(worker, name) for name in (UPDATE, MEMCPY)}, repeats=repeats, label=MEMCPY)
    return ratios(seconds[UPDATE], seconds[MEMCPY]).as_dict()


def tables(body: Mapping[str, Any]) -> list[Table]:
    """Return one table row per kernel."""
    cells = []
    for row in body["rows"]:
        gain = row["speedup"]
        cells.append(
            (
                row["kernel"],
                row["size"],
                number(row["ours_ms"]),
                number(row["reference_ms"]),
                f"{gain['median']:.3g} ({gain['lower_quartile']:.3g}–{gain['upper_quartile']:.3g})",
            )
        )
    notes = ["Speedup: median of the turns (quartiles)."]
    memcpy = body["against_memcpy"]
    if memcpy is not None:
        notes.append(
            f"The update takes {memcpy['median']:.2f} ({memcpy['lower_quartile']:.2f}–{memcpy['upper_quartile']:.2f}) "
            "times as long as a memcpy that reads and writes as many bytes."
        )
    columns = ("kernel", "size", "ours, ms", "reference, ms", "speedup")
    return [Table("Kernels", columns, tuple(cells), tuple(notes))]


def plot(body: Mapping[str, Any], path: Path) -> None:
    """Plot the speedup of each kernel."""
    from benchmarks.harness.plots import bars

    keys = ("median", "lower_quartile", "upper_quartile")
    group = {row["kernel"]: tuple(row["speedup"][key] for key in keys) for row in body["rows"]}
    bars(
        {"": {name: (a, b, c) for name, (a, b, c) in group.items()}},
        path,
        title="Kernels compared with the ops that they replace",
        unit="speedup",
    )

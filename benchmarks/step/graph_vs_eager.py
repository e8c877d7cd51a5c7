"""`graph-bench graph-vs-eager`: the speedup by compiling the step to a graph, and when compiling has paid off."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness.flags import add_quick, add_repeats
from benchmarks.harness.points import Point, parse_point
from benchmarks.harness.tables import Table, number
from benchmarks.step.competitors import break_even_steps, compare
from benchmarks.step.whole_step import measured_setting

GRAPH, EAGER = "plugin-graph", "plugin-eager"
SWEEP = (
    *(Point(f"yolov5{size}", batch, 320) for size in "nsm" for batch in (1, 4, 16)),
    *(Point("yolov5n", batch, 320) for batch in (2, 8, 32)),
    *(Point(f"yolov5{size}", 4, px) for size in "ns" for px in (160, 640)),
)
QUICK_SWEEP = tuple(
    Point(model, batch, px)
    for model, batch, px in (("yolov5n", 1, 160), ("yolov5n", 8, 160), ("yolov5n", 4, 320), ("yolov5s", 4, 320))
)
COLUMNS = tuple(
    "model, batch, px, eager ms, graph ms, speedup, Python ms, all threads ms, img/s, eager MB, graph MB, "
    "compile s, break-even steps".split(", ")
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--repeats`, `--quick` and `--points`."""
    add_repeats(parser)
    add_quick(parser)
    parser.add_argument(
        "--points", nargs="+", metavar="MODEL:BATCH:PX", help="points to measure instead of the built-in sweep"
    )


def run(flags: argparse.Namespace) -> dict[str, Any]:
    """Measure both modes at each point; `rows` has one entry per point and mode, `points` one per point."""
    given = [parse_point(text) for text in flags.points or ()]
    points = given or list(QUICK_SWEEP if flags.quick else SWEEP)
    setting, ceilings = measured_setting(flags, None)
    rows: list[dict[str, Any]] = []
    pairs = []
    for point in points:
        comparison = compare(point, (GRAPH, EAGER), setting)
        graph, eager = comparison.rows
        rows += comparison.rows
        pairs.append(
            {
                "model": point.model,
                "batch_size": point.batch_size,
                "imgsz": point.imgsz,
                "speedup": comparison.speedup(GRAPH, EAGER).as_dict(),
                "paid_after_steps": break_even_steps(graph, eager),
            }
        )
    return {"rows": rows, "points": pairs, "ceilings": ceilings}


def _sides(body: Mapping[str, Any], pair: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    keys = ("model", "batch_size", "imgsz")
    rows = {row["variant"]: row for row in body["rows"] if all(row[key] == pair[key] for key in keys)}
    return rows[GRAPH], rows[EAGER]


def _arrow(eager: Mapping[str, Any], graph: Mapping[str, Any], name: str) -> str:
    return f"{number(eager[name])} → {number(graph[name])}"


def tables(body: Mapping[str, Any]) -> list[Table]:
    """Return one table row per point."""
    lines = []
    for pair in body["points"]:
        graph, eager = _sides(body, pair)
        gain = pair["speedup"]
        lines.append(
            (
                pair["model"],
                str(pair["batch_size"]),
                str(pair["imgsz"]),
                number(eager["ms_per_step"]),
                number(graph["ms_per_step"]),
                f"{gain['median']:.2f} ({gain['lower_quartile']:.2f}–{gain['upper_quartile']:.2f})",
                _arrow(eager, graph, "main_thread_ms"),
                _arrow(eager, graph, "process_ms"),
                number(graph["images_per_second"]),
                f"{eager['peak_rss_mb']:.0f}",
                f"{graph['peak_rss_mb']:.0f}",
                number(graph["compile_s"]),
                "never" if pair["paid_after_steps"] is None else str(pair["paid_after_steps"]),
            )
        )
    notes = (
        "Speedup: median of the turns (quartiles). MB: peak memory of the process. Break-even: number of steps after "
        "which the time spent compiling is recovered.",
        "Python ms and all threads ms: processor time per step, eager → graph, of the Python thread and of all "
        "threads. In eager mode, Python starts each op, which takes about as long for large steps as for small ones; "
        "a compiled step is started once. On a CPU, the Python thread and the scheduler compete with the kernels.",
    )
    return [Table("Whole-step graph against eager, same kernels", COLUMNS, tuple(lines), notes)]


def plot(body: Mapping[str, Any], path: Path) -> None:
    """Plot the speedup over batch size, one panel per image size."""
    from benchmarks.harness.plots import lines

    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for pair in body["points"]:
        panel = panels.setdefault(f"{pair['imgsz']} px", {})
        panel.setdefault(pair["model"], []).append((pair["batch_size"], 100 * (pair["speedup"]["median"] - 1)))
    ordered: Sequence[str] = sorted(panels, key=lambda name: int(name.split()[0]))
    sized = {name: panels[name] for name in ordered}
    lines(sized, path, title="Speedup of the compiled step over eager mode", x="batch size", y="%")

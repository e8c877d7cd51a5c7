"""Time of each op of a compiled step on the CPU; the timing part of `graph-bench ops`."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.harness.measure import Summary, calls_per_turn, ratios, summarise, take_turns
from benchmarks.harness.points import Point
from benchmarks.harness.tables import Table, number, percent
from benchmarks.harness.workers import Worker

_TURN_SECONDS = 2.0
_CONVOLUTION = "graph_train_convolution"
BETWEEN, AROUND = "between ops", "before and after them"
_COLOURS = {"forward": 1, "loss": 3, "backward": 0, "update": 2}
"""Index of each part's colour in the class colours."""
Row = Mapping[str, Any]


def measure_point(point: Point, *, threads: int, repeats: int) -> dict[str, Any]:
    """Measure the step at one point, in turn with a process whose ops are not timed.

    Returns:
        The point; "step", ms per step over the turns; "timing", how many times as long a step takes because its ops are
        timed; and the turn whose step is the median: "step_ms", "ops" with "ms" of each, "others_ms" and "span_ms" of
        `op_times_worker.steps`. "turns" has ms per type of op and part, for their spread.
    """
    with ExitStack() as stack:
        sides = {
            name: stack.enter_context(Worker(name, "benchmarks.step.op_times_worker", threads=threads))
            for name in ("timed", "plain")
        }
        prepared = {name: side.call("prepare", **asdict(point), timed=name == "timed") for name, side in sides.items()}
        ops = prepared["timed"]
        turns = {name: _Turns(side) for name, side in sides.items()}
        measured = take_turns(turns, repeats=repeats, label=str(point))
    counted = turns["timed"].replies[-repeats:]
    steps_ms = measured["timed"]
    chosen = sorted(range(repeats), key=lambda turn: steps_ms[turn])[(repeats - 1) // 2]
    middle = counted[chosen]
    return {
        **asdict(point),
        "step": summarise(steps_ms).as_dict(),
        "timing": ratios(steps_ms, measured["plain"]).as_dict(),
        "step_ms": steps_ms[chosen],
        "span_ms": middle["span_ms"],
        "others_ms": middle["others_ms"],
        "ops": [{**op, "ms": middle["ops_ms"][op["name"]]} for op in ops],
        "turns": _by_kind(ops, [reply["ops_ms"] for reply in counted]),
    }


class _Turns:
    """Callable that measures the ms per step in one turn; the first call chooses the steps per turn."""

    def __init__(self, worker: Worker) -> None:
        self._worker, self._per_turn = worker, 0
        self.replies: list[dict[str, Any]] = []

    def __call__(self) -> float:
        if not self._per_turn:
            self._per_turn = calls_per_turn(self._steps(1)["seconds"], wanted_seconds=_TURN_SECONDS, limit=50)
        self.replies.append(self._steps(self._per_turn))
        return float(self.replies[-1]["seconds"]) * 1000 / self._per_turn

    def _steps(self, count: int) -> dict[str, Any]:
        return dict(self._worker.call("steps", count=count))


def _by_kind(ops: Sequence[Row], turns: Iterable[Mapping[str, float]]) -> dict[str, list[float]]:
    """Return ms of each turn by `PART OP`."""
    sums: dict[str, list[float]] = {}
    for place, turn in enumerate(turns):
        for op in ops:
            values = sums.setdefault(f"{op['part']} {op['op']}", [])
            values += [0.0] * (place + 1 - len(values))
            values[place] += turn[op["name"]]
    return sums


def kinds_of(timed: Row) -> list[dict[str, Any]]:
    """Return rows with part, op, calls, ms and the turns' summary of each type of op, the longest first."""
    rows = []
    for key, turns in timed["turns"].items():
        part, op = key.split(" ")
        calls = [row for row in timed["ops"] if (row["part"], row["op"]) == (part, op)]
        spent = sum(row["ms"] for row in calls)
        rows.append({"part": part, "op": op, "calls": len(calls), "ms": spent, "over_turns": summarise(turns)})
    return sorted(rows, key=lambda row: -row["ms"])


def outside_ops(timed: Row) -> dict[str, float]:
    """Return the ms of a step in which no op computes: between the first and the last op, and before and after them."""
    computing = sum(row["ms"] for row in timed["ops"])
    return {BETWEEN: timed["span_ms"] - computing, AROUND: timed["step_ms"] - timed["span_ms"]}


def convolutions_of(timed: Row) -> list[dict[str, Any]]:
    """Return rows with op, calls, ms, gflop and GFLOP/s of the convolutions, by type and all together."""
    convolutions = [row for row in timed["ops"] if row["gflop"] is not None]
    groups = {
        op: [row for row in convolutions if row["op"] == op] for op in dict.fromkeys(row["op"] for row in convolutions)
    }
    rows = []
    for op, group in {**groups, "all": convolutions}.items():
        ms, gflop = (sum(row[key] for row in group) for key in ("ms", "gflop"))
        rows.append({"op": op, "calls": len(group), "ms": ms, "gflop": gflop, "gflops_per_second": gflop / ms * 1e3})
    return rows


def tables_of(timed: Row, matmul_gflops: float) -> list[Table]:
    """Return tables of the time of a step by type of op, and of its convolutions relative to the ceiling."""
    point = Point(timed["model"], timed["batch_size"], timed["imgsz"])
    return [_times_table(point, timed), _convolutions_table(point, timed, matmul_gflops)]


def _times_table(point: Point, timed: Row) -> Table:
    whole = timed["step_ms"]

    def cells(part: str, op: str, calls: str, ms: float, quartiles: str = "–") -> tuple[str, ...]:
        return part, op, calls, number(ms), f"{ms / whole:.1%}", quartiles

    rows = [
        cells(row["part"], row["op"], str(row["calls"]), row["ms"], _quartiles(row["over_turns"]))
        for row in kinds_of(timed)
    ]
    rows += [cells("–", name, "–", ms) for name, ms in outside_ops(timed).items()]
    step, timing = (
        Summary(**{key: value for key, value in timed[name].items() if key != "spread"}) for name in _SPREAD
    )
    rows.append(cells("all", "step", str(len(timed["ops"])), whole, _quartiles(step)))
    notes = (
        f"The turn with the median step time; quartiles are over all {step.count} turns. Timing the ops makes a step "
        f"{timing.median:.3f} ({timing.lower_quartile:.3f}–{timing.upper_quartile:.3f}) times as long.",
        f"{BETWEEN}: time between the first and the last op in which no op computes, spent by OneFlow's scheduler and "
        f"by ops without a kernel. {AROUND}: time to start the graph from Python and to read the losses.",
    )
    return Table(
        f"Time of each op of a step, {point}", ("part", "op", "calls", "ms", "share", "quartiles"), tuple(rows), notes
    )


_SPREAD = ("step", "timing")


def _quartiles(summary: Summary) -> str:
    return f"{number(summary.lower_quartile)}–{number(summary.upper_quartile)}"


def _convolutions_table(point: Point, timed: Row, matmul_gflops: float) -> Table:
    columns = ("op", "calls", "ms", "share of the step", "GFLOP", "GFLOP/s", "share of matmul")
    rows = tuple(
        (
            row["op"],
            str(row["calls"]),
            number(row["ms"]),
            percent(row["ms"] / timed["step_ms"]),
            number(row["gflop"]),
            number(row["gflops_per_second"]),
            percent(row["gflops_per_second"] / matmul_gflops),
        )
        for row in convolutions_of(timed)
    )
    step = convolutions_of(timed)[-1]["gflop"] / timed["step_ms"] * 1e3 / matmul_gflops
    note = (
        f"matmul: {number(matmul_gflops)} GFLOP/s, the fastest float32 matrix product of this run. The convolutions' "
        f"arithmetic over the time of the whole step is {step:.0%} of it."
    )
    return Table(f"Convolutions, {point}", columns, rows, (note,))


def plot_times(timed_points: Sequence[Row], matmul_gflops: float, path: Path) -> None:
    """Plot a row per point: time by type of op, coloured by part; speed of each convolution over its arithmetic."""
    from graph_train.plots.style import new_figure, save

    figure = new_figure(13.0, 5.2 * len(timed_points), "Time of each op of a compiled training step")
    rows = figure.subplots(len(timed_points), 2, squeeze=False)
    for (left, right), timed in zip(rows, timed_points, strict=True):
        _plot_kinds(left, timed)
        _plot_convolutions(right, timed, matmul_gflops)
    save(figure, path)


def _plot_kinds(axes: Any, timed: Row) -> None:
    from graph_train.plots.style import INK, MUTED, class_colour, hex_colour, style_axes

    point = Point(timed["model"], timed["batch_size"], timed["imgsz"])
    bars = [
        (f"{row['op'].removeprefix('graph_train_')}, {row['part']}", row["part"], row["ms"]) for row in kinds_of(timed)
    ]
    bars = [*bars, *((name, "", ms) for name, ms in outside_ops(timed).items())]
    for place, (_, part, ms) in enumerate(bars):
        axes.barh(place, ms, height=0.75, color=hex_colour(class_colour(_COLOURS[part])) if part else MUTED)
        text = f"{ms:.3g} ms, {ms / timed['step_ms']:.1%}"
        axes.annotate(text, (ms, place), (4, 0), textcoords="offset points", va="center", color=INK, fontsize=7)
    style_axes(axes, title=f"{point}: {timed['step_ms']:.4g} ms", x="ms of a step")
    axes.set_yticks(range(len(bars)), [label for label, *_ in bars])
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.margins(x=0.25)


def _plot_convolutions(axes: Any, timed: Row, matmul_gflops: float) -> None:
    from graph_train.plots.style import INK, class_colour, hex_colour, style_axes

    kinds = dict.fromkeys(row["op"] for row in timed["ops"] if row["gflop"] is not None)
    for place, kind in enumerate(kinds):
        convolutions = [row for row in timed["ops"] if row["op"] == kind]
        speeds = [row["gflop"] / row["ms"] * 1e3 for row in convolutions]
        label = {_CONVOLUTION: "forward"}.get(kind, kind.removeprefix(f"{_CONVOLUTION}_").replace("_", " "))
        colour = hex_colour(class_colour((1, 0, 2)[place]))
        areas = [8 + 1500 * row["ms"] / timed["step_ms"] for row in convolutions]
        axes.scatter(
            [row["gflop"] for row in convolutions], speeds, areas, color=colour, alpha=0.5, linewidths=0, label=label
        )
    axes.axhline(matmul_gflops, color=INK, linewidth=1.2, linestyle="--", label="matmul")
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    style_axes(axes, title="Convolutions; area: time", x="GFLOP of the op", y="GFLOP/s")
    legend = axes.legend(frameon=False, fontsize=8)
    for handle in legend.legend_handles:
        if hasattr(handle, "set_sizes"):
            handle.set_sizes([40])

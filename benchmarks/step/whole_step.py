"""`graph-bench step`: the whole training step (forward, loss, backward, clip, update, EMA) in every variant."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.harness.flags import add_points, add_quick, add_repeats
from benchmarks.harness.machine import commit
from benchmarks.harness.points import Point, parse_point
from benchmarks.harness.tables import Table, number, percent
from benchmarks.step.ceilings import ceilings_by_name, measure_ceilings
from benchmarks.step.competitors import (
    VARIANTS,
    Comparison,
    ComparisonSettings,
    available,
    compare,
    find_torch,
    is_half,
    other_checkout,
)

POINTS, QUICK_POINTS = ("yolov5s:4:320", "yolov5n:16:320"), ("yolov5n:4:160",)
_VARIANTS_PER_GROUP = 3
COLUMNS = (
    "variant",
    "ms/step",
    "quartiles",
    "img/s",
    "baseline speedup",
    "peak MB",
    "compile s",
    "GFLOP/s",
    "share of matmul",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of step comparisons with our variants as default."""
    add_step_arguments(parser, tuple(VARIANTS))


def add_step_arguments(parser: argparse.ArgumentParser, variants: Sequence[str]) -> None:
    """Add the flags of all step comparisons."""
    add_repeats(parser)
    add_quick(parser)
    add_points(parser, POINTS)
    parser.add_argument(
        "--variants",
        nargs="+",
        default=list(variants),
        metavar="NAME",
        help=f"variants to measure: {', '.join(VARIANTS)}",
    )
    parser.add_argument("--torch-python", metavar="PATH", help="Python interpreter with PyTorch (default: this one)")
    parser.add_argument(
        "--against", metavar="CHECKOUT", help="another checkout, after `uv sync`, for the variants other-..."
    )


def run(flags: argparse.Namespace) -> dict[str, Any]:
    """Measure every variant at every point; the first variant is the baseline.

    The baseline is measured again in each group of variants, with its own row: ratios are within a group.
    """
    points = [parse_point(text) for text in flags.points or (QUICK_POINTS if flags.quick else POINTS)]
    torch_python = find_torch(flags.torch_python)
    against = other_checkout(flags.against)
    variants, notes = available(flags.variants, torch_python, against)
    if against:
        notes.append(f"other-...: the checkout at commit {commit(against)}")
    setting, ceilings = measured_setting(flags, torch_python)
    setting = replace(setting, against=against)
    rows: list[dict[str, Any]] = []
    pairs: list[dict[str, Any]] = []
    for point in points:
        for place, group in enumerate(groups(variants), 1):
            comparison = compare(point, group, setting)
            rows += [{"group": place, **row} for row in comparison.rows]
            pairs += [{"group": place, **pair} for pair in _speedups(point, group, comparison)]
            notes += [note for note in comparison.notes if note not in notes]
    return {"rows": rows, "speedups": pairs, "ceilings": ceilings, "notes": notes}


def groups(variants: Sequence[str]) -> list[list[str]]:
    """Split the variants into groups that fit into memory, each with the first variant as baseline."""
    first, others = variants[0], list(variants[1:])
    starts = range(0, max(len(others), 1), _VARIANTS_PER_GROUP)
    return [[first, *others[start : start + _VARIANTS_PER_GROUP]] for start in starts]


def measured_setting(
    flags: argparse.Namespace, torch_python: Path | None
) -> tuple[ComparisonSettings, list[dict[str, Any]]]:
    """Return the settings of a comparison, and the ceilings measured for it."""
    ceilings = measure_ceilings(flags.device, flags.threads, flags.repeats)
    matmul = ceilings_by_name(ceilings).get("float32 matmul")
    return ComparisonSettings(flags.device, flags.threads, flags.repeats, torch_python, matmul), ceilings


def _speedups(point: Point, variants: Sequence[str], comparison: Comparison) -> list[dict[str, Any]]:
    first = variants[0]
    where = {"model": point.model, "batch_size": point.batch_size, "imgsz": point.imgsz}
    return [
        {**where, "variant": first, "against": name, **comparison.speedup(first, name).as_dict()}
        for name in variants[1:]
    ]


def tables(body: Mapping[str, Any]) -> list[Table]:
    """Return one table per point."""
    return [
        _table(place, [row for row in body["rows"] if _point_of(row) == place], body)
        for place in dict.fromkeys(_point_of(row) for row in body["rows"])
    ]


def _point_of(row: Mapping[str, Any]) -> Point:
    return Point(row["model"], row["batch_size"], row["imgsz"])


def _table(place: Point, rows: Sequence[Mapping[str, Any]], body: Mapping[str, Any]) -> Table:
    pairs = {(pair["group"], pair["against"]): pair for pair in body["speedups"] if _point_of(pair) == place}
    several = len({row["group"] for row in rows}) > 1
    cells = []
    for row in rows:
        pair = pairs.get((row["group"], row["variant"]))
        against = f"{pair['median']:.2f} ({pair['lower_quartile']:.2f}–{pair['upper_quartile']:.2f})" if pair else "1"
        cells.append(
            (
                *((str(row["group"]),) if several else ()),
                row["variant"],
                number(row["ms_per_step"], 4),
                f"{number(row['lower_quartile'])}–{number(row['upper_quartile'])}",
                number(row["images_per_second"]),
                against,
                f"{row['peak_rss_mb']:.0f}",
                number(row["compile_s"]),
                number(row["gflops_per_second"]),
                percent(row["share_of_matmul"]),
            )
        )
    columns = ("group", *COLUMNS) if several else COLUMNS
    return Table(str(place), columns, tuple(cells), (*_explained(rows), *body["notes"]))


def _explained(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the notes of a table."""
    first = rows[0]["variant"]
    yield f"baseline speedup: that of {first} over the variant, median of the turns (quartiles)"
    if len({row["group"] for row in rows}) > 1:
        yield f"group: variants that alternated; each group has its own process of {first}, to which its ratios refer"
    if any(is_half(row["variant"]) for row in rows):
        yield "share of matmul: relative to the fastest float32 matrix product; not for variants in half precision"


def plot(body: Mapping[str, Any], path: Path) -> None:
    """Plot images per second, one panel per point."""
    from benchmarks.harness.plots import bars

    panels: dict[str, dict[str, tuple[float, float, float]]] = {}
    for row in body["rows"]:
        per_ms = row["batch_size"] * 1000
        rates = tuple(per_ms / row[key] for key in ("ms_per_step", "upper_quartile", "lower_quartile"))
        panel = panels.setdefault(str(_point_of(row)), {})
        label = f"{row['variant']}, group {row['group']}" if row["variant"] in panel else row["variant"]
        panel[label] = (rates[0], rates[1], rates[2])
    bars(panels, path, title="One training step", unit="images per second", colour_of=_colour)


def _colour(variant: str) -> str:
    """Return the colour of a variant; stock OneFlow is grey."""
    from graph_train.plots.style import ACCENT, MUTED, SECOND

    return {"plugin": ACCENT, "pytorch": SECOND}.get(variant.split("-", maxsplit=1)[0], MUTED)

"""Statistics of raw result files, which `figures.yaml` names in place of figures.

A source is `FILE STATISTIC ARGUMENT...`, split by shell rules but never executed. POINT is MODEL:BATCH:PX, PATH a key
or keys joined by dots.
"""

import csv
import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.harness.points import parse_point
from benchmarks.harness.results import read_result

Result = Mapping[str, Any]
Rows = Sequence[Mapping[str, Any]]


class SourceError(ValueError):
    """An invalid source."""


def number_of(source: str, files: Mapping[str, str], folder: Path) -> float:
    """Compute the number of a source.

    Args:
        source: FILE STATISTIC ARGUMENT...
        files: path of each FILE below `folder`.
        folder: folder of the results.
    Raises:
        SourceError: an unknown file, statistic, row or key.
    """
    words = shlex.split(source)
    if len(words) < 2:
        raise SourceError(f"{{{source}}}: write FILE STATISTIC ARGUMENT...")
    alias, statistic, *arguments = words
    if alias not in files:
        raise SourceError(f"{{{source}}}: no file {alias!r}; there are {', '.join(files)}")
    if statistic not in STATISTICS:
        raise SourceError(f"{{{source}}}: no statistic {statistic!r}; there are {', '.join(STATISTICS)}")
    try:
        return float(STATISTICS[statistic](_read(folder / files[alias]), *arguments))
    except (TypeError, LookupError, ValueError, OSError) as error:
        raise SourceError(f"{{{source}}}: {files[alias]} has no such number: {error}") from None


@cache
def _read(path: Path) -> Result:
    """Return a JSON result, or {"rows": ...} of a CSV file."""
    if path.suffix == ".json":
        return read_result(path)
    with path.open(encoding="utf-8", newline="") as file:
        header, *lines = csv.reader(file)
    names = [name.strip() for name in header]
    return {"rows": [dict(zip(names, map(_number, line), strict=True)) for line in lines]}


def _number(cell: str) -> float | None:
    """Return a cell of a CSV file; None if it is empty."""
    return float(cell) if cell.strip() else None


def _at(item: Any, path: str) -> Any:
    """Return the value at dot-separated keys; a key may itself contain dots."""
    if not isinstance(item, Mapping):
        raise LookupError(path)
    if path in item:
        return item[path]
    key, _, rest = path.partition(".")
    return _at(item[key], rest)


def _selected(result: Result, name: str, conditions: Sequence[str]) -> Rows:
    """Return the rows of the list `name` that match all conditions KEY=VALUE."""
    wanted = [condition.split("=", 1) for condition in conditions]
    rows = [row for row in result[name] if all(str(_at(row, key)) == value for key, value in wanted)]
    if not rows:
        raise LookupError(f"no row of {name} with {' '.join(conditions)}")
    return rows


def value(result: Result, path: str) -> float:
    """Resolve `value PATH`."""
    return float(_at(result, path))


def row(result: Result, name: str, *conditions_and_path: str) -> float:
    """Resolve `row LIST KEY=VALUE... PATH`: the value in the first matching row."""
    *conditions, path = conditions_and_path
    return float(_at(_selected(result, name, conditions)[0], path))


def lowest(result: Result, name: str, *conditions_and_path: str) -> float:
    """Resolve `lowest LIST [KEY=VALUE...] PATH`: the minimum over the rows."""
    *conditions, path = conditions_and_path
    return min(_present(_selected(result, name, conditions), path))


def highest(result: Result, name: str, *conditions_and_path: str) -> float:
    """Resolve `highest LIST [KEY=VALUE...] PATH`: the maximum over the rows."""
    *conditions, path = conditions_and_path
    return max(_present(_selected(result, name, conditions), path))


def _present(rows: Rows, path: str) -> list[float]:
    return [float(found) for item in rows if (found := _at(item, path)) is not None]


def best_epoch(result: Result, column: str) -> float:
    """Resolve `best-epoch COLUMN`: of results.csv, in the epoch whose weights are kept (0.1 mAP50 + 0.9 mAP50-95)."""
    best = max(result["rows"], key=lambda epoch: 0.1 * epoch["metrics/mAP_0.5"] + 0.9 * epoch["metrics/mAP_0.5:0.95"])
    return float(best[column])


def kernel_ratio(result: Result, kernel: str, other: str) -> float:
    """Resolve `kernel-ratio KERNEL OTHER`: time of one of our kernels divided by that of another."""
    return row(result, "rows", f"kernel={kernel}", "ours_ms") / row(result, "rows", f"kernel={other}", "ours_ms")


def _groups(result: Result, point: str, variants: Sequence[str]) -> list[dict[str, Mapping[str, Any]]]:
    """Return rows by variant for each group (variants that alternated) that has all of the variants at the point."""
    at = parse_point(point)
    groups: dict[int, dict[str, Mapping[str, Any]]] = {}
    for item in result["rows"]:
        if (item["model"], item["batch_size"], item["imgsz"]) == (at.model, at.batch_size, at.imgsz):
            groups.setdefault(item.get("group", 1), {})[item["variant"]] = item
    found = [group for group in groups.values() if group.keys() >= set(variants)]
    if not found:
        raise LookupError(f"no group of {point} has {' and '.join(variants)}")
    return found


def step_ms(result: Result, point: str, variant: str, beside: str | None = None) -> float:
    """Resolve `ms POINT VARIANT [BESIDE]`: median of a step, of the first group (that also has BESIDE)."""
    return float(_groups(result, point, [variant, beside or variant])[0][variant]["ms_per_step"])


def peak_mb(result: Result, point: str, variant: str, beside: str | None = None) -> float:
    """Resolve `peak-mb POINT VARIANT [BESIDE]`: peak of the process, of the first group (that also has BESIDE)."""
    return float(_groups(result, point, [variant, beside or variant])[0][variant]["peak_rss_mb"])


def memory_ratio(result: Result, point: str, variant: str, other: str) -> float:
    """Resolve `memory POINT VARIANT OTHER`: peak memory of a variant divided by the other's."""
    try:
        return peak_mb(result, point, variant, other) / peak_mb(result, point, other, variant)
    except LookupError:
        return peak_mb(result, point, variant) / peak_mb(result, point, other)


def speedup(result: Result, point: str, variant: str, other: str, which: str = "median") -> float:
    """Resolve `speedup POINT VARIANT OTHER [median|lower_quartile|upper_quartile]`: a variant's speed-up.

    Of ratios within turns where the file has them; otherwise the quotient of both medians against the variant that
    every group has, of one group if both are in one.
    """
    pairs = _pairs(result, point)
    for group in pairs.values():
        if (variant, other) in group:
            return float(group[variant, other][which])
    if which != "median":
        raise LookupError(f"no turns of {variant} and {other}")
    return _quotient(list(pairs.values()), variant, other)


def _pairs(result: Result, point: str) -> dict[int, dict[tuple[str, str], Mapping[str, Any]]]:
    """Return ratios by group and by (faster, slower) variant."""
    at = parse_point(point)
    found: dict[int, dict[tuple[str, str], Mapping[str, Any]]] = {}
    for pair in result["speedups"]:
        if (pair["model"], pair["batch_size"], pair["imgsz"]) == (at.model, at.batch_size, at.imgsz):
            found.setdefault(pair.get("group", 1), {})[pair["variant"], pair["against"]] = pair
    if not found:
        raise LookupError(f"no ratios at {point}")
    return found


def _quotient(groups: Sequence[Mapping[tuple[str, str], Mapping[str, Any]]], variant: str, other: str) -> float:
    together: dict[tuple[str, str], Mapping[str, Any]] = {}
    for group in groups:
        against = {name for _, name in group}
        together.update(group)
        if {variant, other} <= against:
            together = dict(group)
            break
    base = next(iter(together))[0]
    medians = {base: 1.0} | {name: float(pair["median"]) for (_, name), pair in together.items()}
    return medians[other] / medians[variant]


STATISTICS: Mapping[str, Callable[..., float]] = {
    "value": value,
    "row": row,
    "lowest": lowest,
    "highest": highest,
    "best-epoch": best_epoch,
    "kernel-ratio": kernel_ratio,
    "ms": step_ms,
    "peak-mb": peak_mb,
    "memory": memory_ratio,
    "speedup": speedup,
}

"""What the header of a checkpoint says of its run, checked and typed: no value is believed because it can be parsed."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from graph_train.engine.state import Counters
from graph_train.runs.cursor import Cursor
from graph_train.runs.results_csv import COLUMNS
from graph_train.settings.hyperparameters import Hyperparameters

T = TypeVar("T", Cursor, Counters)
_LARGEST = 2**53
"""Whole numbers up to here are exact in JSON."""


@dataclass(frozen=True)
class SavedHeader:
    """How far a run had come, and with what it was trained.

    Attributes:
        options: flags by name, to be checked by `options_from_flags`.
        config: the network's yaml, to be checked by `load_model_spec`.
        anchors_px: (levels, anchors, 2) float32.
        early_stopping: as of `EarlyStopping.state`.
        results: rows of `results.csv`.
        data: fingerprint of the data set.
        threads: of a process that trained it on a CPU; 0 where that is not known.
    """

    options: Mapping[str, Any]
    hyp: Hyperparameters
    config: Mapping[str, Any]
    anchors_px: npt.NDArray[np.float32]
    cursor: Cursor
    counters: Counters
    early_stopping: Mapping[str, float]
    results: tuple[str, ...]
    data: str
    threads: int = 0


def read_header(header: Mapping[str, Any]) -> SavedHeader:
    """Takes a checkpoint's header apart.

    Raises:
        ValueError: something is missing, or is not what it should be; says what.
    """
    options = _mapping(header, "options")
    threads = header.get("threads", 0)
    if not _fits(threads, 0):
        raise ValueError(f"its header has threads={threads!r:.60}")
    if not _fits(options.get("epochs"), 1):
        raise ValueError("its header does not say how many epochs the run was to have")
    return SavedHeader(
        options=options,
        hyp=_hyperparameters(_mapping(header, "hyp")),
        config=_mapping(header, "config"),
        anchors_px=_anchors(header.get("anchors_px")),
        cursor=_checked(Cursor(), "cursor", _mapping(header, "cursor")),
        counters=_checked(Counters(), "counters", _mapping(header, "counters")),
        early_stopping=_early_stopping(_mapping(header, "early_stopping")),
        results=_results(header.get("results")),
        data=header["data"] if isinstance(header.get("data"), str) else "",
        threads=threads,
    )


def _mapping(header: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = header.get(key)
    if not isinstance(value, dict):
        raise ValueError(f"its header has no {key!r}")
    return value


def _hyperparameters(values: Mapping[str, Any]) -> Hyperparameters:
    known = {item.name for item in fields(Hyperparameters)}
    for name in values:
        if name not in known:
            raise ValueError(f"its header has an unknown hyper-parameter {name!r:.60}")
    return Hyperparameters(**values)


def _anchors(values: Any) -> npt.NDArray[np.float32]:
    try:
        with np.errstate(over="ignore"):  # infinity is refused below
            anchors = np.asarray(values, np.float32)
    except (ValueError, TypeError, OverflowError):
        anchors = np.zeros(0, np.float32)
    if anchors.ndim != 3 or anchors.shape[-1] != 2 or not np.isfinite(anchors).all() or not (anchors > 0).all():
        raise ValueError("its header has no anchors of the form (levels, anchors, 2)")
    return anchors


def _checked(fresh: T, part: str, values: Mapping[str, Any]) -> T:
    """The values in place of those of a fresh object; types are those of the defaults, counts are not negative."""
    names = {item.name for item in fields(fresh)}
    for name, value in values.items():
        if name not in names:
            raise ValueError(f"its header has an unknown {part} entry {name!r:.60}")
        default = getattr(fresh, name)
        if not _fits(value, default):
            raise ValueError(f"its header has {part} {name}={value!r:.60}")
    return type(fresh)(**values)


def _fits(value: Any, like: Any) -> bool:
    if isinstance(like, bool):
        return isinstance(value, bool)
    if isinstance(value, bool):
        return False
    if isinstance(like, int):
        return isinstance(value, int) and 0 <= value <= _LARGEST
    if isinstance(like, float):
        return isinstance(value, int | float) and math.isfinite(value)
    # A list that starts with some entries always has as many.
    return isinstance(value, list) and len(value) == (len(like) or len(value)) and all(_fits(x, 0.0) for x in value)


def _early_stopping(values: Mapping[str, Any]) -> Mapping[str, float]:
    if set(values) != {"best_fitness", "best_epoch"}:
        raise ValueError("its header has no best fitness and epoch")
    if not _fits(values["best_fitness"], 0.0) or not _fits(values["best_epoch"], 0):
        raise ValueError("its header has a best fitness or epoch that is no number")
    return values


def _results(lines: Any) -> tuple[str, ...]:
    if not isinstance(lines, list) or not all(
        isinstance(line, str) and line.isprintable() and line.count(",") == len(COLUMNS) - 1 for line in lines
    ):
        raise ValueError("its header has results that are no rows of results.csv")
    return tuple(lines)

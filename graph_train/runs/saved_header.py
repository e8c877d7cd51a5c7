"""Validation of a checkpoint's header: every value is checked for type, range and consistency."""

import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from graph_train.engine.state import Counters
from graph_train.runs.cursor import Cursor
from graph_train.runs.results_csv import COLUMNS
from graph_train.settings.hyperparameters import KNOWN_KEYS, Hyperparameters

T = TypeVar("T", Cursor, Counters)
_LARGEST = 2**53
"""Largest integer that is exact in JSON."""
_SCALE_EXPONENTS = (-125, 128)
"""Range of the exponents of normal float32 numbers, as in `math.frexp`."""
_NUMBER = re.compile(r" *(-?\d+(\.\d+)?(e[+-]\d+)?|nan|-?inf)", re.ASCII)
"""A cell of results.csv."""


@dataclass(frozen=True)
class SavedHeader:
    """Progress, settings and data set of a saved run.

    Attributes:
        options: flags by name, still to be validated by `options_from_flags`.
        config: the network's yaml, still to be validated by `load_model_spec`.
        anchors_px: (levels, anchors, 2) float32.
        early_stopping: see `EarlyStopping.state`.
        results: rows of `results.csv`.
        data: fingerprint of the data set.
        class_names: class names of the data set.
        threads: number of CPU threads of the run; 0 if unknown.
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
    class_names: tuple[str, ...]
    threads: int = 0


def read_header(header: Mapping[str, Any]) -> SavedHeader:
    """Validate a checkpoint's header.

    Raises:
        ValueError: an entry is missing or invalid.
    """
    options = _mapping(header, "options")
    threads = header.get("threads", 0)
    if not _fits(threads, 0):
        raise ValueError(f"invalid header: threads={threads!r:.60}")
    if not _fits(options.get("epochs"), 1):
        raise ValueError("invalid header: number of epochs missing")
    cursor = _checked(Cursor(), "cursor", _mapping(header, "cursor"))
    _check_cursor(cursor, options["epochs"])
    class_names = _class_names(header.get("class_names"))
    if len(cursor.maps) not in (0, len(class_names)):
        raise ValueError(f"invalid header: {len(cursor.maps)} mAP values for {len(class_names)} classes")
    counters = _checked(Counters(), "counters", _mapping(header, "counters"))
    _check_counters(counters)
    return SavedHeader(
        options=options,
        hyp=_hyperparameters(_mapping(header, "hyp")),
        config=_mapping(header, "config"),
        anchors_px=_anchors(header.get("anchors_px")),
        cursor=cursor,
        counters=counters,
        early_stopping=_early_stopping(_mapping(header, "early_stopping"), cursor.epoch),
        results=_results(header.get("results"), cursor.epoch),
        data=header["data"] if isinstance(header.get("data"), str) else "",
        class_names=class_names,
        threads=threads,
    )


def _mapping(header: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = header.get(key)
    if not isinstance(value, dict):
        raise ValueError(f"invalid header: no {key!r}")
    return value


def _hyperparameters(values: Mapping[str, Any]) -> Hyperparameters:
    _reject_unknown("hyper-parameter", values, KNOWN_KEYS)
    hyp = Hyperparameters(**values)
    _require("hyper-parameter", values, [name for name in KNOWN_KEYS if name != "anchors"])
    return hyp


def _reject_unknown(kind: str, values: Mapping[str, Any], names: Sequence[str]) -> None:
    for name in values:
        if name not in names:
            raise ValueError(f"invalid header: unknown {kind} {name!r:.60}")


def _require(kind: str, values: Mapping[str, Any], names: Sequence[str]) -> None:
    """Reject missing entries, because defaults would continue a different training."""
    for name in names:
        if name not in values:
            raise ValueError(f"invalid header: no {kind} {name!r}")


def _anchors(values: Any) -> npt.NDArray[np.float32]:
    try:
        with np.errstate(over="ignore"):  # infinity is rejected below
            anchors = np.asarray(values, np.float32)
    except (ValueError, TypeError, OverflowError):
        anchors = np.zeros(0, np.float32)
    if anchors.ndim != 3 or anchors.shape[-1] != 2 or not np.isfinite(anchors).all() or not (anchors > 0).all():
        raise ValueError("invalid header: anchors_px is not of shape (levels, anchors, 2)")
    return anchors


def _checked(defaults: T, part: str, values: Mapping[str, Any]) -> T:
    """Return an object with these values; types must be those of the defaults, and counts not negative."""
    names = [item.name for item in fields(defaults)]
    _reject_unknown(f"{part} entry", values, names)
    for name, value in values.items():
        default = getattr(defaults, name)
        if not _fits(value, default):
            raise ValueError(f"invalid header: {part} {name}={value!r:.60}")
    _require(f"{part} entry", values, names)
    return type(defaults)(**values)


def _fits(value: Any, like: Any) -> bool:
    if isinstance(like, bool):
        return isinstance(value, bool)
    if isinstance(value, bool):
        return False
    if isinstance(like, int):
        return isinstance(value, int) and 0 <= value <= _LARGEST
    if isinstance(like, float):
        return isinstance(value, int | float) and abs(value) <= sys.float_info.max
    # A default list with entries has a fixed length.
    return isinstance(value, list) and len(value) == (len(like) or len(value)) and all(_fits(x, 0.0) for x in value)


def _check_cursor(cursor: Cursor, epochs: int) -> None:
    """Reject a position that is impossible in a run of this number of epochs."""
    if cursor.epoch > epochs:
        raise ValueError(f"invalid header: epoch {cursor.epoch} of a run of {epochs}")
    if cursor.losses > cursor.next_batch:
        raise ValueError(f"invalid header: losses of {cursor.losses} batches, but only {cursor.next_batch} are done")
    if not -1.0 <= cursor.best_fitness <= 1.0 or not all(0.0 <= value <= 1.0 for value in cursor.maps):
        raise ValueError("invalid header: mAP or best fitness out of range")


def _check_counters(counters: Counters) -> None:
    if not 0.0 <= counters.pending_decay <= 1.0:
        raise ValueError(f"invalid header: counters pending_decay={counters.pending_decay}, not in [0, 1]")
    mantissa, exponent = math.frexp(counters.loss_scale)
    if mantissa != 0.5 or not _SCALE_EXPONENTS[0] <= exponent <= _SCALE_EXPONENTS[1]:
        raise ValueError(f"invalid header: counters loss_scale={counters.loss_scale}, not a float32 power of 2")
    if counters.good_updates > counters.updates or counters.skipped_in_row > counters.skipped:
        raise ValueError("invalid header: inconsistent counters of updates")


def _early_stopping(values: Mapping[str, Any], epoch: int) -> Mapping[str, float]:
    if set(values) != {"best_fitness", "best_epoch"}:
        raise ValueError("invalid header: no best fitness and epoch")
    if not _fits(values["best_fitness"], 0.0) or not _fits(values["best_epoch"], 0):
        raise ValueError("invalid header: best fitness or epoch is not a number")
    if values["best_epoch"] > epoch or not 0.0 <= values["best_fitness"] <= 1.0:
        raise ValueError("invalid header: best fitness out of range, or of a future epoch")
    return values


def _results(lines: Any, epochs: int) -> tuple[str, ...]:
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise ValueError("invalid header: results are not rows of results.csv")
    if len(lines) != epochs:
        raise ValueError(f"invalid header: results of {len(lines)} epochs, but {epochs} are done")
    for epoch, line in enumerate(lines):
        cells = line.split(",")
        numbers = len(cells) == len(COLUMNS) and all(map(_NUMBER.fullmatch, cells))
        if not numbers or float(cells[0]) != float(f"{epoch:.5g}"):
            raise ValueError(f"invalid header: results of epoch {epoch} are not a row of results.csv: {line!r:.60}")
    return tuple(lines)


def _class_names(names: Any) -> tuple[str, ...]:
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError("invalid header: no class names")
    return tuple(names)

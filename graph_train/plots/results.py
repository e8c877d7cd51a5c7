"""Plots of a training run, from its `results.csv`, and of an evolution."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from graph_train.metrics.average_precision import best_row
from graph_train.plots.style import ACCENT, SECOND, new_figure, save, style_axes
from graph_train.runs.results_csv import COLUMNS, VALIDATION_KEYS
from kernels.host.files import NotReadableError, read_regular
from kernels.host.quantity import quantity

Array = npt.NDArray[Any]

_PANELS = (
    ("train/box_loss", "Box loss, training"),
    ("train/obj_loss", "Objectness loss, training"),
    ("train/cls_loss", "Class loss, training"),
    ("metrics/precision", "Precision"),
    ("metrics/recall", "Recall"),
    ("val/box_loss", "Box loss, validation"),
    ("val/obj_loss", "Objectness loss, validation"),
    ("val/cls_loss", "Class loss, validation"),
    ("metrics/mAP_0.5", "mAP50"),
    ("metrics/mAP_0.5:0.95", "mAP50-95"),
)
_EVOLUTION_COLUMNS = 5
_MAX_BYTES = 1 << 30


def read_results(path: Path) -> dict[str, Array]:
    """Return the columns of a `results.csv` by name; the padding of names and values is removed.

    Raises:
        ValueError: it is not a regular file, there are no rows, a row has the wrong length, or a value is not a number;
            names file and line.
    """
    try:
        text = read_regular(path, max_bytes=_MAX_BYTES).decode(errors="replace")
    except NotReadableError as error:
        raise ValueError(f"{path}: {error}") from None
    lines = [[cell.strip() for cell in line] for line in csv.reader(text.splitlines())]
    if len(lines) < 2:
        raise ValueError(f"{path}: no epochs yet; expected a header and at least one row")
    for number, line in enumerate(lines[1:], 2):
        if len(line) != len(lines[0]):
            raise ValueError(
                f"{path}:{number}: {quantity(len(line), 'value')} for {len(lines[0])} columns; remove the broken row"
            )
    try:
        values = np.asarray(lines[1:], np.float64)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; every value must be a number") from None
    return dict(zip(lines[0], values.T, strict=True))


def plot_results(results_csv: Path, png: Path) -> None:
    """Plot losses, precision, recall and mAP over the epochs, with a marker at the epoch with the best fitness.

    Raises:
        ValueError: the file is not a valid `results.csv`.
    """
    columns = read_results(results_csv)
    missing = [name for name, _ in _PANELS if name not in columns]
    if missing or "epoch" not in columns:
        raise ValueError(f"{results_csv}: no column {', '.join(missing) or 'epoch'}; expected {', '.join(COLUMNS)}")
    epoch = columns["epoch"]
    best = best_row(np.stack([columns[name] for name in VALIDATION_KEYS], axis=1))
    epochs = quantity(len(epoch), "epoch")
    heading = f"{epochs} · best epoch {epoch[best]:.0f}: mAP50 {columns['metrics/mAP_0.5'][best]:.3f}, "
    figure = new_figure(15, 6, f"{heading}mAP50-95 {columns['metrics/mAP_0.5:0.95'][best]:.3f}")
    for axes, (name, title) in zip(figure.subplots(2, 5).flat, _PANELS, strict=True):
        _panel(axes, epoch, columns[name], best)
        style_axes(axes, title=title, x="Epoch" if name.startswith(("val", "metrics/mAP")) else "")
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9
    )
    save(figure, png)


def _panel(axes: Any, epoch: Array, values: Array, best: int) -> None:
    axes.plot(epoch, values, color=ACCENT, linewidth=1.0, marker=".", markersize=4, alpha=0.55, label="each epoch")
    axes.plot(epoch, _trend(values), color=ACCENT, linewidth=2.0, label="trend")
    axes.plot(epoch[best], values[best], "o", color=SECOND, markersize=6, label="best epoch")
    axes.margins(x=0.03)
    axes.locator_params(axis="x", integer=True)


def _trend(values: Array) -> Array:
    """Return the values smoothed by a Gaussian with a standard deviation of 3 epochs."""
    distance = np.subtract.outer(np.arange(len(values)), np.arange(len(values)))
    weights = np.exp(-0.5 * (distance / 3.0) ** 2) * np.isfinite(values)
    return weights @ np.nan_to_num(values, posinf=0.0, neginf=0.0) / np.maximum(weights.sum(axis=1), 1e-12)


def plot_evolution(
    names: Sequence[str], values: npt.NDArray[np.float64], fitness: npt.NDArray[np.float64], path: Path
) -> None:
    """Plot fitness over each hyper-parameter: a point per generation (later ones darker), a cross for the best.

    Args:
        names: names of the columns of `values` (generations, names).
        fitness: (generations,).
    """
    rows = -(-len(names) // _EVOLUTION_COLUMNS)
    title = f"Evolution over {len(fitness)} generations (darker: later; cross: the best)"
    figure = new_figure(2.4 * _EVOLUTION_COLUMNS, 1.9 * rows, title)
    best = int(np.argmax(fitness))
    panels = figure.subplots(rows, _EVOLUTION_COLUMNS, sharey=True, squeeze=False).ravel()
    for panel, name, tried in zip(panels, names, values.T, strict=False):
        style_axes(panel, title=f"{name} = {tried[best]:.3g}")
        panel.scatter(tried, fitness, c=np.arange(len(fitness)), cmap="viridis_r", s=14, alpha=0.8, linewidths=0)
        panel.locator_params(axis="x", nbins=4)  # small numbers have long labels
        panel.plot(tried[best], fitness[best], "+", color=SECOND, markersize=14, markeredgewidth=2)
    for panel in panels[len(names) :]:
        panel.remove()
    for panel in panels[::_EVOLUTION_COLUMNS]:
        panel.set_ylabel("fitness", fontsize=9)
    save(figure, path)

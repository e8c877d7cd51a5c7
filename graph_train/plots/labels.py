"""Plots of the labels of a data set: class counts, positions and sizes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from graph_train.plots.style import ACCENT, INK, class_colour, escape_mathtext, hex_colour, new_figure, save, style_axes
from pipelines.augmentation.boxes import cxcywh_to_xyxy

Array = npt.NDArray[Any]

_DRAWN_BOXES = 1000
_NAMED_BARS = 30


def plot_labels(labels: Array, class_names: Sequence[str], path: Path) -> None:
    """Plot class counts, box shapes, positions and sizes of a split's labels.

    Args:
        labels: (n, 5) class, cx, cy, w, h normalised; n may be 0.
        class_names: by class number.
        path: the file to write, such as `labels.jpg`.
    """
    figure = new_figure(10, 9, f"{len(labels)} labels of {len(class_names)} classes")
    counts, outlines, centres, sizes = figure.subplots(2, 2).flat
    _bars(counts, labels, class_names)
    _outlines(outlines, labels)
    _density(centres, labels[:, 1], labels[:, 2], (1.0, 1.0))
    style_axes(centres, title="Box centres", x="x / image width", y="y / image height")
    centres.invert_yaxis()
    largest = labels[:, 3:5].max(axis=0, initial=0.05) * 1.05
    _density(sizes, labels[:, 3], labels[:, 4], (min(1.0, largest.max()),) * 2)
    style_axes(sizes, title="Box sizes", x="width / image width", y="height / image height")
    save(figure, path, dpi=120)


def _bars(axes: Any, labels: Array, class_names: Sequence[str]) -> None:
    number = len(class_names)
    counts = np.bincount(labels[:, 0].astype(np.int64), minlength=number)
    colours = [hex_colour(class_colour(c)) for c in range(len(counts))]
    bars = axes.bar(range(len(counts)), counts, color=colours)
    style_axes(axes, title="Labels of each class", y="labels")
    axes.grid(visible=False, axis="x")
    if number <= _NAMED_BARS:
        tick_style = {"rotation": 45, "ha": "right"} if number > 4 else {}
        axes.set_xticks(range(number), list(map(escape_mathtext, class_names)), fontsize=8, **tick_style)
        if number <= 12:
            axes.bar_label(bars, fontsize=8, color=INK, padding=2)
    else:
        axes.set_xlabel("class number", fontsize=9, color=INK)


def _outlines(axes: Any, labels: Array) -> None:
    """Draw an evenly spaced sample of the boxes, moved to a common centre."""
    from matplotlib.collections import PolyCollection

    picked = labels[np.unique(np.linspace(0, len(labels) - 1, min(len(labels), _DRAWN_BOXES)).astype(np.int64))]
    centred = picked[:, 1:5].copy()
    centred[:, :2] = 0.5
    x1, y1, x2, y2 = cxcywh_to_xyxy(centred).T
    outlines = np.stack((x1, y1, x2, y1, x2, y2, x1, y2), axis=1).reshape(-1, 4, 2)
    colours = [hex_colour(class_colour(int(c))) for c in picked[:, 0]]
    axes.add_collection(PolyCollection(outlines, facecolors="none", edgecolors=colours, linewidths=0.6, alpha=0.5))
    shown = f" ({len(picked)} of {len(labels)})" if len(picked) < len(labels) else ""
    style_axes(axes, title=f"Box shapes, centred{shown}", x="width / image width", y="height / image height")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.grid(visible=False)


def _density(axes: Any, x: Array, y: Array, limit: tuple[float, float]) -> None:
    """Plot a two-dimensional histogram; empty cells stay white."""
    from matplotlib.colors import LinearSegmentedColormap

    shades = LinearSegmentedColormap.from_list("shades", ["#d6e4f5", ACCENT, "#0b2545"])
    axes.hist2d(x, y, bins=50, range=((0, limit[0]), (0, limit[1])), cmin=1, cmap=shades)

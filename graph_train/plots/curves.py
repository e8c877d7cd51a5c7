"""Plots of a validation: precision, recall, F1 and speed curves, and the confusion matrix."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from graph_train.metrics.average_precision import ClassMetrics
from graph_train.metrics.confusion import ConfusionMatrix
from graph_train.plots.style import (
    ACCENT,
    INK,
    MUTED,
    class_colour,
    contrasting_colour,
    escape_mathtext,
    hex_colour,
    legend_outside,
    new_figure,
    save,
    style_axes,
)

Array = npt.NDArray[Any]

_NAMED_CURVES = 20
_WRITTEN_CELLS = 30
_NAMED_CELLS = 99


def plot_validation(
    classes: ClassMetrics, confusion: ConfusionMatrix, class_names: Sequence[str], folder: Path
) -> None:
    """Write `PR_curve.png`, `F1_curve.png`, `P_curve.png`, `R_curve.png` and `confusion_matrix.png` into a folder.

    Without labels, only the confusion matrix is written.
    """
    if len(classes.classes):
        plot_precision_recall(classes, class_names, folder / "PR_curve.png")
        for quantity in ("F1", "Precision", "Recall"):
            plot_over_confidence(classes, class_names, quantity, folder / f"{_STEMS[quantity]}_curve.png")
    plot_confusion(confusion, class_names, folder / "confusion_matrix.png")


_STEMS = {"F1": "F1", "Precision": "P", "Recall": "R"}


def plot_precision_recall(classes: ClassMetrics, class_names: Sequence[str], path: Path) -> None:
    """Plot precision over recall at IoU 0.5, one line per class and their mean, with the AP of each in the legend."""
    figure = new_figure(9, 5.5, f"Precision-recall curve at IoU 0.5: mAP50 {classes.means()[2]:.3f}")
    axes = figure.subplots()
    labels = [
        f"{escape_mathtext(class_names[c])}  {ap:.3f}" for c, ap in zip(classes.classes, classes.ap50, strict=True)
    ]
    _class_lines(axes, classes.recall_axis, classes.precision_at_recall, classes.classes, labels)
    mean = classes.precision_at_recall.mean(axis=0)
    axes.plot(classes.recall_axis, mean, color=INK, linewidth=2.5, label=f"all classes  {classes.means()[2]:.3f}")
    style_axes(axes, x="Recall", y="Precision")
    axes.set(xlim=(0, 1.005), ylim=(0, 1.02))
    legend_outside(axes, title="Average precision")
    save(figure, path)


def plot_over_confidence(classes: ClassMetrics, class_names: Sequence[str], quantity: str, path: Path) -> None:
    """Plot F1, precision or recall over the confidence threshold at IoU 0.5, one line per class and their mean.

    A marker shows the confidence at which precision and recall are reported.
    """
    curves = {"F1": classes.f1_curve, "Precision": classes.precision_curve, "Recall": classes.recall_curve}[quantity]
    mean, axis = curves.mean(axis=0), classes.confidence_axis
    at = float(np.interp(classes.confidence, axis, mean))
    figure = new_figure(9, 5.5, f"{quantity} over the confidence threshold at IoU 0.5")
    axes = figure.subplots()
    _class_lines(axes, axis, curves, classes.classes, [escape_mathtext(class_names[c]) for c in classes.classes])
    axes.plot(axis, mean, color=INK, linewidth=2.5, label="all classes")
    note = f"mean {at:.2f} at {classes.confidence:.3f},\nwhere F1 is best"
    axes.axvline(classes.confidence, color=ACCENT, linestyle=":", linewidth=1.2)
    axes.plot(classes.confidence, at, "o", color=ACCENT, markersize=7, zorder=5, clip_on=False, label=note)
    style_axes(axes, x="Confidence threshold", y=quantity)
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    legend_outside(axes, title="Class")
    save(figure, path)


def _class_lines(axes: Any, x: Array, curves: Array, categories: Array, labels: Sequence[str]) -> None:
    """Plot one thin line per class; with more than 20 classes, in grey and without legend."""
    few = len(categories) <= _NAMED_CURVES
    for category, curve, label in zip(categories, curves, labels, strict=True):
        colour = hex_colour(class_colour(int(category))) if few else "#b8c0ca"
        axes.plot(x, curve, color=colour, linewidth=1.2 if few else 0.7, label=label if few else None)


def plot_confusion(confusion: ConfusionMatrix, class_names: Sequence[str], path: Path) -> None:
    """Plot the confusion matrix, normalised per true class (column)."""
    counts = confusion.counts.astype(np.float64)
    shares = counts / (counts.sum(axis=0, keepdims=True) + 1e-9)
    number = len(class_names)
    side = float(np.clip(4.5 + 0.35 * number, 6, 16))
    title = f"Confusion matrix at confidence {confusion.conf_thres:g}, IoU {confusion.iou_thres:g}"
    figure = new_figure(side * 1.15, side, title)
    axes = figure.subplots()
    shown = np.where(shares < 0.005, np.nan, shares)  # hide values that would be shown as 0.00
    image = axes.imshow(shown, cmap="Blues", vmin=0, vmax=1)
    bar = figure.colorbar(image, ax=axes, shrink=0.8)
    bar.set_label("Fraction of the true class", fontsize=9, color=INK)
    bar.ax.tick_params(colors=MUTED, labelsize=8, labelcolor=INK)
    bar.outline.set_visible(False)
    if number < _WRITTEN_CELLS:
        _write_cells(axes, shown, counts, number)
    style_axes(axes, x="True class", y="Predicted class")
    axes.grid(visible=False)
    if number < _NAMED_CELLS:
        ticks = [*map(escape_mathtext, class_names), "background"]
        axes.set_xticks(
            range(number + 1), ticks, rotation=45 if number < 12 else 90, ha="right" if number < 12 else "center"
        )
        axes.set_yticks(range(number + 1), ticks)
    save(figure, path)


def _write_cells(axes: Any, shares: Array, counts: Array, number: int) -> None:
    size = 9 if number < 12 else 6
    for row, column in zip(*np.nonzero(np.isfinite(shares)), strict=True):
        share = float(shares[row, column])
        shade = (8, 48, 107) if share > 0.5 else (230, 240, 250)
        text = f"{share:.2f}\n({counts[row, column]:.0f})" if number < 12 else f"{share:.2f}"
        axes.text(
            column, row, text, ha="center", va="center", fontsize=size, color=hex_colour(contrasting_colour(shade))
        )


def plot_study(points: Mapping[str, Sequence[tuple[int, float, float]]], path: Path) -> None:
    """Plot one line per weights file; points are (image size in px, inference ms per image, mAP50-95)."""
    figure = new_figure(9, 5.5, "Accuracy against speed; labels are image sizes in px")
    axes = figure.subplots()
    for number, (name, line) in enumerate(points.items()):
        sizes, milliseconds, accuracy = zip(*line, strict=True)
        colour = hex_colour(class_colour(number + 1))
        axes.plot(milliseconds, accuracy, "o-", color=colour, linewidth=1.8, label=escape_mathtext(name), clip_on=False)
        for size, x, y in zip(sizes, milliseconds, accuracy, strict=True):
            axes.annotate(f"{size}", (x, y), (0, 6), textcoords="offset points", ha="center", fontsize=8, color=INK)
    style_axes(axes, x="Inference, ms per image", y="mAP50-95")
    axes.set_ylim(bottom=0)
    axes.margins(y=0.1)
    legend_outside(axes, title="Weights")
    save(figure, path)

"""Accuracy against speed over image sizes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from graph_train.plots.style import INK, class_colour, hex_colour, legend_outside, new_figure, quiet_axes, save


def plot_study(points: Mapping[str, Sequence[tuple[int, float, float]]], path: Path) -> None:
    """One line per set of weights: points are (image size px, inference ms per image, mAP50-95)."""
    figure = new_figure(9, 5.5, "Accuracy against speed; at the points the image size in px")
    axes = figure.subplots()
    for number, (name, line) in enumerate(points.items()):
        sizes, milliseconds, accuracy = zip(*line, strict=True)
        colour = hex_colour(class_colour(number + 1))
        axes.plot(milliseconds, accuracy, "o-", color=colour, linewidth=1.8, label=name, clip_on=False)
        for size, x, y in zip(sizes, milliseconds, accuracy, strict=True):
            axes.annotate(f"{size}", (x, y), (0, 6), textcoords="offset points", ha="center", fontsize=8, color=INK)
    quiet_axes(axes, x="Inference, ms per image", y="mAP50-95")
    axes.set_ylim(bottom=0)
    axes.margins(y=0.1)
    legend_outside(axes, title="Weights")
    save(figure, path)

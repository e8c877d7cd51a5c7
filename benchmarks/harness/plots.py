"""Plots of results: bars with quartiles, and lines, in the style of all our plots."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from graph_train.plots.style import (
    ACCENT,
    INK,
    MUTED,
    class_colour,
    hex_colour,
    legend_outside,
    new_figure,
    save,
    style_axes,
)


def bars(
    groups: Mapping[str, Mapping[str, tuple[float, float, float]]],
    path: Path,
    *,
    title: str,
    unit: str,
    colour_of: Callable[[str], str] = lambda _: ACCENT,
) -> None:
    """Plot horizontal bars, one panel per group; each label has median, lower and upper quartile in `unit`."""
    most = max(len(group) for group in groups.values())
    figure = new_figure(max(6.0, 5.0 * len(groups)), 1.6 + 0.36 * most, title)
    panels = figure.subplots(1, len(groups), squeeze=False)[0]
    for axes, (name, group) in zip(panels, groups.items(), strict=True):
        for place, (label, (median, lower, upper)) in enumerate(group.items()):
            error = [[max(median - lower, 0.0)], [max(upper - median, 0.0)]]
            axes.barh(place, median, xerr=error, color=colour_of(label), ecolor=MUTED, height=0.7)
            at = (max(median, upper), place)
            axes.annotate(f"{median:.3g}", at, (4, 0), textcoords="offset points", va="center", color=INK, fontsize=8)
        style_axes(axes, title=name, x=unit)
        axes.set_yticks(range(len(group)), list(group))
        axes.set_ylim(len(group) - 0.4, -0.6)
        axes.margins(x=0.15)
    save(figure, path)


def lines(
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]],
    path: Path,
    *,
    title: str,
    x: str,
    y: str,
    factors: bool = True,
) -> None:
    """Plot one panel per group and one line per label through points (x, y), which may be unsorted.

    The x axis is logarithmic with `factors`. Panels share the y axis if `y` is not empty.
    """
    figure = new_figure(max(6.5, 4.5 * len(panels) + 1.5), 4.2, title)
    all_axes = figure.subplots(1, len(panels), squeeze=False, sharey=bool(y))[0]
    colours = _colours([label for group in panels.values() for label in group])
    for axes, (name, group) in zip(all_axes, panels.items(), strict=True):
        for label, points in group.items():
            across, up = zip(*sorted(points), strict=True)
            axes.plot(across, up, "o-", color=colours[label], linewidth=1.8, markersize=4)
        if factors:
            places = sorted({across for points in group.values() for across, _ in points})
            axes.set_xscale("log", base=2)
            axes.set_xticks(places, [f"{place:g}" for place in places])
        style_axes(axes, title=name, x=x, y=y)
        heights = [up for part in (panels.values() if y else [group]) for points in part.values() for _, up in points]
        axes.set_ylim(min(0.0, *heights), 1.08 * max(heights) or 1.0)
    for label, colour in colours.items():  # also those that the last panel lacks
        all_axes[-1].plot([], [], "o-", color=colour, linewidth=1.8, markersize=4, label=label)
    legend_outside(all_axes[-1])
    save(figure, path)


def families(panels: Mapping[str, Mapping[str, Sequence[Sequence[float]]]], path: Path, *, title: str, x: str) -> None:
    """Plot one panel per group with one colour per label: thin curves of equal length, and their mean as a thick
    curve."""
    figure = new_figure(4.5 * len(panels) + 1.5, 4.2, title)
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    colours = _colours([label for group in panels.values() for label in group])
    for axes, (name, group) in zip(all_axes, panels.items(), strict=True):
        for label, curves in group.items():
            for curve in curves:
                axes.plot(curve, color=colours[label], linewidth=0.8, alpha=0.5)
            mean = [sum(values) / len(curves) for values in zip(*curves, strict=True)]
            axes.plot(mean, color=colours[label], linewidth=2.4, label=label)
        style_axes(axes, title=name, x=x)
        axes.set_ylim(bottom=0)
    legend_outside(all_axes[-1])
    save(figure, path)


def _colours(labels: Sequence[str]) -> dict[str, str]:
    names = list(dict.fromkeys(labels))
    return {name: hex_colour(class_colour(place + 1)) for place, name in enumerate(names)}

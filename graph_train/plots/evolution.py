"""The course of a hyper-parameter evolution: fitness against each value that was tried."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from graph_train.plots.style import SECOND, new_figure, quiet_axes, save

_COLUMNS = 5


def plot_evolution(
    names: Sequence[str], values: npt.NDArray[np.float64], fitness: npt.NDArray[np.float64], path: Path
) -> None:
    """One panel per hyper-parameter: every generation a point (later ones darker), the best one a cross.

    Args:
        names: of the columns of `values` (generations, names).
        fitness: (generations,).
    """
    rows = -(-len(names) // _COLUMNS)
    title = f"Evolution over {len(fitness)} generations (darker: later; cross: the best)"
    figure = new_figure(2.4 * _COLUMNS, 1.9 * rows, title)
    best = int(np.argmax(fitness))
    panels = figure.subplots(rows, _COLUMNS, sharey=True, squeeze=False).ravel()
    for panel, name, tried in zip(panels, names, values.T, strict=False):
        quiet_axes(panel, title=f"{name} = {tried[best]:.3g}")
        panel.scatter(tried, fitness, c=np.arange(len(fitness)), cmap="viridis_r", s=14, alpha=0.8, linewidths=0)
        panel.locator_params(axis="x", nbins=4)  # small numbers have long labels
        panel.plot(tried[best], fitness[best], "+", color=SECOND, markersize=14, markeredgewidth=2)
    for panel in panels[len(names) :]:
        panel.remove()
    for panel in panels[::_COLUMNS]:
        panel.set_ylabel("fitness", fontsize=9)
    save(figure, path)

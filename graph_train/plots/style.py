"""The common style of all plots: class colours, figures without a display, axes."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kernels.host.files import replacing
from kernels.host.paths import printable

RGB = tuple[int, int, int]

_CLASS_COLOURS: tuple[RGB, ...] = (
    (214, 64, 69),
    (43, 108, 176),
    (47, 158, 68),
    (232, 142, 22),
    (124, 77, 189),
    (18, 161, 168),
    (200, 61, 140),
    (122, 96, 61),
    (90, 130, 22),
    (74, 85, 104),
    (240, 110, 110),
    (77, 171, 247),
    (81, 207, 102),
    (250, 190, 60),
    (177, 151, 252),
    (60, 210, 215),
    (247, 131, 172),
    (184, 160, 126),
    (163, 203, 56),
    (150, 160, 175),
)

_LONGEST_NAME = 40
"""Limit of a class name in a figure; longer ones would leave no space for the curves."""
_LOG = logging.getLogger("graph_train")

INK, MUTED, GRID = "#1f2933", "#7b8794", "#e4e7eb"
ACCENT, SECOND = "#2b6cb0", "#d64045"


def class_colour(category: int) -> RGB:
    """Return the RGB colour of a class, 0 to 255; colours repeat every 20 classes."""
    return _CLASS_COLOURS[category % len(_CLASS_COLOURS)]


def hex_colour(colour: RGB) -> str:
    """Return the colour as a hex string."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def contrasting_colour(colour: RGB) -> RGB:
    """Return black or white, whichever has more contrast with the colour."""
    brightness = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    return (20, 24, 28) if brightness > 150 else (255, 255, 255)


def escape_mathtext(name: str) -> str:
    """Escape a class name for matplotlib, and shorten it if it is long.

    Matplotlib parses text between two `$` as a formula, and omits names with a leading `_` from legends.
    """
    shown = name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
    return (" " if shown.startswith("_") else "") + shown.replace("$", r"\$")


@contextmanager
def optional_plot(path: Path) -> Iterator[None]:
    """Log errors in plotting as warnings, because they must not end a run.

    Args:
        path: the picture, or the folder of several.
    Raises:
        OSError: it cannot be written.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        _LOG.warning("%s: plotting failed: %s", printable(path), " ".join(str(error).split()) or type(error).__name__)


def new_figure(width: float, height: float, title: str) -> Any:
    """Return a `matplotlib.figure.Figure` with a title; width and height are in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    figure.suptitle(title, fontsize=13, fontweight="bold", color=INK)
    return figure


def style_axes(axes: Any, *, title: str = "", x: str = "", y: str = "") -> None:
    """Style axes: a light grid and no box."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(MUTED)
    axes.grid(visible=True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, labelsize=8, labelcolor=INK)
    axes.set_title(title, fontsize=10, color=INK)
    axes.set_xlabel(x, fontsize=9, color=INK)
    axes.set_ylabel(y, fontsize=9, color=INK)


def save(figure: Any, path: Path, *, dpi: int = 150) -> None:
    """Save the figure, without date and version, so that equal figures give equal files."""
    metadata = {"Software": None} if path.suffix == ".png" else None
    with replacing(path) as temporary, warnings.catch_warnings():
        # Suppress a warning per missing glyph: characters that the font lacks are drawn as boxes.
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        figure.savefig(temporary, dpi=dpi, metadata=metadata)


def legend_outside(axes: Any, *, title: str = "") -> None:
    """Put the legend to the right of the axes, where it hides no curve."""
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=8, title=title, title_fontsize=9)

"""The README's image: photos with labels and detections, and the mAP curve of a run.

python -m tests.docs.picture RUN_FOLDER TITLE PHOTO...
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from graph_train.plots.results import read_results
from graph_train.plots.style import ACCENT, INK, SECOND, new_figure, style_axes
from kernels.host.files import replacing
from tests.docs.commands import ROOT

PICTURE = ROOT / "docs/images/result.jpg"
_COLUMNS = 4
"""Number of rows and columns of tiles in `val_batch0_pred.jpg`."""
_INCHES, _DOTS_PER_INCH = (10.0, 4.6), 110
_CURVES = (("metrics/mAP_0.5", "mAP50", ACCENT), ("metrics/mAP_0.5:0.95", "mAP50-95", SECOND))


def draw(run: Path, photos: Sequence[int], title: str) -> None:
    """Write `PICTURE`: labels above detections of each photo, given by its number in the first validation batch."""
    figure = new_figure(*_INCHES, title)
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
    grid = figure.add_gridspec(2, len(photos) + 1, width_ratios=[*(1.0 for _ in photos), 1.2])
    for line, (name, heading) in enumerate((("labels", "labels"), ("pred", "found"))):
        mosaic = np.asarray(Image.open(run / f"val_batch0_{name}.jpg"))
        for column, photo in enumerate(photos):
            axes = figure.add_subplot(grid[line, column])
            axes.imshow(_tile(mosaic, photo))
            axes.set(xticks=[], yticks=[], frame_on=False)
            if not column:
                axes.set_ylabel(heading, fontsize=10, color=INK)
    columns = read_results(run / "results.csv")
    axes = figure.add_subplot(grid[:, -1])
    for key, label, colour in _CURVES:
        axes.plot(columns["epoch"], columns[key], color=colour, linewidth=2, label=label)
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    style_axes(axes, title="validation", x="Epoch")
    with replacing(PICTURE) as temporary:
        figure.savefig(temporary, format="jpg", dpi=_DOTS_PER_INCH, pil_kwargs={"quality": 85, "optimize": True})


def _tile(mosaic: np.ndarray, number: int) -> Any:
    height, width = mosaic.shape[0] // _COLUMNS, mosaic.shape[1] // _COLUMNS
    line, column = divmod(number, _COLUMNS)
    return mosaic[line * height : (line + 1) * height, column * width : (column + 1) * width]


if __name__ == "__main__":
    draw(Path(sys.argv[1]), [int(number) for number in sys.argv[3:]], sys.argv[2])

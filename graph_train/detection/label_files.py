"""Detections as label files in YOLO's form."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.augmentation.boxes import normalise


def write_label_file(path: Path, detections: npt.NDArray[Any], *, image_hw: tuple[int, int], confidence: bool) -> None:
    """Writes a line for each detection: class, cx, cy, w, h normalised to the image, and the confidence if asked.

    Args:
        path: the file, replaced if it exists.
        detections: (k, 6) x1, y1, x2, y2 in px, confidence, class.
        image_hw: height and width of the image in px.
        confidence: as sixth column.
    """
    height, width = image_hw
    boxes = normalise(detections[:, :4], width=width, height=height)
    columns = [detections[:, 5:6], boxes] + ([detections[:, 4:5]] if confidence else [])
    lines = [" ".join(f"{value:g}" for value in row) for row in np.concatenate(columns, axis=1)]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")

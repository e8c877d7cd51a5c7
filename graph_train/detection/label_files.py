"""Detections as label files in YOLO format."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kernels.host.paths import printable
from pipelines.augmentation.boxes import normalise
from pipelines.data.listing import label_path


def write_label_file(path: Path, detections: npt.NDArray[Any], *, image_hw: tuple[int, int], confidence: bool) -> None:
    """Write a line per detection: class, cx, cy, w, h normalised to the image, and optionally the confidence.

    Args:
        path: the file, replaced if it exists.
        detections: (k, 6) x1, y1, x2, y2 in px, confidence, class.
        image_hw: height and width of the image in px.
        confidence: whether to add the confidence as sixth column.
    """
    height, width = image_hw
    boxes = normalise(detections[:, :4], width=width, height=height)
    columns = [detections[:, 5:6], boxes] + ([detections[:, 4:5]] if confidence else [])
    lines = [" ".join(f"{value:g}" for value in row) for row in np.concatenate(columns, axis=1)]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


class ProtectedFiles:
    """The source images and their label files, which results must not overwrite.

    Args:
        images: the source images.
    """

    def __init__(self, images: Iterable[Path]) -> None:
        self._files = {os.path.realpath(file) for image in images for file in (image, label_path(image.absolute()))}

    def without_overwriting(self, target: Path) -> Path:
        """Return the target if it is not one of the protected files.

        Raises:
            ValueError: it would be overwritten.
        """
        if os.path.realpath(target) in self._files and target.exists():
            raise ValueError(
                f"{printable(target)}: a result would overwrite a source image or label; choose another --project or "
                "--name"
            )
        return target

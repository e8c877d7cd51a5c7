"""The detections in one image."""

import os
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from graph_train.detection.label_files import write_label_file
from graph_train.plots.images import BoxStyle, draw_detections
from graph_train.prediction.image_inputs import OpenedImage
from graph_train.settings.predict_options import MAX_LINE_PX
from kernels.host.paths import printable

Array = npt.NDArray[Any]


class ImageResult:
    """Detections in one image, sorted by decreasing confidence.

    Attributes:
        boxes: (k, 4) float32: x1, y1, x2, y2 in px of the image.
        scores: (k,) float32 confidences.
        classes: (k,) int64 class numbers.
        class_names: class names by class number.
        path: the image file, or None for an image from memory.
        image_hw: height and width in px.
    """

    def __init__(self, rows: Array, image: OpenedImage, class_names: tuple[str, ...]) -> None:
        self._rows, self._pixels = rows, image.pixels
        self.boxes, self.scores, self.classes = rows[:, :4], rows[:, 4], rows[:, 5].astype(np.int64)
        self.class_names, self.path = class_names, image.path
        self.image_hw = (int(image.pixels.shape[0]), int(image.pixels.shape[1]))

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        height, width = self.image_hw
        name = "image" if self.path is None else printable(self.path)
        return f"{name}: {width}x{height} px, {counted(self._rows, self.class_names)}"

    def plot(self, *, line_px: int = 3, names: bool = True, confidences: bool = True) -> Array:
        """Return a copy of the image with drawn boxes, (h, w, 3) uint8 RGB.

        Raises:
            ValueError: `line_px` is not an integer from 1 to 1000.
        """
        if not isinstance(line_px, Integral) or not 1 <= line_px <= MAX_LINE_PX:
            raise ValueError(f"line_px={line_px!r:.60}: must be an integer from 1 to {MAX_LINE_PX}")
        picture = Image.fromarray(self._pixels)
        draw_detections(picture, self._rows, self.class_names, BoxStyle(int(line_px), names, confidences))
        return np.asarray(picture)

    def as_dict(self) -> dict[str, Any]:
        """Return the result as JSON-compatible values."""
        objects = [
            {"box": box, "score": score, "class": number, "name": self.class_names[number]}
            for box, score, number in zip(self.boxes.tolist(), self.scores.tolist(), self.classes.tolist(), strict=True)
        ]
        path = None if self.path is None else str(self.path)
        return {"path": path, "height": self.image_hw[0], "width": self.image_hw[1], "objects": objects}

    def save_txt(self, path: str | Path, *, confidence: bool = False) -> None:
        """Write a YOLO label file: class, centre x, y, width, height (normalised), and optionally the confidence.

        Raises:
            ValueError: `path` is not a path.
            OSError: the file cannot be written.
        """
        if not isinstance(path, str | os.PathLike):
            raise ValueError(f"path={path!r:.60}: must be a string or a path")
        write_label_file(Path(os.fsdecode(path)), self._rows, image_hw=self.image_hw, confidence=confidence)


def counted(rows: Array, class_names: tuple[str, ...]) -> str:
    """Return for instance "3 cats, 1 dog" for detections (k, 6)."""
    numbers = np.bincount(rows[:, 5].astype(np.int64), minlength=len(class_names))
    return ", ".join(f"{numbers[n]} {class_names[n]}" for n in np.flatnonzero(numbers)) or "no detections"

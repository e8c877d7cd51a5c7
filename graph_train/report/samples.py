"""A few validation images with their labels and detections."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.augmentation.boxes import cxcywh_to_xyxy
from pipelines.data.index import ImageIndex
from pipelines.pixels.encoded_images import picture_on_host
from pipelines.shard import Shard
from pipelines.val import ValPipeline

SAMPLES = 8
MIN_CONFIDENCE = 0.05
MAX_BOXES = 60
_PICTURE_PX = 560


@dataclass(frozen=True)
class Sample:
    """An image with labels [class, x1, y1, x2, y2] and detections (`found`), which end with the confidence, in px."""

    path: str
    width: int
    height: int
    labels: list[list[float]]
    found: list[list[float]]

    def as_dict(self) -> dict[str, Any]:
        """Return the data for the page, without the pixels."""
        return {"name": Path(self.path).name, **vars(self)}


class SampleCollector:
    """Collector of a few images of a validation, evenly spaced, with their detections.

    Args:
        index: the split.
        images: number of its images on this rank, see `images_on_rank`.
    """

    def __init__(self, index: ImageIndex, images: int) -> None:
        self._index = index
        self._numbers = {path: number for number, path in enumerate(index.paths.texts)}
        self._selected = frozenset(np.linspace(0, images - 1, min(SAMPLES, images)).round().astype(int).tolist())
        self._seen = 0
        self.samples: list[Sample] = []

    def start(self) -> None:
        """Start a validation: discard the samples of the previous one."""
        self._seen, self.samples = 0, []

    def add(self, path: str, detections: npt.NDArray[Any]) -> None:
        """Add the next image if it is selected.

        Args:
            path: the image file.
            detections: (k, 6) x1, y1, x2, y2 in px of the file, confidence, class; sorted by decreasing confidence.
        """
        selected, self._seen = self._seen in self._selected, self._seen + 1
        if not selected:
            return
        number = self._numbers[path]
        width, height = (int(side) for side in self._index.sizes[number])
        rows = self._index.labels[number]
        corners = cxcywh_to_xyxy(rows[:, 1:5]) * np.array([width, height, width, height])
        found = detections[detections[:, 4] >= MIN_CONFIDENCE][:MAX_BOXES]
        self.samples.append(
            Sample(
                path=path,
                width=width,
                height=height,
                labels=[[int(row[0]), *_px(box)] for row, box in zip(rows, corners, strict=True)],
                found=[[int(row[5]), *_px(row[:4]), round(float(row[4]), 3)] for row in found],
            )
        )


def images_on_rank(pipeline: ValPipeline, shard: Shard) -> int:
    """Return the number of images that a rank validates."""
    sizes = [pipeline.images_of(batch) for batch in range(pipeline.batches_per_epoch)]
    return sum(len(range(size)[shard.rows(size)]) for size in sizes if shard.owns_rows(size))


def _px(corners: Sequence[float]) -> list[float]:
    return [round(float(value), 1) for value in corners]


@lru_cache(maxsize=4 * SAMPLES)
def picture(path: str) -> str | None:
    """Return the image as a data URI, at most 560 px wide or high; None if the file cannot be read."""
    try:
        image = picture_on_host(Path(path))
    except OSError:
        return None
    image.thumbnail((_PICTURE_PX, _PICTURE_PX))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"

"""A few validation images with their labels and what was found in them."""

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
from pipelines.pixels.encoded_images import decode_on_host
from pipelines.shard import Shard
from pipelines.val import ValPipeline

SAMPLES = 8
LEAST_CONFIDENCE = 0.05
MOST_BOXES = 60
_PICTURE_PX = 560


@dataclass(frozen=True)
class Sample:
    """One image. Boxes are in px of the file: labels [class, x1, y1, x2, y2], found ones with the confidence after."""

    path: str
    width: int
    height: int
    labels: list[list[float]]
    found: list[list[float]]

    def as_dict(self) -> dict[str, Any]:
        """Return the data for the page, without the picture."""
        return {"name": Path(self.path).name, **vars(self)}


class SampleCollector:
    """A collector of some images of a validation, evenly spread over its order, with their detections.

    Args:
        index: the split.
        images: how many of its images are measured here, see `measured_here`.
    """

    def __init__(self, index: ImageIndex, images: int) -> None:
        self._index = index
        self._numbers = {path: number for number, path in enumerate(index.paths.texts)}
        self._wanted = frozenset(np.linspace(0, images - 1, min(SAMPLES, images)).round().astype(int).tolist())
        self._seen = 0
        self.samples: list[Sample] = []

    def start(self) -> None:
        """Begin a validation: drop what the last one found."""
        self._seen, self.samples = 0, []

    def add(self, path: str, detections: npt.NDArray[Any]) -> None:
        """Add the next image, with (k, 6) x1, y1, x2, y2 in px of the file, confidence, class.

        The highest confidence comes first.
        """
        wanted, self._seen = self._seen in self._wanted, self._seen + 1
        if not wanted:
            return
        number = self._numbers[path]
        width, height = (int(side) for side in self._index.sizes[number])
        rows = self._index.labels[number]
        corners = cxcywh_to_xyxy(rows[:, 1:5]) * np.array([width, height, width, height])
        found = detections[detections[:, 4] >= LEAST_CONFIDENCE][:MOST_BOXES]
        self.samples.append(
            Sample(
                path=path,
                width=width,
                height=height,
                labels=[[int(row[0]), *_px(box)] for row, box in zip(rows, corners, strict=True)],
                found=[[int(row[5]), *_px(row[:4]), round(float(row[4]), 3)] for row in found],
            )
        )


def measured_here(pipeline: ValPipeline, shard: Shard) -> int:
    """Return how many images of a validation are measured by one of its ranks."""
    sizes = [pipeline.images_of(batch) for batch in range(pipeline.batches_per_epoch)]
    return sum(len(range(size)[shard.rows(size)]) for size in sizes if shard.counts_here(size))


def _px(corners: Sequence[float]) -> list[float]:
    return [round(float(value), 1) for value in corners]


@lru_cache(maxsize=4 * SAMPLES)
def picture(path: str) -> str | None:
    """Return the image as a data URI, at most 560 px wide or high; None if the file cannot be read any more."""
    from PIL import Image

    try:
        image = Image.fromarray(decode_on_host(Path(path)))
    except OSError:
        return None
    image.thumbnail((_PICTURE_PX, _PICTURE_PX))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"

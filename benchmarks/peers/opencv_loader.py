"""Our mosaic loader on OpenCV, which does what YOLOv5 documents for its default hyper-parameters.

Four images are read and decoded with `cv2.imread` (again for each tile unless cached), scaled so that the long side is
the image size, and pasted on a grey canvas of twice that size. One `warpAffine` scales and shifts the canvas, boxes are
transformed and filtered, HSV gains are applied by look-up tables, half of the samples are flipped, and the result is
planar RGB. OpenCV's own threads are off, as in YOLOv5.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

GREY = 114
HSV_GAINS = (0.015, 0.7, 0.4)
TRANSLATE, SCALE, FLIP = 0.1, 0.5, 0.5
STAGES = ("decode", "geometry", "pixels")


@dataclass
class Images:
    """Image files, their labels (n, 5) [class, cx, cy, w, h], and the scaled pixels of cached images."""

    paths: Sequence[str]
    labels: Sequence[np.ndarray]
    pixels: list[np.ndarray] = field(default_factory=list)


class MosaicLoader:
    """A source of samples; `seconds` accumulates the time per stage, where decoding includes reading."""

    def __init__(self, images: Images, image_px: int, seed: int) -> None:
        cv2.setNumThreads(0)
        self._images, self._side = images, image_px
        self._rng = np.random.default_rng(seed)
        self.seconds = dict.fromkeys(STAGES, 0.0)

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - start

    def scaled_image(self, number: int) -> np.ndarray:
        """Return (h, w, 3) uint8 BGR with the long side at the image size."""
        if self._images.pixels:
            return self._images.pixels[number]
        with self._stage("decode"):
            pixels = cv2.imread(self._images.paths[number])
        if pixels is None:
            raise ValueError(f"{self._images.paths[number]}: OpenCV cannot decode it")
        height, width = pixels.shape[:2]
        ratio = self._side / max(height, width)
        if ratio == 1:
            return pixels
        with self._stage("pixels"):
            return cv2.resize(pixels, (math.ceil(width * ratio), math.ceil(height * ratio)))

    def sample(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (3, side, side) uint8 RGB, and (n, 5) float32 [class, cx, cy, w, h]."""
        canvas, boxes = self._mosaic(index)
        with self._stage("geometry"):
            grow = self._rng.uniform(1 - SCALE, 1 + SCALE)
            shift = self._rng.uniform(0.5 - TRANSLATE, 0.5 + TRANSLATE, 2) * self._side - grow * self._side
            matrix = np.array(((grow, 0, shift[0]), (0, grow, shift[1])))
            boxes = self._moved(boxes, grow, shift)
            mirrored = self._rng.random() < FLIP
            if mirrored:
                boxes[:, 1] = 1 - boxes[:, 1]
        with self._stage("pixels"):
            image = cv2.warpAffine(canvas, matrix, dsize=(self._side, self._side), borderValue=(GREY,) * 3)
            self._colour(image)
            if mirrored:
                image = np.fliplr(image)
            return np.ascontiguousarray(image.transpose(2, 0, 1)[::-1]), boxes

    def _mosaic(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the canvas and boxes [class, x1, y1, x2, y2] in its pixels."""
        side, parts = self._side, []
        x, y = (int(v) for v in self._rng.uniform(side / 2, 3 * side / 2, 2))
        sources = [index, *self._rng.integers(0, len(self._images.paths), 3).tolist()]
        self._rng.shuffle(sources)
        canvas = np.full((2 * side, 2 * side, 3), GREY, np.uint8)
        for tile, source in enumerate(sources):
            pixels = self.scaled_image(source)
            height, width = pixels.shape[:2]
            left, top = x - width * (tile % 2 == 0), y - height * (tile < 2)
            with self._stage("pixels"):
                x1, y1, x2, y2 = max(left, 0), max(top, 0), min(left + width, 2 * side), min(top + height, 2 * side)
                canvas[y1:y2, x1:x2] = pixels[y1 - top : y2 - top, x1 - left : x2 - left]
            with self._stage("geometry"):
                rows = self._images.labels[source].copy()
                centre, half = rows[:, 1:3] * (width, height) + (left, top), rows[:, 3:] * (width, height) / 2
                rows[:, 1:] = np.clip(np.concatenate((centre - half, centre + half), 1), 0, 2 * side)
                parts.append(rows)
        return canvas, np.concatenate(parts)

    def _moved(self, boxes: np.ndarray, grow: float, shift: np.ndarray) -> np.ndarray:
        """Return normalised boxes after scale and shift, without those too small, too thin or mostly outside."""
        corners = (boxes[:, [1, 2, 3, 4, 1, 4, 3, 2]].reshape(-1, 2) * grow + shift).reshape(-1, 4, 2)
        after = np.clip(np.concatenate((corners.min(1), corners.max(1)), 1), 0, self._side)
        before_wh, wh = (boxes[:, 3:] - boxes[:, 1:3]) * grow, after[:, 2:] - after[:, :2]
        share = wh.prod(1) / (before_wh.prod(1) + 1e-16)
        aspect = np.maximum(wh[:, 0] / (wh[:, 1] + 1e-16), wh[:, 1] / (wh[:, 0] + 1e-16))
        keep = (wh > 2).all(1) & (share > 0.1) & (aspect < 100)
        centre = (after[:, :2] + after[:, 2:]) / 2
        return np.concatenate((boxes[:, :1], centre / self._side, wh / self._side), 1)[keep].astype(np.float32)

    def _colour(self, image: np.ndarray) -> None:
        """Apply random gains on hue, saturation and value, in place."""
        gains = self._rng.uniform(-1, 1, 3) * HSV_GAINS + 1
        level = np.arange(256, dtype=gains.dtype)
        tables: tuple[Any, ...] = (
            (level * gains[0]) % 180,
            np.clip(level * gains[1], 0, 255),
            np.clip(level * gains[2], 0, 255),
        )
        planes = cv2.split(cv2.cvtColor(image, cv2.COLOR_BGR2HSV))
        changed = [cv2.LUT(plane, table.astype(np.uint8)) for plane, table in zip(planes, tables, strict=True)]
        cv2.cvtColor(cv2.merge(changed), cv2.COLOR_HSV2BGR, dst=image)

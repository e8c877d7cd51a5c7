"""The index of a data set: which images there are, how large, in which format, with which labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from pipelines.problems import Problem

ImageKind = Literal["jpeg", "cmyk-jpeg", "png", "bmp", "webp", "tiff", "other"]


@dataclass(frozen=True)
class ImageFormat:
    """How an image is stored, as found in its content (the extension is not trusted).

    Attributes:
        kind: "jpeg" is a grey or YCbCr JPEG, "cmyk-jpeg" one of four inks (CMYK or YCCK); other kinds are named
            after their container; "other" is whatever else Pillow reads.
        mode: Pillow's mode of the stored pixels: "RGB", "L", "CMYK", "P", "RGBA", "I;16" (16-bit grey) ...
        orientation: EXIF orientation 1 ... 8; 1 where there is none. 5 ... 8 swap width and height.
        file_bytes: size of the file.
    """

    kind: ImageKind
    mode: str
    orientation: int
    file_bytes: int


@dataclass(frozen=True)
class ImageIndex:
    """All usable images of one split, in a fixed order.

    Attributes:
        paths: one per image.
        sizes: (n, 2) int32, width and height in px as shown, that is after EXIF rotation.
        labels: per image (k, 5) float32 rows [class, cx, cy, w, h], normalised to the image as shown; k may be 0.
        segments: per image an empty tuple, or one (m, 2) float32 normalised polygon for each label row; a row that had
            only a box beside rows with polygons has the box's four corners.
        class_names: one per class.
        formats: how each image is stored.
        problems: everything that was reported, in a fixed order.
    """

    paths: tuple[Path, ...]
    sizes: np.ndarray
    labels: tuple[np.ndarray, ...]
    segments: tuple[tuple[np.ndarray, ...], ...]
    class_names: tuple[str, ...]
    formats: tuple[ImageFormat, ...]
    problems: tuple[Problem, ...]

    def __len__(self) -> int:
        return len(self.paths)


def index_images(
    sources: Sequence[Path],
    class_names: Sequence[str],
    *,
    cache_dir: Path | None = None,
    single_class: bool = False,
    workers: int = 8,
    progress: str | None = None,
    strict: bool = False,
) -> ImageIndex:
    """Scans images and labels of one split (see `pipelines.dataset.Dataset`), or takes them from the cache."""
    raise NotImplementedError("the scan follows in the next commit")

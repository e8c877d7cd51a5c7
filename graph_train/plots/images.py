"""Images with drawn boxes, of labels or detections: single images, and mosaics of a batch."""

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from graph_train.plots.style import class_colour, contrasting_colour
from kernels.host.files import replacing
from pipelines.augmentation.boxes import cxcywh_to_xyxy

Array = npt.NDArray[Any]

MAX_IMAGES = 16
_SHOWN_CONFIDENCE = 0.25
_MAX_SIDE_PX = 1920
_MIN_TILE_PX = 400  # smaller images are enlarged so that captions are readable
_GAP_PX = 4


@dataclass(frozen=True)
class BoxStyle:
    """Style of drawn boxes: line thickness in px, and whether class names and confidences are shown."""

    line_px: int = 2
    names: bool = True
    confidences: bool = True

    @property
    def font_px(self) -> int:
        """Font size for this line thickness."""
        return 7 + 2 * self.line_px


_MOSAIC_STYLE = BoxStyle()


@dataclass(frozen=True)
class _Box:
    """A box to draw: corners in px of its image, class, and confidence (None for a label)."""

    corners: tuple[float, float, float, float]
    category: int
    confidence: float | None


def plot_labelled(
    images: Array, labels: Array, class_names: Sequence[str], path: Path, *, paths: Sequence[str | Path] | None = None
) -> None:
    """Draw a batch with its labels and save it as JPEG or PNG.

    Args:
        images: (B, 3, H, W) uint8 RGB; the first 16 are shown.
        labels: (n, 6) image, class, cx, cy, w, h normalised.
        class_names: by class number.
        path: file to write.
        paths: B image files, named in the tiles.
    """
    height, width = images.shape[2:]
    boxes: list[list[_Box]] = [[] for _ in images]
    corners = cxcywh_to_xyxy(labels[:, 2:6]) * np.asarray([width, height, width, height])
    for row, box in zip(labels, corners, strict=True):
        boxes[int(row[0])].append(_Box(tuple(box.tolist()), int(row[1]), None))
    _draw(images, boxes, class_names, path, paths)


def plot_detections(
    images: Array,
    detections: Sequence[Array],
    class_names: Sequence[str],
    path: Path,
    *,
    paths: Sequence[str | Path] | None = None,
) -> None:
    """Draw a batch with its detections above confidence 0.25 and save it as JPEG or PNG.

    Args:
        images: (B, 3, H, W) uint8 RGB; the first 16 are shown.
        detections: B arrays (k, 6) x1, y1, x2, y2 in px of these images, confidence, class.
        class_names, path, paths: as in `plot_labelled`.
    """
    boxes = [
        [_Box(tuple(row[:4].tolist()), int(row[5]), float(row[4])) for row in rows[::-1] if row[4] > _SHOWN_CONFIDENCE]
        for rows in detections
    ]
    _draw(images, boxes, class_names, path, paths)


def draw_detections(picture: Any, detections: Array, class_names: Sequence[str], style: BoxStyle) -> None:
    """Draw detections (k, 6) x1, y1, x2, y2 in px, confidence, class into a PIL image in mode RGB."""
    from PIL import ImageDraw

    pen = ImageDraw.Draw(picture, "RGBA")
    for row in detections[::-1]:  # the most confident one on top
        box = _Box(tuple(row[:4].tolist()), int(row[5]), float(row[4]) if style.confidences else None)
        _draw_box(pen, box, class_names, 1.0, style)


def _draw(
    images: Array,
    boxes: Sequence[Sequence[_Box]],
    class_names: Sequence[str],
    path: Path,
    paths: Sequence[str | Path] | None,
) -> None:
    from PIL import Image, ImageDraw

    count = min(len(images), MAX_IMAGES)
    columns = math.ceil(math.sqrt(count))
    lines = math.ceil(count / columns)
    height, width = images.shape[2:]
    scale = _tile_scale(width, height, columns, lines)
    tile_w, tile_h = max(1, round(width * scale)), max(1, round(height * scale))
    size = (columns * (tile_w + _GAP_PX) + _GAP_PX, lines * (tile_h + _GAP_PX) + _GAP_PX)
    canvas = Image.new("RGB", size, (255, 255, 255))
    for number in range(count):
        tile = Image.fromarray(np.ascontiguousarray(images[number].transpose(1, 2, 0)))
        if tile.size != (tile_w, tile_h):
            tile = tile.resize((tile_w, tile_h), Image.Resampling.BILINEAR)
        pen = ImageDraw.Draw(tile, "RGBA")
        for box in boxes[number]:
            _draw_box(pen, box, class_names, scale, _MOSAIC_STYLE)
        if paths is not None:
            _tag(pen, (0, tile_h), Path(paths[number]).name, (31, 41, 51))
        line, column = divmod(number, columns)
        canvas.paste(tile, (_GAP_PX + column * (tile_w + _GAP_PX), _GAP_PX + line * (tile_h + _GAP_PX)))
    with replacing(path) as temporary:
        canvas.save(temporary, quality=90)


def _tile_scale(width: int, height: int, columns: int, lines: int) -> float:
    fits = min(_MAX_SIDE_PX / (columns * width), _MAX_SIDE_PX / (lines * height))
    wanted = max(1.0, _MIN_TILE_PX / max(width, height))
    return min(fits, wanted)


def _draw_box(pen: Any, box: _Box, class_names: Sequence[str], scale: float, style: BoxStyle) -> None:
    colour = class_colour(box.category)
    x1, y1, x2, y2 = (value * scale for value in box.corners)
    pen.rectangle((x1, y1, max(x1, x2), max(y1, y2)), outline=colour, width=style.line_px)
    if not style.names:
        return
    name = class_names[box.category] if box.category < len(class_names) else f"class {box.category}"
    text = name if box.confidence is None else f"{name} {box.confidence:.2f}"
    _tag(pen, (x1, y1), text, colour, font_px=style.font_px)


def _tag(
    pen: Any,
    corner: tuple[float, float],
    text: str,
    colour: tuple[int, int, int],
    *,
    font_px: int = _MOSAIC_STYLE.font_px,
) -> None:
    """Draw text on a filled background, with the given lower left corner, moved inside the image if necessary."""
    mask = _text_mask(text, font_px)
    width, height = mask.width + 4, mask.height + 4
    image_w, image_h = pen.im.size
    x = max(0.0, min(corner[0], image_w - width))
    y = max(0.0, min(corner[1], image_h) - height)
    pen.rectangle((x, y, x + width, y + height), fill=(*colour, 200))
    pen.bitmap((round(x) + 2, round(y) + 2), mask, fill=contrasting_colour(colour))


@lru_cache(maxsize=4096)
def _text_mask(text: str, font_px: int) -> Any:
    """Return text as an image in mode L. Cached, because drawing a caption takes longer than the box."""
    from PIL import Image, ImageDraw

    font = _font(font_px)
    left, top, right, bottom = font.getbbox(text)
    mask = Image.new("L", (max(round(right - left), 1), max(round(bottom - top), 1)))
    ImageDraw.Draw(mask).text((-left, -top), text, fill=255, font=font)
    return mask


@cache
def _font(height_px: int) -> Any:
    from PIL import ImageFont

    # DejaVu is part of matplotlib and covers Latin, Greek and Cyrillic. Matplotlib is not imported, because it fails
    # with a wrong MPLBACKEND or configuration file.
    spec = importlib.util.find_spec("matplotlib")
    assert spec is not None and spec.origin is not None
    font = Path(spec.origin).with_name("mpl-data") / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(font), height_px)

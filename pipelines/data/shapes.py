"""The built-in data set `shapes`: small images of circles, squares and triangles, rendered on first use."""

import colorsys
import math
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from kernels.host.cache_folder import make_private_folder, user_cache_folder

SHAPES_NAME = "shapes"
CLASS_NAMES = ("circle", "square", "triangle")
COUNTS = {"train": 128, "val": 32}

_VERSION = "shapes-v1"
_SEED = 20240501
_SUPERSAMPLING = 3
_BASE_HUES = (0.0, 0.33, 0.62)
"""Each class has its own third of the hues, so that a small network learns the task in minutes."""


def render_shapes(cache_folder: Path | None = None) -> Path:
    """Render the data set if it does not exist, which takes about a second; return its dataset yaml.

    There are 128 training and 32 validation JPEGs of 200 to 320 px with YOLO labels. Pixels are the same on every
    machine up to the JPEG encoder. Concurrent calls are safe.

    Args:
        cache_folder: parent folder, by default the user's cache folder.
    Raises:
        OSError: the folder cannot be created or written.
    """
    parent = user_cache_folder() if cache_folder is None else cache_folder
    final = parent / _VERSION
    if not _is_complete(final):
        make_private_folder(parent)
        try:
            _render_into(parent, final)
        except OSError as error:
            # A failed write has no file name, and that of a temporary file means nothing to the user.
            reason = f"{error.strerror or error}; the data set shapes (4 MB) cannot be written here, set XDG_CACHE_HOME"
            raise OSError(error.errno, reason, str(parent)) from error
    return final / "shapes.yaml"


def _render_into(parent: Path, final: Path) -> None:
    work = Path(tempfile.mkdtemp(prefix=f".{_VERSION}-", dir=parent))
    try:
        _render_all(work / "new")
        _put_in_place(work, final)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _is_complete(folder: Path) -> bool:
    if not (folder / "shapes.yaml").is_file():
        return False
    # A copy onto a full disk leaves empty files.
    return all(
        sum(file.stat().st_size > 0 for file in (folder / kind / split).glob(f"*.{suffix}")) == count
        for split, count in COUNTS.items()
        for kind, suffix in (("images", "jpg"), ("labels", "txt"))
    )


def _put_in_place(work: Path, final: Path) -> None:
    """Rename the new folder to its final name, unless another process was faster."""
    if final.exists() and not _is_complete(final):
        os.rename(final, work / "damaged")
    try:
        os.rename(work / "new", final)
    except OSError:
        if not _is_complete(final):
            raise


def _render_all(folder: Path) -> None:
    for stream, (split, count) in enumerate(COUNTS.items()):
        (folder / "images" / split).mkdir(parents=True)
        (folder / "labels" / split).mkdir(parents=True)
        for index in range(count):
            image, rows = _render(np.random.default_rng((_SEED, stream, index)))
            image.save(folder / "images" / split / f"{index:03d}.jpg", quality=90)
            (folder / "labels" / split / f"{index:03d}.txt").write_text("".join(f"{row}\n" for row in rows))
    names = "".join(f"  {index}: {name}\n" for index, name in enumerate(CLASS_NAMES))
    text = f"# Rendered shapes, made by graph-train.\npath: .\ntrain: images/train\nval: images/val\nnames:\n{names}"
    (folder / "shapes.yaml").write_text(text)


def _render(rng: np.random.Generator) -> tuple[Image.Image, list[str]]:
    """Render an image; return it and its label rows."""
    width, height = (int(side) for side in rng.integers(200, 321, 2))
    image = _background(rng, width, height)
    rows: list[str] = []
    boxes: list[tuple[float, float, float, float]] = []
    for _ in range(int(rng.integers(2, 6))):
        shape = int(rng.integers(len(CLASS_NAMES)))
        outline = _place(rng, shape, width, height, boxes)
        if outline is None:
            continue
        _paint(image, outline, _colour(rng, shape))
        box = (*outline.min(axis=0), *outline.max(axis=0))
        boxes.append(box)
        rows.append(_row(shape, box, width, height))
    noise = rng.standard_normal((height, width, 3), np.float32) * rng.uniform(1, 8)
    pixels = np.clip(np.asarray(image, np.float32) + noise, 0, 255).astype(np.uint8)
    return Image.fromarray(pixels), rows


def _background(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Render a light or dark, nearly grey, uneven background."""
    level = rng.choice([rng.uniform(20, 80), rng.uniform(175, 235)])
    patches = level + rng.normal(0, 14, (int(rng.integers(2, 7)), int(rng.integers(2, 7)), 3))
    patches = np.clip(patches, 0, 255).astype(np.uint8)
    return (
        Image.fromarray(patches).resize((width, height), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(2))
    )


def _colour(rng: np.random.Generator, shape: int) -> tuple[int, int, int]:
    hue = (_BASE_HUES[shape] + rng.uniform(-0.1, 0.1)) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, rng.uniform(0.65, 1.0), rng.uniform(0.6, 1.0))
    return round(255 * red), round(255 * green), round(255 * blue)


def _place(
    rng: np.random.Generator, shape: int, width: int, height: int, boxes: list[tuple[float, float, float, float]]
) -> np.ndarray | None:
    """Return an outline (n, 2) in px that covers little of the other boxes; None if there is no room."""
    for _ in range(20):
        outline = _outline(rng, shape) * min(width, height) * rng.uniform(0.1, 0.24)
        low, high = outline.min(axis=0), outline.max(axis=0)
        room = np.array([width, height]) - (high - low)
        outline = outline - low + rng.uniform(0, 1, 2) * room
        if all(_overlap(outline, box) < 0.2 for box in boxes):
            return outline
    return None


def _outline(rng: np.random.Generator, shape: int) -> np.ndarray:
    """Return the corners (n, 2) of a randomly rotated and stretched shape with a radius of about 1."""
    corners = {0: 72, 1: 4, 2: 3}[shape]
    turn = {0: 0.0, 1: math.pi / 4, 2: -math.pi / 2}[shape] + rng.uniform(-0.25, 0.25)
    angles = turn + np.arange(corners) * 2 * math.pi / corners
    outline = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return outline * ([1.0, 1.0] if shape == 0 else rng.uniform(0.85, 1.2, 2))


def _overlap(outline: np.ndarray, box: tuple[float, float, float, float]) -> float:
    """Return the overlap of the outline's box and another box, relative to the smaller of the two."""
    low, high = outline.min(axis=0), outline.max(axis=0)
    shared = np.clip(np.minimum(high, box[2:]) - np.maximum(low, box[:2]), 0, None).prod()
    return float(shared / min((high - low).prod(), (box[2] - box[0]) * (box[3] - box[1])))


def _paint(image: Image.Image, outline: np.ndarray, colour: tuple[int, int, int]) -> None:
    """Fill the outline with antialiased edges."""
    low, high = np.floor(outline.min(axis=0)).astype(int), np.ceil(outline.max(axis=0)).astype(int) + 1
    size = (int(high[0] - low[0]), int(high[1] - low[1]))
    mask = Image.new("L", (size[0] * _SUPERSAMPLING, size[1] * _SUPERSAMPLING))
    ImageDraw.Draw(mask).polygon([tuple(corner) for corner in (outline - low) * _SUPERSAMPLING], fill=255)
    mask = mask.resize(size, Image.Resampling.BOX)
    image.paste(colour, (int(low[0]), int(low[1])), mask)


def _row(shape: int, box: tuple[float, float, float, float], width: int, height: int) -> str:
    left, top, right, bottom = box
    centre_x, centre_y = (left + right) / 2 / width, (top + bottom) / 2 / height
    return f"{shape} {centre_x:.6f} {centre_y:.6f} {(right - left) / width:.6f} {(bottom - top) / height:.6f}"

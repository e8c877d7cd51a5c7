"""Small data sets on disk: images of a colour gradient with given labels."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def picture(width: int = 40, height: int = 30) -> Image.Image:
    """Return a smooth image that reveals rotations and channel swaps."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], -1).astype(np.uint8))


def add_image(folder: Path, name: str, labels: str | bytes | None = None, **save: Any) -> Path:
    """Write `folder/images/name` and, unless `labels` is None, its label file; return the image's path."""
    image = folder / "images" / name
    image.parent.mkdir(parents=True, exist_ok=True)
    picture().save(image, **save)
    if labels is not None:
        label = (folder / "labels" / name).with_suffix(".txt")
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_bytes(labels if isinstance(labels, bytes) else labels.encode())
    return image


def write_yaml(folder: Path, text: str) -> Path:
    """Write a dataset yaml in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "data.yaml"
    file.write_text(text)
    return file

"""A copy of a data set with images of the training size, so that no side resamples them."""

import os
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from pipelines.data.dataset import load_dataset
from pipelines.data.images import decode_picture, read_image_file
from pipelines.data.index import index_images


def make_resized_set(folder: Path, *, data: str, image_px: int) -> Path:
    """Create a data set of PNG images with a long side of `image_px`, and return its dataset yaml.

    Args:
        folder: created with images/<split>, labels/<split> and `data.yaml`, unless it exists.
        data: dataset yaml, or `shapes`; its splits train and val are used.
        image_px: the long side in px; images are shrunk by averaging.
    Raises:
        ValueError, OSError: the data set cannot be used.
    """
    made = folder / "data.yaml"
    if made.exists():
        return made
    dataset = load_dataset(data, require=("train", "val"))
    for split in ("train", "val"):
        index = index_images(dataset.split(split), dataset.class_names)
        for name in ("images", "labels"):
            (folder / name / split).mkdir(parents=True, exist_ok=True)
        for number, (path, rows) in enumerate(zip(index.paths, index.labels, strict=True)):
            image = decode_picture(read_image_file(path))
            scale = image_px / max(image.size)
            size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
            image.resize(size, Image.Resampling.BOX).save(folder / "images" / split / f"{number:06d}.png")
            np.savetxt(folder / "labels" / split / f"{number:06d}.txt", rows, fmt=["%d"] + ["%.9g"] * 4)
    names = list(dataset.class_names)
    text = yaml.safe_dump({"path": ".", "train": "images/train", "val": "images/val", "names": names})
    unfinished = made.with_suffix(".part")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, made)  # exists only when complete
    return made

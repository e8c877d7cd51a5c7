"""A large data set that needs little disk space: links to a few images, each with its own label file."""

from itertools import cycle, islice
from pathlib import Path

import numpy as np

from pipelines.data.dataset import load_dataset

CLASSES = 80
VAL_SHARE = 5_000 / 118_287
"""Validation images per training image, as in COCO 2017."""
_SEED = 20261129
_SMALLEST_SIDE, _LARGEST_SIDE = 0.02, 0.3


def make_link_set(folder: Path, *, images: int, boxes: int, pictures: str) -> Path:
    """Create a data set of symbolic links with random boxes and return its dataset yaml.

    Args:
        folder: created with images/<split>, labels/<split> and `data.yaml`.
        images: training images; the val split has `VAL_SHARE` times as many, at least one.
        boxes: labels of all training images; the val split has labels in proportion.
        pictures: dataset yaml or `shapes`; each split links to the images of the same split in turn.
    Raises:
        ValueError, OSError: the images cannot be found or a file cannot be written.
    """
    sources = load_dataset(pictures)
    val_images = max(1, round(images * VAL_SHARE))
    amounts = {"train": (images, boxes), "val": (val_images, round(boxes * val_images / images))}
    rng = np.random.default_rng(_SEED)
    for split, (count, rows) in amounts.items():
        _link(_pictures(sources.train if split == "train" else sources.val), folder / "images" / split, count)
        _write_labels(rng, folder / "labels" / split, count, rows)
    yaml = folder / "data.yaml"
    yaml.write_text(f"path: .\ntrain: images/train\nval: images/val\nnc: {CLASSES}\n", encoding="utf-8")
    return yaml


def _pictures(sources: tuple[Path, ...]) -> list[Path]:
    from pipelines.data.listing import list_images

    found = [Path(image).resolve() for image in list_images(sources, ()).images]
    if not found:
        raise ValueError(f"{', '.join(map(str, sources))}: no images to link to")
    return found


def _link(pictures: list[Path], folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    for number, picture in enumerate(islice(cycle(pictures), count)):
        (folder / f"{number:06d}{picture.suffix}").symlink_to(picture)


def _write_labels(rng: np.random.Generator, folder: Path, count: int, rows: int) -> None:
    """Write one file per image and spread the rows over them at random; some files stay empty."""
    folder.mkdir(parents=True)
    for number, amount in enumerate(rng.multinomial(rows, np.full(count, 1 / count)).tolist()):
        sides = rng.uniform(_SMALLEST_SIDE, _LARGEST_SIDE, (amount, 2))
        centres = rng.uniform(sides / 2, 1 - sides / 2)
        classes = rng.integers(CLASSES, size=(amount, 1))
        values = np.concatenate((classes, centres, sides), axis=1)
        text = "%d %.6f %.6f %.6f %.6f\n" * amount % tuple(values.ravel())
        (folder / f"{number:06d}.txt").write_text(text, encoding="ascii")

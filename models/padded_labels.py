"""Labels of a batch padded to a fixed number of slots per image, since graphs need fixed shapes. NumPy only."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

SMALLEST_CAPACITY = 16


def label_capacity(max_labels: int) -> int:
    """Return the label slots per image for at most `max_labels` labels in an image: a power of two, at least 16."""
    return max(SMALLEST_CAPACITY, 1 << max(max_labels - 1, 0).bit_length())


def typical_label_capacity(labels: Sequence[npt.NDArray[np.floating]], tiles: int) -> int:
    """Return a capacity that fits nearly all batches: mean plus three standard deviations for mosaics of `tiles`.

    A common capacity keeps the number of graphs small: each takes seconds to compile and its own memory, while padding
    costs almost nothing.

    Args:
        labels: an array for each image of the data set, with a row per label.
        tiles: images per mosaic.
    """
    counts = np.array([len(rows) for rows in labels] or [0])
    return label_capacity(int(np.ceil(counts.mean() * tiles + 3 * counts.std() * np.sqrt(tiles))))


def pad_labels(rows: npt.NDArray[np.floating], batch: int, capacity: int) -> npt.NDArray[np.float32]:
    """Pad the labels of each image to the same number of slots, keeping their order.

    Args:
        rows: (n, 6) image number in the batch, class, centre x, centre y, width, height; images in any order.
        batch: number of images B.
        capacity: slots per image T.
    Returns:
        (B, T, 5) float32, C-contiguous; unused slots have class -1 and zeros.
    Raises:
        ValueError: a row refers to an image outside the batch, or an image has more labels than slots.
    """
    padded = np.zeros((batch, capacity, 5), np.float32)
    padded[:, :, 0] = -1.0
    if not len(rows):
        return padded
    image = rows[:, 0].astype(np.int64)
    if image.min() < 0 or image.max() >= batch:
        raise ValueError(f"labels for image {image.min()} to {image.max()} in a batch of {batch}")
    counts = np.bincount(image, minlength=batch)
    if counts.max() > capacity:
        raise ValueError(
            f"{counts.max()} labels in an image, but only {capacity} slots; use label_capacity({counts.max()})"
        )
    order = np.argsort(image, kind="stable")
    first = np.concatenate(([0], np.cumsum(counts)[:-1]))
    slot = np.arange(len(rows)) - first[image[order]]
    padded[image[order], slot] = rows[order, 1:6]
    return padded

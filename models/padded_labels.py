"""Labels of a batch in a shape that graphs keep: as many slots for every image. NumPy only."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

SMALLEST_CAPACITY = 16


def label_capacity(most_labels: int) -> int:
    """Return the label slots per image if the fullest image has `most_labels`: a power of two, at least 16."""
    return max(SMALLEST_CAPACITY, 1 << max(most_labels - 1, 0).bit_length())


def typical_label_capacity(labels: Sequence[npt.NDArray[np.floating]], tiles: int) -> int:
    """Return the capacity that nearly all batches fit: mean plus three deviations of the labels of `tiles` images.

    Starting there, rather than at each batch's own need, keeps the graphs few: each takes seconds to compile and
    memory of its own, while padding costs next to nothing.

    Args:
        labels: one array per image of the data set, a row per label.
        tiles: images that a mosaic joins.
    """
    counts = np.array([len(rows) for rows in labels] or [0])
    return label_capacity(int(np.ceil(counts.mean() * tiles + 3 * counts.std() * np.sqrt(tiles))))


def pad_labels(rows: npt.NDArray[np.floating], batch: int, capacity: int) -> npt.NDArray[np.float32]:
    """Give each image the same number of label slots; the order of an image's labels is kept.

    Args:
        rows: (n, 6) image number in the batch, class, centre x, centre y, width, height; images in any order.
        batch: number of images B.
        capacity: slots per image T.
    Returns:
        (B, T, 5) float32, C-contiguous; unused slots have class -1 and zeros.
    Raises:
        ValueError: a row of no image of the batch, or an image with more labels than slots.
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
        raise ValueError(f"{counts.max()} labels in one image but {capacity} slots: use label_capacity({counts.max()})")
    order = np.argsort(image, kind="stable")
    first = np.concatenate(([0], np.cumsum(counts)[:-1]))
    slot = np.arange(len(rows)) - first[image[order]]
    padded[image[order], slot] = rows[order, 1:6]
    return padded

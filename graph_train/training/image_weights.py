"""Class and image weights, which determine how often `--image-weights` draws an image.

The labels of an image are (n, 5) [class, cx, cy, w, h]; only the class is used.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.floating]


def class_counts(labels: Sequence[Labels], num_classes: int) -> npt.NDArray[np.int64]:
    """Count the boxes per image and class, (images, num_classes).

    Raises:
        ValueError: a class is outside 0 … num_classes-1.
    """
    classes = np.concatenate([boxes[:, 0] for boxes in labels] or [np.zeros(0)]).astype(np.int64)
    if classes.size and not 0 <= classes.min() <= classes.max() < num_classes:
        raise ValueError(f"label with class {classes.max()}, but there are only {num_classes} classes (from 0)")
    image = np.repeat(np.arange(len(labels)), [len(boxes) for boxes in labels])
    counts = np.bincount(image * num_classes + classes, minlength=len(labels) * num_classes)
    return counts.reshape(len(labels), num_classes)


def class_weights(labels: Sequence[Labels], num_classes: int) -> npt.NDArray[np.float64]:
    """Return normalised inverse frequencies of the classes, (num_classes,); an absent class counts as one box."""
    inverse = 1.0 / np.maximum(class_counts(labels, num_classes).sum(0), 1)
    return inverse / inverse.sum()


def epoch_class_weights(weights: npt.NDArray[np.float64], average_precision: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return the class weights of the next epoch, (num_classes,): rare classes and those with low AP weigh more.

    Args:
        weights: `class_weights`.
        average_precision: mAP50-95 per class of the last validation, zeros before the first.
    """
    # YOLOv5 multiplies by the number of classes when it stores the weights and divides by it here.
    return weights * (1 - np.asarray(average_precision, np.float64)) ** 2


def image_weights(
    labels: Sequence[Labels], num_classes: int, weights: npt.NDArray[np.floating]
) -> npt.NDArray[np.float64]:
    """Return the weight of each image, (images,): the sum of the class weights of its boxes.

    If all weights are 0 (no boxes, or perfect AP in every class), return ones; YOLOv5 fails in that case.
    """
    per_image = class_counts(labels, num_classes).astype(np.float64) @ weights.astype(np.float64)
    return per_image if per_image.any() else np.ones(len(labels))

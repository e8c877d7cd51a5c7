"""Class and image weights: how often `--image-weights` draws an image.

Labels of an image are an (n, 5) array [class, cx, cy, w, h]; only the class column counts.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.floating]


def class_counts(labels: Sequence[Labels], num_classes: int) -> npt.NDArray[np.int64]:
    """Boxes per image and class, (images, num_classes).

    Raises:
        ValueError: a class outside 0 … num_classes-1.
    """
    classes = np.concatenate([boxes[:, 0] for boxes in labels] or [np.zeros(0)]).astype(np.int64)
    if classes.size and not 0 <= classes.min() <= classes.max() < num_classes:
        raise ValueError(f"class {classes.max()} among the labels, but there are {num_classes} classes (from 0)")
    image = np.repeat(np.arange(len(labels)), [len(boxes) for boxes in labels])
    counts = np.bincount(image * num_classes + classes, minlength=len(labels) * num_classes)
    return counts.reshape(len(labels), num_classes)


def class_weights(labels: Sequence[Labels], num_classes: int) -> npt.NDArray[np.float64]:
    """Inverse frequency of each class, (num_classes,), summing to 1; a class without boxes counts as having one."""
    inverse = 1.0 / np.maximum(class_counts(labels, num_classes).sum(0), 1)
    return inverse / inverse.sum()


def epoch_class_weights(weights: npt.NDArray[np.float64], average_precision: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Class weights of the coming epoch, (num_classes,): rare classes and those not yet found count more.

    Args:
        weights: `class_weights`.
        average_precision: mAP50-95 per class of the last validation, zeros before the first.
    """
    # YOLOv5 multiplies by the number of classes when it stores the weights and divides by it here.
    return weights * (1 - np.asarray(average_precision, np.float64)) ** 2


def image_weights(
    labels: Sequence[Labels], num_classes: int, weights: npt.NDArray[np.floating]
) -> npt.NDArray[np.float64]:
    """Weight of each image, (images,): the sum over its boxes of their class weights; 0 without boxes.

    Where no image would have a weight (no boxes, or every class found perfectly) all have 1; the reference fails there.
    """
    per_image = class_counts(labels, num_classes).astype(np.float64) @ weights.astype(np.float64)
    return per_image if per_image.any() else np.ones(len(labels))

"""Class and image weights with known values."""

import numpy as np
import numpy.typing as npt
import pytest

from graph_train.training.image_weights import class_weights, epoch_class_weights, image_weights


def _labels(*classes: int) -> npt.NDArray[np.float32]:
    return np.array([[c, 0.5, 0.5, 0.1, 0.1] for c in classes], np.float32).reshape(-1, 5)


IMAGES = [_labels(0, 0, 0), _labels(1), _labels()]


def test_weights_known_values() -> None:
    # class counts 3, 1, 0 -> inverses 1/3, 1, 1 (a class without boxes counts as one)
    weights = class_weights(IMAGES, 3)
    np.testing.assert_allclose(weights, np.array([1, 3, 3]) / 7)
    np.testing.assert_allclose(image_weights(IMAGES, 3, weights), [3 / 7, 3 / 7, 0])


def test_perfectly_detected_class_has_no_weight() -> None:
    np.testing.assert_allclose(epoch_class_weights(np.array([0.25, 0.75]), [1.0, 0.5]), [0.0, 0.1875])


def test_class_out_of_range_raises() -> None:
    with pytest.raises(ValueError, match="label with class 3"):
        class_weights([_labels(3)], 3)


def test_images_without_weights_are_equally_likely() -> None:
    np.testing.assert_array_equal(image_weights([_labels(), _labels()], 3, np.ones(3)), [1.0, 1.0])
    np.testing.assert_array_equal(image_weights(IMAGES, 3, np.zeros(3)), [1.0, 1.0, 1.0])

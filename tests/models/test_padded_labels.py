import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.padded_labels import label_capacity, pad_labels


@pytest.mark.parametrize(
    ("labels", "capacity"), [(0, 16), (1, 16), (16, 16), (17, 32), (32, 32), (33, 64), (240, 256), (1000, 1024)]
)
def test_label_capacity(labels: int, capacity: int) -> None:
    assert label_capacity(labels) == capacity


def test_padding_keeps_order_within_image() -> None:
    rows = np.array([[1, 5, 0.1, 0.1, 0.1, 0.1], [0, 6, 0.2, 0.2, 0.2, 0.2], [1, 4, 0.3, 0.3, 0.3, 0.3]])
    padded = pad_labels(rows, batch=3, capacity=2)
    assert padded.dtype == np.float32
    assert padded[:, :, 0].tolist() == [[6, -1], [5, 4], [-1, -1]]
    np.testing.assert_array_equal(padded[1, :, 1], np.array([0.1, 0.3], np.float32))
    assert not padded[2, :, 1:].any()


def test_no_labels_at_all() -> None:
    padded = pad_labels(np.zeros((0, 6)), batch=2, capacity=16)
    assert padded.shape == (2, 16, 5)
    assert (padded[:, :, 0] == -1).all()


@given(st.lists(st.integers(0, 3), max_size=40))
def test_padding_keeps_every_label(images: list[int]) -> None:
    rows = np.array([[image, number % 7, number, number, 1, 1] for number, image in enumerate(images)], float)
    rows = rows.reshape(-1, 6)
    padded = pad_labels(rows, batch=4, capacity=label_capacity(len(images)))
    for image in range(4):
        kept = padded[image][padded[image, :, 0] >= 0]
        np.testing.assert_array_equal(kept, rows[rows[:, 0] == image, 1:].astype(np.float32))


def test_too_many_labels_raise() -> None:
    with pytest.raises(ValueError, match="3 labels in an image, but only 2 slots"):
        pad_labels(np.zeros((3, 6)), batch=1, capacity=2)


@pytest.mark.parametrize("image", [-1, 2])
def test_label_without_image_raises(image: int) -> None:
    with pytest.raises(ValueError, match="batch of 2"):
        pad_labels(np.array([[image, 0, 0.5, 0.5, 0.1, 0.1]]), batch=2, capacity=16)

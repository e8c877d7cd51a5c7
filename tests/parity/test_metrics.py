import numpy as np
import pytest

from tests.parity.metrics import coco_sampled


def test_coco_sampling_known_values() -> None:
    # Recalls 0 .. 0.50 are reached at precision 1, 0.51 .. 1 at 2/3.
    recall, precision = np.asarray([0.5, 0.5, 1.0]), np.asarray([1.0, 0.5, 2 / 3])
    assert coco_sampled(recall, precision) == pytest.approx((51 + 50 * 2 / 3) / 101)

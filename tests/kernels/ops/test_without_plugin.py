"""The composed forms that a training without the plugin takes, beside the ops."""

import numpy as np

from kernels.ops.flatten.function import flatten_tensors, flattened
from kernels.ops.statistics.function import average_statistics, average_statistics_reference
from kernels.runtime import Tensor, flow


def _tensors() -> list[Tensor]:
    random = np.random.default_rng(0)
    return [flow.tensor(random.standard_normal(count).astype(np.float32)) for count in (3, 1, 70)]


def test_flattened() -> None:
    np.testing.assert_array_equal(flatten_tensors(_tensors()).numpy(), flattened(_tensors()).numpy())


def test_average_of_statistics() -> None:
    for share in (0.0, 0.25, 1.0):
        for infinite in (False, True):
            averages, flats = [], []
            for function in (average_statistics, average_statistics_reference):
                current, average = _tensors(), flow.full((74,), 0.5)
                if infinite and share == 0:
                    current[1] *= float("inf")
                flats.append(function(current, average, flow.tensor([9.0, share]), 1).numpy())
                averages.append(average.numpy())
            np.testing.assert_array_equal(*flats)
            np.testing.assert_allclose(averages[0], averages[1], rtol=0, atol=2e-7)
            assert np.isfinite(averages[0]).all()

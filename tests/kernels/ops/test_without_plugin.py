"""The composed forms used without the plugin, against the ops."""

import numpy as np

from kernels.ops.begin_step.function import begin_step, begin_step_reference
from kernels.ops.flatten.function import flatten_tensors, flattened
from kernels.runtime import Tensor, flow


def _tensors() -> list[Tensor]:
    random = np.random.default_rng(0)
    return [flow.tensor(random.standard_normal(count).astype(np.float32)) for count in (3, 1, 70)]


def test_flattened_without_plugin() -> None:
    np.testing.assert_array_equal(flatten_tensors(_tensors()).numpy(), flattened(_tensors()).numpy())


def test_begin_step_without_plugin() -> None:
    for share in (0.0, 0.25, 1.0):
        for updated in (0.0, 1.0):
            averages, scalars = [], []
            rows = flow.tensor([[1.0, 2.0, share], [3.0, 4.0, share]])
            for function in (begin_step, begin_step_reference):
                current, average = _tensors(), flow.full((74,), 0.5)
                if share == 0:
                    current[1] *= float("inf")
                parts = function(current, average, rows, flow.tensor([9.0, updated]), size=2)
                scalars.append(np.concatenate([part.numpy() for part in parts]))
                averages.append(average.numpy())
            np.testing.assert_array_equal(*scalars)
            np.testing.assert_allclose(averages[0], averages[1], rtol=0, atol=2e-7)
            assert np.isfinite(averages[0]).all()

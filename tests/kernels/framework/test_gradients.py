import numpy as np
import pytest

from kernels.framework.gradients import gradients_of
from kernels.runtime import Tensor, flow


class _Product(flow.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.x = flow.nn.Parameter(flow.tensor([2.0, -3.0]))
        self.y = flow.nn.Parameter(flow.tensor([5.0, 7.0]))

    def forward(self) -> list[Tensor]:
        return gradients_of((self.x * self.x * self.y).sum(), [self.x, self.y])


class _ProductGraph(flow.nn.Graph):
    def __init__(self) -> None:
        super().__init__()
        self.product = _Product()
        self.config._train(True)

    def build(self) -> list[Tensor]:
        return self.product()


@pytest.mark.parametrize("kind", [_Product, _ProductGraph])
def test_gradients_known_values(kind: type) -> None:
    """The derivatives of x * x * y are 2 x y and x * x."""
    dx, dy = kind()()
    np.testing.assert_array_equal(dx.numpy(), [20, -42])
    np.testing.assert_array_equal(dy.numpy(), [4, 9])

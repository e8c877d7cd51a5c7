import numpy as np
import pytest

from kernels.framework.activation_type import ActivationType
from kernels.ops.pixels.function import pixels
from kernels.runtime import flow
from tests.kernels.ops.activation_kinds import activation, every_type, needs_plugin, values_of

pytestmark = needs_plugin


@every_type
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 1, 1, 1), (1, 4, 64, 64), (0, 3, 4, 4)])
def test_pixels_are_divided_and_turned(shape: tuple[int, ...], kind: ActivationType) -> None:
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    got = pixels(flow.tensor(images), kind)
    expected = (images.astype(np.float32) / np.float32(255)).transpose(0, 2, 3, 1)
    assert got.dtype == kind.dtype
    np.testing.assert_array_equal(values_of(got), values_of(activation(expected, kind)))

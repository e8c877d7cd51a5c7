"""Conversion of images to the first activation, bitwise."""

import numpy as np
import pytest

from kernels.framework.activation_type import ActivationType
from kernels.ops.pixels.function import pixels
from kernels.runtime import flow
from tests.kernels.ops.activations import assert_same_bits, check_thread_orders, in_graph, rounded


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (2, 3, 5, 7), (3, 3, 16, 16), (0, 3, 4, 4), (2, 3, 3, 43)])
def test_pixels(shape: tuple[int, ...], activation_type: ActivationType) -> None:
    images = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)

    def run() -> list[np.ndarray]:
        out = pixels(flow.tensor(images), activation_type)
        assert out.dtype == activation_type.dtype
        return [out.to(flow.float32).numpy()]

    (out,) = check_thread_orders(run)
    scaled = images.astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(out, rounded(scaled.transpose(0, 2, 3, 1), activation_type))


def test_every_byte_value(activation_type: ActivationType) -> None:
    images = np.arange(768, dtype=np.uint8).reshape(1, 3, 16, 16)
    out = pixels(flow.tensor(images), activation_type).to(flow.float32).numpy()
    exact = rounded(np.arange(256, dtype=np.float32) / np.float32(255), activation_type)
    np.testing.assert_array_equal(out.reshape(256, 3), np.stack([exact] * 3, axis=1))


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (2, 3, 5, 7), (0, 3, 4, 4), (2, 3, 3, 43)])
def test_float32_images_are_only_rounded(shape: tuple[int, ...], activation_type: ActivationType) -> None:
    images = np.random.default_rng(0).random(shape, np.float32)
    (out,) = check_thread_orders(lambda: [pixels(flow.tensor(images), activation_type).to(flow.float32).numpy()])
    np.testing.assert_array_equal(out, rounded(images.transpose(0, 2, 3, 1), activation_type))


def test_graph_matches_eager(activation_type: ActivationType) -> None:
    images = flow.tensor(np.random.default_rng(0).integers(0, 256, (2, 3, 6, 5)).astype(np.uint8))
    eager = pixels(images, activation_type).to(flow.float32).numpy()
    assert_same_bits(in_graph(lambda given: [pixels(given, activation_type)], images), [eager])


def test_invalid_inputs_raise() -> None:
    with pytest.raises(RuntimeError, match="graph_train_pixels"):
        pixels(flow.zeros(1, 3, 4, 4, dtype=flow.int32), ActivationType.FLOAT32)
    with pytest.raises(RuntimeError, match="graph_train_pixels"):
        pixels(flow.zeros(1, 4, 4, 4, dtype=flow.uint8), ActivationType.FLOAT32)

"""Colour augmentation by the plugin matches its reference bitwise and writes nothing else."""

import numpy as np
import pytest

from kernels.ops.hsv.function import write_planes
from pipelines.pixels import colour

GAINS = [(1.0, 1.0, 1.0), (1.015, 1.7, 1.4), (0.985, 0.3, 0.6), (1.5, 1.9, 0.5), (0.5, 0.0, 2.0)]


def pictures() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (37, 1100, 3), dtype=np.uint8)
    grey = np.repeat(rng.integers(0, 256, (5, 7, 1), dtype=np.uint8), 3, axis=2)
    corners = np.array(np.meshgrid(*[[0, 1, 254, 255]] * 3), np.uint8).reshape(3, 8, 8).transpose(1, 2, 0)
    return [noise, grey, np.ascontiguousarray(corners)]


@pytest.mark.parametrize("gains", GAINS)
def test_plugin_matches_reference(gains: tuple[float, float, float]) -> None:
    for picture in pictures():
        expected = colour.apply_tables(picture, colour.hsv_tables(np.array(gains))).transpose(2, 0, 1)
        # A window of a larger array: only bytes of the window may change.
        around = np.full((3, picture.shape[0] + 2, picture.shape[1] + 4), 7, np.uint8)
        write_planes(picture, colour.hsv_tables(np.array(gains)), around[:, 1:-1, 2:-2])
        assert np.array_equal(around[:, 1:-1, 2:-2], expected)
        around[:, 1:-1, 2:-2] = 7
        assert np.all(around == 7)
        plain = np.empty(expected.shape, np.uint8)
        write_planes(picture, None, plain)
        assert np.array_equal(plain, picture.transpose(2, 0, 1))


def test_mismatched_arguments_raise() -> None:
    picture, tables = np.zeros((4, 5, 3), np.uint8), colour.hsv_tables(np.ones(3))
    with pytest.raises(ValueError, match=r"planes \(3, 5, 4\)"):
        write_planes(picture, tables, np.zeros((3, 5, 4), np.uint8))
    with pytest.raises(ValueError, match="both must be uint8"):
        write_planes(picture, tables, np.zeros((3, 4, 5), np.float32))
    with pytest.raises(ValueError, match="hues below 180"):
        write_planes(picture, np.full((3, 256), 200, np.uint8), np.zeros((3, 4, 5), np.uint8))


def test_planes_are_modified_in_place() -> None:
    for picture in pictures():
        tables = colour.hsv_tables(np.array(GAINS[1]))
        planes = np.ascontiguousarray(picture.transpose(2, 0, 1))
        write_planes(planes.transpose(1, 2, 0), tables, planes)
        assert np.array_equal(planes, colour.apply_tables(picture, tables).transpose(2, 0, 1))

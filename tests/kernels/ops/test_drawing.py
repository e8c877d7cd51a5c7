"""Region rendering: known values, and the kernel against its reference."""

from typing import get_args

import cv2
import numpy as np
import pytest

from kernels.ops.drawing.function import Filter, axis_weights, draw_region, draw_region_reference


def grey(values: list[list[int]]) -> np.ndarray:
    return np.repeat(np.array(values, np.uint8)[..., None], 3, axis=2)


def rendered(
    crop: np.ndarray, region: tuple[float, ...], shape: tuple[int, int], filter: Filter = "linear"
) -> np.ndarray:
    target = np.zeros((3, *shape), np.uint8)
    draw_region(crop, (region[0], region[1], region[2], region[3]), target, filter=filter)
    return target


def test_known_values() -> None:
    picture = grey([[0, 100, 200, 40]])
    assert rendered(picture, (0, 0, 1, 4), (1, 4))[1].tolist() == [[0, 100, 200, 40]]
    assert rendered(picture, (0, 4, 1, 0), (1, 4))[1].tolist() == [[40, 200, 100, 0]]  # mirrored
    # Half a pixel to the right; beyond the edge, the last pixel is repeated.
    assert rendered(picture, (0, 0.5, 1, 4.5), (1, 4))[0].tolist() == [[50, 150, 120, 40]]
    # Half the size: two neighbours each, whether sampled or averaged with weights 1 3 3 1 over eight.
    assert rendered(picture, (0, 0, 1, 4), (1, 2))[2].tolist() == [[50, 120]]
    averaged = [(0 * 4 + 3 * 100 + 200) / 8, (100 + 3 * 200 + 4 * 40) / 8]  # edges repeated
    assert rendered(picture, (0, 0, 1, 4), (1, 2), "triangle")[2].tolist() == [[int(v + 0.5) for v in averaged]]
    assert rendered(picture, (0, 0, 1, 4), (1, 2), "area")[2].tolist() == [[50, 120]]
    # Three target pixels of 4/3 source pixels: all of one and a third of the next.
    thirds = [(0 * 3 + 100) / 4, (100 * 2 + 200 * 2) / 4, (200 + 40 * 3) / 4]
    assert rendered(picture, (0, 0, 1, 4), (1, 3), "area")[2].tolist() == [[int(v + 0.5) for v in thirds]]
    # Twice the size: a quarter and three quarters.
    assert rendered(grey([[0, 100]]), (0, 0, 1, 2), (1, 4))[0].tolist() == [[0, 25, 75, 100]]


def test_weights_known_values() -> None:
    start, weights = axis_weights(4, 0.5, 4.5, 4, filter="linear")
    assert start.tolist() == [0, 1, 2, 2]
    assert weights.tolist() == [[1024, 1024]] * 3 + [[0, 2048]]
    start, weights = axis_weights(1, 0, 1, 3, filter="triangle")
    assert start.tolist() == [0] * 3 and weights.tolist() == [[2048]] * 3


@pytest.mark.parametrize("seed", range(3))
def test_kernel_matches_reference(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for number in range(60):
        height, width = (int(v) for v in rng.integers(1, 200 if number % 2 else 12, 2))
        shape = tuple(int(v) for v in rng.integers(1, 90, 2))
        # Windows of a larger image and larger planes: only bytes of the window may change.
        crop = rng.integers(0, 256, (height + 2, width + 3, 3), dtype=np.uint8)[1:-1, 2:-1]
        edges = rng.uniform(-0.2, 1.2, 4) * (height, width, height, width)
        top, left, bottom, right = (edges.round() if number % 3 == 0 else edges).tolist()
        around = np.full((3, shape[0] + 2, shape[1] + 4), 7, np.uint8)
        filter = get_args(Filter)[rng.integers(3)]
        draw_region(crop, (top, left, bottom, right), around[:, 1:-1, 2:-2], filter=filter)
        expected = draw_region_reference(crop, (top, left, bottom, right), shape, filter=filter)
        assert np.array_equal(around[:, 1:-1, 2:-2], expected)
        around[:, 1:-1, 2:-2] = 7
        assert np.all(around == 7)


def test_plain_colour_is_unchanged() -> None:
    """The weights sum to exactly 1 for any filter size."""
    for value in (0, 114, 255):
        picture = np.full((300, 200, 3), value, np.uint8)
        for filter in get_args(Filter):
            assert np.all(rendered(picture, (3.3, 0, 299.1, 187.7), (31, 53), filter) == value)


def test_mismatched_arguments_raise() -> None:
    crop, target = np.zeros((4, 5, 3), np.uint8), np.zeros((3, 4, 5), np.uint8)
    with pytest.raises(ValueError, match="contiguous rows"):
        draw_region(crop[:, ::2], (0, 0, 4, 5), target, filter="linear")
    with pytest.raises(ValueError, match=r"target uint8 \(4, 5, 3\)"):
        draw_region(crop, (0, 0, 4, 5), crop, filter="linear")
    with pytest.raises(ValueError, match="must not be empty"):
        draw_region(crop, (0, 0, 4, 5), target[:, :0], filter="linear")
    with pytest.raises(ValueError, match="must be finite"):
        draw_region(crop, (0, 0, float("nan"), 5), target, filter="linear")


def test_area_filter_matches_opencv() -> None:
    """Downscale whole images by integer and other factors: equal within one level, since sums are rounded."""
    rng = np.random.default_rng(0)
    sizes = [((480, 640), (240, 320)), ((480, 640), (160, 213)), ((333, 500), (213, 320)), ((97, 64), (97, 31))]
    for (height, width), shape in sizes:
        picture = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        expected = cv2.resize(picture, shape[::-1], interpolation=cv2.INTER_AREA).transpose(2, 0, 1)
        got = rendered(picture, (0, 0, height, width), shape, "area")
        difference = np.abs(got.astype(int) - expected)
        assert difference.max() <= 1 and difference.mean() < 0.1
        triangle = rendered(picture, (0, 0, height, width), shape, "triangle")
        assert np.abs(triangle.astype(int) - expected).max() > 20

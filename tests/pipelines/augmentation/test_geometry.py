import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.augmentation import boxes, geometry
from pipelines.augmentation.geometry import RandomTransform, map_boxes, map_labels, view_matrix
from pipelines.augmentation.letterbox import letterbox, long_side_size, rectangular_batches, unletterbox_boxes
from pipelines.augmentation.mosaic import mosaic4, mosaic9
from tests.parity.augment import source_rectangle


def test_view_without_augmentation_is_identity() -> None:
    transform = RandomTransform(translate_x_px=50, translate_y_px=40)  # the centre of a 100 x 80 canvas is not moved
    assert np.array_equal(view_matrix(transform, canvas_wh=(100, 80)), np.eye(3))


def test_scale_and_shift_known_values() -> None:
    # Twice as large about the centre (50, 50) of the canvas, which lands at (30, 20): x -> 2 (x - 50) + 30.
    matrix = view_matrix(RandomTransform(scale=2, translate_x_px=30, translate_y_px=20), canvas_wh=(100, 100))
    assert np.allclose(matrix, [[2, 0, -70], [0, 2, -80], [0, 0, 1]])
    moved = map_boxes(matrix, np.array([[40.0, 45.0, 50.0, 60.0]]), output_wh=(60, 40))
    assert np.allclose(moved, [[10, 10, 30, 40]])


def test_quarter_turn_known_values() -> None:
    # 90 degrees counter-clockwise on the screen takes the right edge of the canvas to the top.
    matrix = view_matrix(RandomTransform(angle_deg=90, translate_x_px=50, translate_y_px=50), canvas_wh=(100, 100))
    assert np.allclose(geometry.map_points(matrix, np.array([[100.0, 50.0]])), [[50, 0]])


def test_shear_known_values() -> None:
    matrix = view_matrix(RandomTransform(shear_x_deg=45), canvas_wh=(0, 0))
    assert np.allclose(geometry.map_points(matrix, np.array([[1.0, 2.0]])), [[3, 2]])


def test_perspective_known_values() -> None:
    # (x, y) -> (x, y) / (0.1 x + 1)
    matrix = view_matrix(RandomTransform(perspective_x=0.1), canvas_wh=(0, 0))
    assert np.allclose(geometry.map_points(matrix, np.array([[10.0, 4.0]])), [[5, 2]])


def test_surviving_boxes_known_values() -> None:
    before = np.array([[0, 0, 10, 10]] * 5, np.float64)
    after = np.array(
        [
            [0, 0, 10, 10],  # unchanged
            [0, 0, 2, 10],  # exactly 2 px wide: must be more
            [0, 0, 3, 3],  # 9 % of the area
            [0, 0, 4, 3],  # 12 %
            [0, 0, 300, 2.5],  # aspect ratio 120
        ]
    )
    assert boxes.surviving_boxes(before, after).tolist() == [True, False, False, True, False]


def test_polygons_give_tighter_boxes_than_corners() -> None:
    # A diamond in its 10 x 10 box, turned by 45 degrees, is a square of side 10 / sqrt(2); its box would be 14 wide.
    matrix = view_matrix(RandomTransform(angle_deg=45, translate_x_px=50, translate_y_px=50), canvas_wh=(100, 100))
    diamond = np.array([[50.0, 45.0], [55.0, 50.0], [50.0, 55.0], [45.0, 50.0]])
    box = np.array([[45.0, 45.0, 55.0, 55.0]])
    tight, kept = map_labels(matrix, box, [diamond], scale=1.0, output_wh=(100, 100))
    loose, _ = map_labels(matrix, box, [], scale=1.0, output_wh=(100, 100))
    assert kept.tolist() == [True]
    assert np.allclose(tight[0, 2:] - tight[0, :2], 10 / math.sqrt(2), atol=0.01)
    assert np.allclose(loose[0, 2:] - loose[0, :2], 10 * math.sqrt(2))


def test_empty_rows() -> None:
    none = np.zeros((0, 4))
    after, keep = map_labels(np.eye(3), none, [], scale=1.0, output_wh=(10, 10))
    assert after.shape == (0, 4)
    assert keep.shape == (0,)


def test_letterbox_known_values() -> None:
    # 100 high, 200 wide into 320 x 320: 1.6 times as large, 160 px of border in two halves.
    fit = letterbox((100, 200), (320, 320))
    assert fit.output_hw == (320, 320)
    assert fit.ratio_wh == (1.6, 1.6)
    assert fit.pad_wh == (0.0, 80.0)
    assert fit.content_xyxy == (0, 80, 320, 240)


@given(st.integers(1, 4000), st.integers(1, 4000), st.integers(1, 40))
def test_letterbox_long_side_is_exact(width: int, height: int, strides: int) -> None:
    scaled = long_side_size((width, height), 32 * strides)
    assert max(scaled) == 32 * strides
    assert min(scaled) >= 1


@given(
    st.tuples(st.integers(20, 2000), st.integers(20, 2000)),
    st.tuples(st.integers(1, 30), st.integers(1, 30)),
    st.lists(st.tuples(*[st.floats(0, 1)] * 4), max_size=5),
)
def test_unletterbox_inverts_letterbox(
    image_hw: tuple[int, int], strides: tuple[int, int], rows: list[tuple[float, ...]]
) -> None:
    target = (strides[0] * 32, strides[1] * 32)
    fit = letterbox(image_hw, target)
    original = np.array(rows, np.float64).reshape(-1, 4) * np.array((image_hw[1], image_hw[0]) * 2)
    ratio = fit.ratio_wh[0]
    shown = original * ratio + np.array(fit.pad_wh * 2)
    back = unletterbox_boxes(shown, from_hw=fit.output_hw, to_hw=image_hw, ratio_pad=(ratio, fit.pad_wh))
    assert np.allclose(back, original, atol=1e-6)


@given(
    st.lists(st.tuples(st.integers(10, 3000), st.integers(10, 3000)), min_size=1, max_size=40),
    st.integers(1, 9),
    st.sampled_from([0.0, 0.5]),
)
def test_rectangular_shapes_fit_their_images(sizes: list[tuple[int, int]], batch: int, pad: float) -> None:
    order, shapes = rectangular_batches(np.array(sizes), batch_size=batch, image_px=320, stride=32, pad_strides=pad)
    assert sorted(order.tolist()) == list(range(len(sizes)))
    for number, start in enumerate(range(0, len(order), batch)):
        height, width = shapes[number]
        assert height % 32 == width % 32 == 0
        for image in order[start : start + batch]:
            w, h = sizes[image]
            assert w * 320 / max(w, h) <= width + 1e-6
            assert h * 320 / max(w, h) <= height + 1e-6


def test_mosaic_known_values() -> None:
    # Canvas 200, centre (80, 100), all four images 100 x 50: the left ones lose 20 px on their left side.
    tiles = mosaic4([(100, 50)] * 4, centre_xy=(80, 100), image_px=100)
    assert [t.rectangle for t in tiles] == [
        (0, 50, 80, 100),
        (80, 50, 180, 100),
        (0, 100, 80, 150),
        (80, 100, 180, 150),
    ]
    whole, cut = (0, 0, 100, 50), (20, 0, 100, 50)
    assert [source_rectangle(t) for t in tiles] == [cut, whole, cut, whole]


def test_nine_equal_images_tile_the_plane() -> None:
    seen = np.zeros((200, 200), int)
    for tile in mosaic9([(100, 100)] * 9, cut_xy=(30, 70), image_px=100):
        x1, y1, x2, y2 = tile.rectangle
        seen[y1:y2, x1:x2] += 1
    assert np.all(seen == 1)


sizes = st.tuples(st.integers(1, 64), st.integers(1, 64))


@given(st.lists(sizes, min_size=9, max_size=9), st.integers(32, 96), st.integers(32, 96), st.booleans())
def test_tiles_stay_on_canvas_and_in_their_images(
    tile_sizes: list[tuple[int, int]], x: int, y: int, nine: bool
) -> None:
    if nine:
        tiles = mosaic9(tile_sizes, cut_xy=(x - 32, y - 32), image_px=64)
    else:
        tiles = mosaic4(tile_sizes[:4], centre_xy=(x, y), image_px=64)
    covered = np.zeros((128, 128), int)
    for tile in tiles:
        x1, y1, x2, y2 = tile.rectangle
        assert 0 <= x1 <= x2 <= 128
        assert 0 <= y1 <= y2 <= 128
        if x1 < x2 and y1 < y2:
            a1, b1, a2, b2 = source_rectangle(tile)
            assert 0 <= a1 < a2 <= tile.size_wh[0]
            assert 0 <= b1 < b2 <= tile.size_wh[1]
            covered[y1:y2, x1:x2] += 1
    if not nine:
        assert covered.max() <= 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(rows=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)), max_size=6))
def test_box_conversions_are_inverse(dtype: type, rows: list[tuple[float, ...]]) -> None:
    centre: np.ndarray = np.array(rows, dtype).reshape(-1, 4)
    corners = boxes.denormalise(centre, width=640, height=480, offset_xy=(0, 0))
    assert corners.dtype == dtype
    assert np.allclose(boxes.normalise(corners, width=640, height=480), centre, atol=1e-6)
    clipped = boxes.clip(corners, width=640, height=480)
    assert np.all(clipped >= 0)
    assert np.all(clipped <= (640, 480, 640, 480))

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.runtime import flow
from models.targets import HeadGeometry, TargetAssigner

Match = tuple[int, int, int, int, int, int, int]  # level, image, neighbour, anchor, slot, row, column
STEPS = ((0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (-0.5, 0.0), (0.0, -0.5))
ONE_ANCHOR = HeadGeometry(np.array([[[1.0, 1.0]]], np.float32), (8.0,), 1)
TWO_LEVELS = HeadGeometry(np.array([[[1, 1], [2, 4]], [[1, 2], [3, 3]]], np.float32), (8.0, 16.0), 3)


def matches(head: HeadGeometry, labels: npt.NDArray[np.float32], grids: list[tuple[int, int]]) -> list[Match]:
    found = TargetAssigner(head, 4.0)(flow.tensor(labels), grids)
    cells = found.cell.numpy().reshape(len(labels), head.levels, 5, head.anchors, labels.shape[1])
    assert np.array_equal(found.matched.numpy(), found.cell.numpy() >= 0)
    rows = []
    for image, level, neighbour, anchor, slot in np.argwhere(cells >= 0):
        height, width = grids[level]
        cell = int(cells[image, level, neighbour, anchor, slot])
        assert cell // (height * width) == anchor
        rows.append((level, image, neighbour, anchor, slot, cell // width % height, cell % width))
    return sorted(rows)


def one_label(x: float, y: float, side: float = 1.0, cells: int = 4) -> npt.NDArray[np.float32]:
    """Return a square label in a map of `cells` columns and rows; centre and side in cells."""
    return np.array([[[0, x / cells, y / cells, side / cells, side / cells]]], np.float32)


def neighbours(x: float, y: float) -> list[tuple[int, int, int]]:
    return [(match[2], match[5], match[6]) for match in matches(ONE_ANCHOR, one_label(x, y), [(4, 4)])]


def test_upper_left_quarter_also_matches_left_and_upper_cell() -> None:
    # neighbour number, row, column
    assert neighbours(2.25, 1.25) == [(0, 1, 2), (1, 1, 1), (2, 0, 2)]


def test_lower_right_quarter_also_matches_right_and_lower_cell() -> None:
    assert neighbours(1.75, 2.75) == [(0, 2, 1), (3, 2, 2), (4, 3, 1)]


def test_cell_centre_matches_no_neighbour() -> None:
    assert neighbours(1.5, 1.5) == [(0, 1, 1)]


def test_grid_corner_matches_all_four_neighbours() -> None:
    # Centre (2, 2): cells to the left and above by the fraction 0, and "right" and "down" are its own cell again.
    assert neighbours(2.0, 2.0) == [(0, 2, 2), (1, 2, 1), (2, 1, 2), (3, 2, 2), (4, 2, 2)]


def test_no_match_outside_image() -> None:
    assert neighbours(0.25, 0.25) == [(0, 0, 0)]
    assert neighbours(3.75, 3.75) == [(0, 3, 3)]


def test_centre_on_far_edge_falls_in_last_cell() -> None:
    found = TargetAssigner(ONE_ANCHOR, 4.0)(flow.tensor(one_label(4.0, 4.0)), [(4, 4)])
    assert found.cell.numpy()[0, 0, 0] == 15
    np.testing.assert_array_equal(found.boxes_cells.numpy()[0, 0, 0], [1, 1, 1, 1])


def test_box_is_relative_to_its_cell() -> None:
    found = TargetAssigner(ONE_ANCHOR, 4.0)(flow.tensor(one_label(2.25, 1.25, side=2.0)), [(4, 4)])
    np.testing.assert_array_equal(
        found.boxes_cells.numpy()[0, 0, :3], [[0.25, 0.25, 2, 2], [1.25, 0.25, 2, 2], [0.25, 1.25, 2, 2]]
    )


@pytest.mark.parametrize(("side", "fits"), [(4.0, False), (3.99, True), (0.25, False), (0.26, True), (0.0, False)])
def test_side_ratio_must_be_below_anchor_t(side: float, fits: bool) -> None:
    assert bool(matches(ONE_ANCHOR, one_label(1.5, 1.5, side), [(4, 4)])) is fits


def test_empty_slots_do_not_match() -> None:
    labels = np.concatenate([one_label(1.5, 1.5), one_label(1.5, 1.5)], axis=1)
    labels[0, 1, 0] = -1
    assert [match[4] for match in matches(ONE_ANCHOR, labels, [(4, 4)])] == [0]


def plain_matches(head: HeadGeometry, labels: npt.NDArray[np.float32], grids: list[tuple[int, int]]) -> list[Match]:
    """Match in scalar code, one label at a time; float32 like the real one."""
    one = np.float32(1)
    rows = []
    for image, slot in np.argwhere(labels[:, :, 0] >= 0):
        for level, (height, width) in enumerate(grids):
            size = np.array([width, height], np.float32)
            centre, sides = labels[image, slot, 1:3] * size, labels[image, slot, 3:5] * size
            for anchor, anchor_sides in enumerate(head.anchors_cells[level]):
                ratio = sides / anchor_sides
                if np.maximum(ratio, one / ratio).max() >= 4:
                    continue
                far = size - centre
                reach = [True]
                for distance in (*centre, *far):
                    reach.append(distance - math.floor(distance) < 0.5 and distance > 1)
                for neighbour, step in enumerate(STEPS):
                    if reach[neighbour]:
                        column, row = np.floor(centre - np.array(step, np.float32)).clip(0, size - 1).astype(int)
                        rows.append((level, int(image), neighbour, anchor, int(slot), int(row), int(column)))
    return sorted(rows)


# Sixteenths of the image meet grid lines and half cells often.
positions = st.one_of(st.integers(0, 16).map(lambda n: n / 16), st.floats(0, 1, width=32))
lengths = st.one_of(st.integers(1, 16).map(lambda n: n / 16), st.floats(0.0009765625, 1, width=32))
label_rows = st.tuples(st.integers(-1, 2), positions, positions, lengths, lengths)


@settings(max_examples=60, deadline=None)
@given(st.lists(label_rows, min_size=8, max_size=8))
def test_matches_scalar_implementation(rows: list[tuple[float, ...]]) -> None:
    labels = np.array(rows, np.float32).reshape(2, 4, 5)
    grids = [(6, 8), (3, 4)]
    assert matches(TWO_LEVELS, labels, grids) == plain_matches(TWO_LEVELS, labels, grids)


def test_too_large_map_raises() -> None:
    with pytest.raises(ValueError, match="smaller image"):
        TargetAssigner(ONE_ANCHOR, 4.0)(flow.tensor(one_label(1, 1)), [(5000, 5000)])


@pytest.mark.parametrize(
    ("anchors", "stride", "classes", "message"),
    [
        (np.ones((2, 3, 2), np.float32), (8.0,), 1, "for 1 strides"),
        (np.ones((1, 3), np.float32), (8.0,), 1, "levels, anchors, 2"),
        (np.zeros((1, 3, 2), np.float32), (8.0,), 1, "above 0"),
        (np.ones((1, 3, 2), np.float32), (8.0,), 0, "0 classes"),
    ],
)
def test_impossible_heads_raise(
    anchors: npt.NDArray[np.float32], stride: tuple[float, ...], classes: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        HeadGeometry(anchors, stride, classes)

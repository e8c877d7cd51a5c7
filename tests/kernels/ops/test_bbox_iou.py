"""Box overlaps: known values, fused against composed ops, gradients by finite differences."""

from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from kernels.ops.bbox_iou.function import IouKind, bbox_iou, bbox_iou_reference
from kernels.runtime import Tensor, flow

_KINDS = get_args(IouKind)
_Array = npt.NDArray[np.floating[Any]]
_Overlap = Callable[..., Tensor]
_IMPLEMENTATIONS = [pytest.param(bbox_iou_reference, id="composed"), pytest.param(bbox_iou, id="fused")]


def _values_and_gradients(
    overlap: _Overlap, box1: _Array, box2: _Array, kind: IouKind, xywh: bool
) -> tuple[_Array, _Array, _Array]:
    """Return overlaps, and the gradients of both boxes for a weighted sum."""
    tensors = [flow.tensor(boxes, requires_grad=True) for boxes in (box1, box2)]
    values = overlap(*tensors, kind=kind, xywh=xywh)
    weights = flow.tensor(np.linspace(-1.0, 2.0, values.numel()).reshape(values.shape).astype(box1.dtype))
    (values * weights).sum().backward()
    return values.numpy(), tensors[0].grad.numpy(), tensors[1].grad.numpy()


def _random_boxes(pairs: int, xywh: bool, dtype: str, seed: int = 0) -> tuple[_Array, _Array]:
    generator = np.random.default_rng(seed)
    boxes = generator.uniform(0.1, 1.0, (2, pairs, 4))
    if not xywh:
        boxes[..., 2:] += boxes[..., :2]
    return boxes[0].astype(dtype), boxes[1].astype(dtype)


@pytest.mark.parametrize("overlap", _IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # 2x2 squares one apart: overlap 1x2, union 6, hull 3x2 of the same area, centre distance^2 1, diagonal^2 13
        ("iou", 2 / 6),
        ("giou", 2 / 6),
        ("diou", 2 / 6 - 1 / 13),
        ("ciou", 2 / 6 - 1 / 13),
    ],
)
def test_shifted_square(overlap: _Overlap, kind: IouKind, expected: float) -> None:
    first, second = flow.tensor([[1.0, 1.0, 2.0, 2.0]]), flow.tensor([[2.0, 1.0, 2.0, 2.0]])
    assert_allclose(overlap(first, second, kind=kind).numpy(), [expected], atol=1e-6)  # eps 1e-7, float32


@pytest.mark.parametrize("overlap", _IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # Unit squares at 0 and 3: no overlap, union 2, hull 4x1, centre distance^2 9, diagonal^2 17
        ("iou", 0.0),
        ("giou", -2 / 4),
        ("diou", -9 / 17),
        ("ciou", -9 / 17),
    ],
)
def test_distant_squares_in_corner_form(overlap: _Overlap, kind: IouKind, expected: float) -> None:
    first, second = flow.tensor([[0.0, 0.0, 1.0, 1.0]]), flow.tensor([[3.0, 0.0, 4.0, 1.0]])
    assert_allclose(overlap(first, second, kind=kind, xywh=False).numpy(), [expected], atol=1e-6)


@pytest.mark.parametrize("overlap", _IMPLEMENTATIONS)
def test_aspect_penalty_known_values(overlap: _Overlap) -> None:
    # Concentric 2x1 and 1x2: overlap 1, union 3; v = 4/pi^2 (atan 1/2 - atan 2)^2; alpha = v / (1 - 1/3 + v)
    aspect = 4 / np.pi**2 * (np.arctan(0.5) - np.arctan(2)) ** 2
    expected = 1 / 3 - aspect * aspect / (1 - 1 / 3 + aspect)
    first, second = flow.tensor([[0.0, 0.0, 2.0, 1.0]]), flow.tensor([[0.0, 0.0, 1.0, 2.0]])
    assert_allclose(overlap(first, second, kind="ciou").numpy(), [expected], atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("xywh", [True, False])
@pytest.mark.parametrize("kind", _KINDS)
def test_fused_matches_composed(kind: IouKind, xywh: bool, dtype: str) -> None:
    box1, box2 = _random_boxes(5000, xywh, dtype)  # more than one thread's share, and a short last block
    fused = _values_and_gradients(bbox_iou, box1, box2, kind, xywh)
    composed = _values_and_gradients(bbox_iou_reference, box1, box2, kind, xywh)
    # A few roundings of the type; the kernels receive eps as float32, an error of 1e-15 in float64.
    tolerance = 2e-6 if dtype == "float32" else 1e-13
    for ours, theirs in zip(fused, composed, strict=True):
        assert_allclose(ours, theirs, atol=tolerance * np.abs(theirs).max())


@pytest.mark.parametrize("which", [0, 1])
def test_no_gradient_for_box_that_needs_none(which: int) -> None:
    box1, box2 = _random_boxes(100, True, "float32")
    expected = _values_and_gradients(bbox_iou, box1, box2, "ciou", True)[1 + which]
    tensors = [flow.tensor(boxes, requires_grad=index == which) for index, boxes in enumerate((box1, box2))]
    weights = flow.tensor(np.linspace(-1.0, 2.0, 100).astype(np.float32))
    (bbox_iou(*tensors, kind="ciou") * weights).sum().backward()
    assert_array_equal(tensors[which].grad.numpy(), expected)
    assert tensors[1 - which].grad is None


def _finite_differences(value: Callable[[_Array], _Array], boxes: _Array, step: float = 1e-6) -> _Array:
    """Return the gradient of the sum that `_values_and_gradients` weights, by central differences."""
    weights = np.linspace(-1.0, 2.0, len(boxes))
    shifts = step * np.eye(4)
    return np.stack([weights * (value(boxes + shift) - value(boxes - shift)) / (2 * step) for shift in shifts], axis=1)


@pytest.mark.parametrize("overlap", _IMPLEMENTATIONS)
@pytest.mark.parametrize("xywh", [True, False])
@pytest.mark.parametrize("kind", ["iou", "giou", "diou"])
def test_gradient_matches_finite_differences(overlap: _Overlap, kind: IouKind, xywh: bool) -> None:
    box1, box2 = _random_boxes(40, xywh, "float64", seed=3)
    _, gradient, _ = _values_and_gradients(overlap, box1, box2, kind, xywh)

    def value(boxes: _Array) -> _Array:
        return overlap(flow.tensor(boxes), flow.tensor(box2), kind=kind, xywh=xywh).numpy()

    assert_allclose(gradient, _finite_differences(value, box1), atol=1e-6)


@pytest.mark.parametrize("overlap", _IMPLEMENTATIONS)
def test_ciou_gradient_matches_finite_differences_with_constant_alpha(overlap: _Overlap) -> None:
    box1, box2 = _random_boxes(40, True, "float64", seed=4)
    _, gradient, _ = _values_and_gradients(overlap, box1, box2, "ciou", True)

    def aspect(boxes: _Array) -> _Array:
        turn = np.arctan(box2[:, 2] / box2[:, 3]) - np.arctan(boxes[:, 2] / boxes[:, 3])
        return np.asarray(4 / np.pi**2 * turn**2)

    iou = overlap(flow.tensor(box1), flow.tensor(box2), kind="iou").numpy()
    alpha = aspect(box1) / (1 - iou + aspect(box1) + 1e-7)

    def value(boxes: _Array) -> _Array:
        distance = overlap(flow.tensor(boxes), flow.tensor(box2), kind="diou").numpy()
        return np.asarray(distance - alpha * aspect(boxes))

    assert_allclose(gradient, _finite_differences(value, box1), atol=1e-6)


@pytest.mark.parametrize("overlap", _IMPLEMENTATIONS)
def test_ciou_gradient_of_boxes_far_beyond_any_aspect_ratio(overlap: _Overlap) -> None:
    """The float32 gradient equals that of double precision; YOLOv5's is 0 times infinity."""
    sides = [(1, 1e-20), (1e-20, 1), (3, 1e-30), (1e-30, 3), (1e-21, 3e-21), (2, 1e-38), (2, 0.5)]
    box1 = np.array([(1.3, 0.8, *pair) for pair in sides])
    box2 = np.tile([1.1, 1.0, 2.0, 3.0], (len(sides), 1))
    single = _values_and_gradients(overlap, box1.astype(np.float32), box2.astype(np.float32), "ciou", True)
    double = _values_and_gradients(bbox_iou_reference, box1, box2, "ciou", True)
    for ours, wanted in zip(single, double, strict=True):
        assert_allclose(ours, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("overlap", _IMPLEMENTATIONS)
@pytest.mark.parametrize("kind", _KINDS)
def test_gradient_at_ties_and_touching_edges(overlap: _Overlap, kind: IouKind) -> None:
    # Equal boxes tie in every minimum and maximum; the second pair touches: its overlap has exactly zero width.
    box1 = np.array([[0.0, 0.0, 2.0, 1.0], [0.0, 0.0, 1.0, 1.0]])
    box2 = np.array([[0.0, 0.0, 2.0, 1.0], [1.0, 0.0, 2.0, 1.0]])
    ours = _values_and_gradients(overlap, box1, box2, kind, False)
    theirs = _values_and_gradients(bbox_iou_reference, box1, box2, kind, False)
    for mine, reference in zip(ours, theirs, strict=True):
        assert_allclose(mine, reference, atol=1e-13)
    if kind == "iou":
        # Overlap 1 of height 1, width grows with the right side: d iou = d overlap / union = 1 / 2, all of it at x2.
        # (The last weight of the sum is 2; the touching pair has union 2.)
        assert_allclose(ours[1][1], [0.0, 0.0, 1.0, 0.0], atol=1e-6)


@pytest.mark.parametrize("overlap", _IMPLEMENTATIONS)
@pytest.mark.parametrize("xywh", [True, False])
@pytest.mark.parametrize("kind", _KINDS)
def test_degenerate_and_huge_boxes_match_composed(overlap: _Overlap, kind: IouKind, xywh: bool) -> None:
    box1 = np.array([[1, 1, 1, 1], [1, 1, 0, 3], [2, 1, 3, 0], [5, 5, 1e5, 1e5], [1, 1, 1e-3, 1e-3]], np.float32)
    box2 = np.array([[1, 1, 1, 1], [1, 1, 2, 2], [2, 2, 2, 2], [7, 5, 1e5, 2e5], [1, 1, 2e-3, 1e-3]], np.float32)
    if not xywh:
        box1[:, 2:] += box1[:, :2]
        box2[:, 2:] += box2[:, :2]
    ours = overlap(flow.tensor(box1), flow.tensor(box2), kind=kind, xywh=xywh).numpy()
    theirs = bbox_iou_reference(flow.tensor(box1), flow.tensor(box2), kind=kind, xywh=xywh).numpy()
    assert np.isfinite(ours).all()
    assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)  # tiny boxes in centre form cancel


@pytest.mark.parametrize("overlap", _IMPLEMENTATIONS)
def test_ciou_of_two_empty_centre_form_boxes_is_nan(overlap: _Overlap) -> None:
    empty = flow.tensor([[1.0, 1.0, 0.0, 0.0]])
    assert np.isnan(overlap(empty, empty, kind="ciou").numpy()).all()


@pytest.mark.parametrize("overlap", _IMPLEMENTATIONS)
def test_equal_boxes_never_divide_zero_by_zero(overlap: _Overlap) -> None:
    # Rounding makes the IoU of some equal boxes exceed 1 by one bit, e.g. of this one.
    boxes = np.array([[2.7846608, 1.6012019, 2.8772228, 2.1655934]], np.float32)
    values, gradient, _ = _values_and_gradients(overlap, boxes, boxes, "ciou", True)
    assert_allclose(values, [1.0], atol=1e-6)
    assert_allclose(gradient, np.zeros((1, 4)), atol=1e-6)


@pytest.mark.parametrize("overlap", _IMPLEMENTATIONS)
@pytest.mark.parametrize("shape", [(0, 4), (1, 4), (4,), (2, 3, 4)])
def test_any_leading_shape(overlap: _Overlap, shape: tuple[int, ...]) -> None:
    boxes = flow.ones(*shape, requires_grad=True)
    values = overlap(boxes, flow.ones(*shape), kind="ciou")
    assert tuple(values.shape) == shape[:-1]
    values.sum().backward()
    assert tuple(boxes.grad.shape) == shape
    assert_allclose(values.numpy(), np.ones(shape[:-1]), atol=1e-6)


@pytest.mark.parametrize("kind", _KINDS)
def test_non_contiguous_inputs(kind: IouKind) -> None:
    box1, box2 = _random_boxes(7, True, "float32")
    wide1, wide2 = (flow.tensor(np.ascontiguousarray(boxes.T)).T for boxes in (box1, box2))
    assert not wide1.is_contiguous()
    straight = bbox_iou(flow.tensor(box1), flow.tensor(box2), kind=kind)
    assert_array_equal(bbox_iou(wide1, wide2, kind=kind).numpy(), straight.numpy())


class _Pair(flow.nn.Module):
    def __init__(self, box1: _Array) -> None:
        super().__init__()
        self.box1 = flow.nn.Parameter(flow.tensor(box1))


class _DescentGraph(flow.nn.Graph):
    """A step of gradient descent with rate 1, which subtracts the gradient from the parameter."""

    def __init__(self, pair: _Pair) -> None:
        super().__init__()
        self.pair = pair
        self.add_optimizer(flow.optim.SGD([pair.box1], lr=1.0))

    def build(self, box2: Tensor) -> Tensor:
        values = bbox_iou(self.pair.box1, box2, kind="ciou")
        values.sum().backward()
        return values


def test_graph_matches_eager_bitwise() -> None:
    box1, box2 = _random_boxes(300, True, "float32")
    captured, eager = _Pair(box1), _Pair(box1)
    graph_values = _DescentGraph(captured)(flow.tensor(box2))
    values = bbox_iou(eager.box1, flow.tensor(box2), kind="ciou")
    optimizer = flow.optim.SGD([eager.box1], lr=1.0)
    values.sum().backward()
    optimizer.step()
    assert_array_equal(graph_values.numpy(), values.numpy())
    assert_array_equal(captured.box1.numpy(), eager.box1.numpy())


_corner = st.floats(-100, 100, width=32)
_side = st.floats(0.015625, 200, width=32)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(_corner, _corner, _side, _side), min_size=2, max_size=40))
def test_overlaps_are_ordered_symmetric_and_bounded(rows: list[tuple[float, float, float, float]]) -> None:
    box1 = flow.tensor(np.array(rows, np.float32))
    box2 = flow.tensor(np.array(rows[::-1], np.float32))
    iou, giou, diou, ciou = (bbox_iou(box1, box2, kind=kind).numpy() for kind in ("iou", "giou", "diou", "ciou"))
    slack = 1e-3  # centre form cancels for small boxes far from the origin
    assert (iou >= 0).all()
    assert (iou <= 1 + slack).all()
    assert (giou <= iou + slack).all()
    assert (giou >= -1 - slack).all()
    assert (diou <= iou + slack).all()
    assert (ciou <= diou + slack).all()
    assert_allclose(bbox_iou(box2, box1, kind="giou").numpy(), giou, atol=1e-5)


def test_wrong_arguments_raise() -> None:
    with pytest.raises(ValueError, match="eiou"):
        bbox_iou(flow.ones(2, 4), flow.ones(2, 4), kind="eiou")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"\(2, 4\).*\(3, 4\)"):
        bbox_iou(flow.ones(2, 4), flow.ones(3, 4))
    with pytest.raises(ValueError, match="same shape and dtype"):
        bbox_iou(flow.ones(2, 4), flow.ones(2, 4).to(flow.float64))

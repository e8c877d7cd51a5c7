"""Decoding against the head's, NMS against the NumPy implementation, both bitwise."""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from graph_train.detection.nms import CLASS_SHIFT_PX, NmsSettings, non_max_suppression
from kernels.ops.detections.function import decode_maps, suppress_detections
from kernels.runtime import Tensor, flow
from models.head import Detect
from tests.kernels.ops.launches import launches_of, shuffle_threads

_Array = npt.NDArray[np.float32]


def _suppressed(predictions: _Array, settings: NmsSettings) -> tuple[_Array, npt.NDArray[np.int32]]:
    detections, counts = suppress_detections(
        flow.tensor(predictions),
        confidence=settings.conf_thres,
        iou=_float32_not_above(settings.iou_thres),
        class_shift=float(CLASS_SHIFT_PX),
        multi_label=settings.multi_label,
        agnostic=settings.agnostic,
        max_det=settings.max_det,
        max_candidates=settings.max_candidates,
        classes=settings.classes,
    )
    return detections.numpy(), counts.numpy()


def _float32_not_above(value: float) -> float:
    rounded = np.float32(value)
    return float(rounded if float(rounded) <= value else np.nextafter(rounded, np.float32(-np.inf)))


def _check(predictions: _Array, settings: NmsSettings) -> list[int]:
    """Assert the detections of the NumPy implementation; return how many each image has."""
    expected = non_max_suppression(predictions, settings)
    detections, counts = _suppressed(predictions, settings)
    assert detections.shape == (len(predictions), settings.max_det, 6)
    assert counts.tolist() == [len(rows) for rows in expected]
    for ours, theirs in zip(detections, expected, strict=True):
        np.testing.assert_array_equal(ours[: len(theirs)], theirs)
        assert not ours[len(theirs) :].any()
    return [int(count) for count in counts]


def _predictions(images: int, boxes: int, classes: int, seed: int = 0, *, spread: float = 100.0) -> _Array:
    generator = np.random.default_rng(seed)
    rows = np.empty((images, boxes, 5 + classes), np.float32)
    rows[..., :2] = generator.uniform(0, spread, (images, boxes, 2))
    rows[..., 2:4] = generator.uniform(5, 60, (images, boxes, 2))
    rows[..., 4:] = generator.uniform(0, 1, (images, boxes, 1 + classes))
    return rows


_SETTINGS = {
    "usual": NmsSettings(),
    "validation": NmsSettings(conf_thres=0.001, iou_thres=0.6, multi_label=True),
    "agnostic": NmsSettings(agnostic=True),
    "some classes": NmsSettings(classes=[1, 2, 99]),
    "no classes": NmsSettings(classes=[]),
    "few detections": NmsSettings(conf_thres=0.1, max_det=7),
    "few candidates": NmsSettings(conf_thres=0.05, max_candidates=41, multi_label=True),
    "everything overlaps": NmsSettings(conf_thres=0.0, iou_thres=0.0),
    "nothing overlaps": NmsSettings(conf_thres=0.0, iou_thres=1.0),
    "no confidence suffices": NmsSettings(conf_thres=1.0),
}


@pytest.mark.parametrize("classes", [1, 3, 80])
@pytest.mark.parametrize("name", _SETTINGS)
def test_matches_numpy(name: str, classes: int) -> None:
    found = _check(_predictions(2, 300 if classes < 80 else 60, classes, seed=classes), _SETTINGS[name])
    if name in ("usual", "validation"):
        assert min(found) > 1


def test_more_candidates_than_threads_per_block() -> None:
    predictions = _predictions(1, 1500, 2, spread=3000.0)
    assert _check(predictions, NmsSettings(conf_thres=0.01, multi_label=True, max_det=2000))[0] > 1000
    _check(predictions, NmsSettings(conf_thres=0.01, multi_label=True, max_candidates=1000))


def test_equal_confidences_keep_order() -> None:
    # Few distinct confidences, so that there are also ties at the limit on candidates.
    predictions = _predictions(2, 400, 3, seed=1)
    predictions[..., 4:] = np.ceil(predictions[..., 4:] * 2) / 2
    for settings in (NmsSettings(multi_label=True), NmsSettings(max_candidates=50), NmsSettings(max_det=3)):
        _check(predictions, settings)
        _check(predictions, replace(settings, agnostic=True))


def test_equal_boxes_and_boxes_without_area() -> None:
    predictions = _predictions(1, 64, 2, seed=2)
    predictions[0, :32, :4] = (50, 50, 20, 20)
    predictions[0, 32:48, 2:4] = 0
    predictions[0, 48:56, 2] = -5
    _check(predictions, NmsSettings(conf_thres=0.01))
    _check(predictions, NmsSettings(conf_thres=0.01, agnostic=True))


def test_overlap_at_threshold() -> None:
    # Two pairs with the IoU 1/3, which float32 rounds up, and exactly 1/2.
    rows = np.array([[10, 10, 8, 8, 1, 1], [14, 10, 8, 8, 0.9, 1], [10, 40, 8, 8, 1, 1], [10, 42, 8, 4, 0.5, 1]])
    predictions = rows.astype(np.float32)[None]
    assert _check(predictions, NmsSettings(iou_thres=0.5)) == [4]
    assert _check(predictions, NmsSettings(iou_thres=float(np.nextafter(0.5, 0)))) == [3]
    assert _check(predictions, NmsSettings(iou_thres=float(np.float32(1 / 3)))) == [3]
    assert _check(predictions, NmsSettings(iou_thres=1 / 3)) == [2]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nonfinite_predictions(bad: float) -> None:
    predictions = _predictions(1, 40, 3, seed=3)
    predictions[0, 3, 0] = bad
    predictions[0, 7, 2] = bad
    predictions[0, 11, 4] = bad
    predictions[0, 13, 6] = bad
    with np.errstate(invalid="ignore"):
        _check(predictions, NmsSettings())
        _check(predictions, NmsSettings(multi_label=True))


def test_no_boxes() -> None:
    _check(np.zeros((2, 1, 7), np.float32), NmsSettings())
    _check(np.zeros((2, 0, 7), np.float32), NmsSettings())


def test_results_do_not_depend_on_thread_order() -> None:
    predictions = _predictions(2, 600, 2, seed=4)
    for seed in (1, 2):
        shuffle_threads(seed)
        _check(predictions, NmsSettings(conf_thres=0.01, multi_label=True, max_candidates=300))
    shuffle_threads(0)


def _detect(anchors_cells: Tensor, *maps: Tensor) -> Any:
    return suppress_detections(
        decode_maps(maps, anchors_cells, (8, 16)),
        confidence=0.25,
        iou=0.5,
        class_shift=7680,
        multi_label=False,
        agnostic=False,
        max_det=20,
        max_candidates=1000,
    )


class _DetectGraph(flow.nn.Graph):
    def build(self, anchors_cells: Tensor, *maps: Tensor) -> Any:
        return _detect(anchors_cells, *maps)


def _maps(classes: int, sizes: list[tuple[int, int]]) -> list[_Array]:
    generator = np.random.default_rng(classes)
    return [
        (3 * generator.standard_normal((2, rows, columns, 3 * (5 + classes)))).astype(np.float32)
        for rows, columns in sizes
    ]


def _head(classes: int, stride: tuple[int, ...]) -> tuple[Detect, _Array]:
    """Return a head, and its anchors in cells."""
    anchors_px = np.random.default_rng(9).uniform(5, 200, (len(stride), 3, 2)).astype(np.float32)
    head = Detect([8] * len(stride), classes, anchors_px, stride)
    return head, head.anchors.numpy()


@pytest.mark.parametrize(
    ("classes", "sizes", "stride"),
    [(1, [(1, 1)], (32,)), (3, [(9, 7), (5, 4), (3, 2)], (8, 16, 32)), (80, [(4, 6), (2, 3)], (8, 16))],
)
def test_decode_matches_head(
    classes: int, sizes: list[tuple[int, int]], stride: tuple[int, ...], request: pytest.FixtureRequest
) -> None:
    head, anchors = _head(classes, stride)
    maps = _maps(classes, sizes)
    maps[0][0, 0, 0, :8] = (90, -90, 200, -200, 0, -0.0, 30, -30)
    apart = [level.reshape(*level.shape[:3], 3, -1).transpose(0, 3, 1, 2, 4) for level in maps]
    expected = head.decode([flow.tensor(np.ascontiguousarray(level)) for level in apart]).numpy()
    tensors, anchors_cells = [flow.tensor(level) for level in maps], flow.tensor(anchors)
    ours = decode_maps(tensors, anchors_cells, stride).numpy()
    assert ours.shape == expected.shape
    np.testing.assert_allclose(ours, expected, rtol=2e-6, atol=1e-5)
    emulated = request.config.getoption("--kernels") == "emulated-cuda"
    launches = launches_of(lambda: decode_maps(tensors, anchors_cells, stride))
    assert launches == ({"decode": 1} if emulated else {})


def test_graph_matches_eager_bitwise(request: pytest.FixtureRequest) -> None:
    _, anchors = _head(3, (8, 16))
    inputs = [flow.tensor(anchors), *(flow.tensor(level) for level in _maps(3, [(6, 5), (3, 4)]))]
    captured = _DetectGraph()(*inputs)
    arrays = [tensor.numpy() for tensor in captured]
    for ours, theirs in zip(arrays, _detect(*inputs), strict=True):
        np.testing.assert_array_equal(ours, theirs.numpy())
    assert arrays[1].min() > 0
    predictions = flow.tensor(_predictions(3, 50, 2))
    emulated = request.config.getoption("--kernels") == "emulated-cuda"
    launches = launches_of(
        lambda: suppress_detections(
            predictions,
            confidence=0.25,
            iou=0.5,
            class_shift=7680,
            multi_label=True,
            agnostic=False,
            max_det=20,
            max_candidates=1000,
        )
    )
    assert launches == ({"suppress": 1} if emulated else {})

"""Auto-anchor: known values, edge cases, and evolution that never lowers fitness."""

import logging

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from graph_train.training import autoanchor
from graph_train.training.autoanchor import (
    AnchorDecision,
    AnchorRandom,
    anchor_fit,
    anchor_fitness,
    anchor_mutation_factors,
    best_possible_recall,
    box_sizes_px,
    check_anchors,
    evolve_anchors,
    fit_anchors,
    in_stride_order,
)

_COCO_P3_P5 = np.array(
    [10, 13, 16, 30, 33, 23, 30, 61, 62, 45, 59, 119, 116, 90, 156, 198, 373, 326], np.float32
).reshape(3, 3, 2)


def _boxes(sizes: npt.ArrayLike) -> npt.NDArray[np.float32]:
    sizes = np.asarray(sizes, np.float32).reshape(-1, 2)
    return np.concatenate([np.zeros((len(sizes), 1)), np.full((len(sizes), 2), 0.5), sizes], axis=1).astype(np.float32)


def test_fit_known_values() -> None:
    # ratios: 10/20 and 10/10 -> 0.5; 100/20 -> 0.2; a box of no width -> 0. Threshold 4: 0.25 must be exceeded.
    sizes = np.array([[10, 10], [100, 10], [0, 10], [20, 40]], np.float32)
    anchors = np.array([[20, 10], [20, 40]], np.float32)
    fit = anchor_fit(sizes, anchors, 4.0)
    # box 1: 0.5 with the first, 0.25 (not above) with the second; box 4: 0.25 with the first, 1 with the second
    assert (fit.best_possible_recall, fit.anchors_per_target) == (0.5, 0.5)
    assert anchor_fitness(sizes, anchors, 4.0) == pytest.approx((0.5 + 1) / 4)


def test_long_side_is_scaled() -> None:
    sizes = box_sizes_px([[200, 100], [50, 100]], [_boxes([0.5, 0.5]), _boxes([])], 640)
    np.testing.assert_allclose(sizes, [[320, 160]])


def test_chunked_fit_matches_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = np.random.default_rng(0).uniform(1, 300, (1000, 2)).astype(np.float32)
    anchors = _COCO_P3_P5.reshape(-1, 2)
    whole, fitness = anchor_fit(sizes, anchors, 4.0), anchor_fitness(sizes, anchors, 4.0)
    monkeypatch.setattr(autoanchor, "_CHUNK_BOXES", 64)
    assert anchor_fit(sizes, anchors, 4.0) == whole
    assert anchor_fitness(sizes, anchors, 4.0) == pytest.approx(fitness, rel=1e-6)  # float32 sums of other lengths


def test_no_boxes_raises() -> None:
    with pytest.raises(ValueError, match="--noautoanchor"):
        best_possible_recall(np.empty((0, 2), np.float32), _COCO_P3_P5.reshape(-1, 2), 4.0)


def test_boxes_below_two_pixels_raise() -> None:
    with pytest.raises(ValueError, match="all 5 boxes are smaller"):
        fit_anchors(np.full((5, 2), 1.0), 3, image_px=64, threshold=4.0, rng=AnchorRandom.from_seed(0))


def test_identical_boxes_start_from_random_sizes(caplog: pytest.LogCaptureFixture) -> None:
    sizes = np.full((50, 2), 30.0)
    with caplog.at_level(logging.WARNING):
        anchors = fit_anchors(sizes, 9, image_px=320, threshold=4.0, rng=AnchorRandom.from_seed(0), generations=200)
    assert "random sizes" in caplog.text
    assert anchors.shape == (9, 2)
    assert best_possible_recall(sizes, anchors, 4.0) == 1.0


def test_fewer_boxes_than_anchors() -> None:
    sizes = np.array([[30.0, 30.0], [60.0, 20.0]])
    anchors = fit_anchors(sizes, 9, image_px=320, threshold=4.0, rng=AnchorRandom.from_seed(0), generations=50)
    assert anchors.shape == (9, 2)
    assert np.isfinite(anchors).all()


@settings(max_examples=25, deadline=None)
@given(
    sizes=hnp.arrays(np.float32, st.tuples(st.integers(12, 60), st.just(2)), elements=st.floats(4, 500, width=32)),
    seed=st.integers(0, 2**32 - 1),
)
def test_evolution_never_loses_fitness(sizes: npt.NDArray[np.float32], seed: int) -> None:
    start = np.array([[8.0, 8.0], [40.0, 40.0], [200.0, 200.0]])
    result = evolve_anchors(start, sizes, 4.0, anchor_mutation_factors((3, 2), 20, AnchorRandom.from_seed(seed)))
    assert result.fitness >= anchor_fitness(sizes, start, 4.0)
    assert result.trace == sorted(result.trace)
    areas = result.anchors_px.prod(axis=1)
    assert (areas[1:] >= areas[:-1]).all()


def _check(labels: list[np.ndarray], image_wh: tuple[int, int]) -> AnchorDecision:
    sizes, rng = [list(image_wh)] * len(labels), AnchorRandom.from_seed(0)
    return check_anchors(sizes, labels, _COCO_P3_P5, (8, 16, 32), image_px=640, threshold=4.0, rng=rng)


def test_good_anchors_are_kept() -> None:
    labels = [_boxes([[0.1, 0.1], [0.3, 0.4]])] * 20
    decision = _check(labels, image_wh=(640, 640))
    assert not decision.recomputed
    np.testing.assert_array_equal(decision.anchors_px, _COCO_P3_P5)
    assert decision.before.best_possible_recall == 1.0


def test_tiny_boxes_get_new_sorted_anchors() -> None:
    rng = np.random.default_rng(1)
    labels = [_boxes(rng.uniform(0.004, 0.012, (6, 2))) for _ in range(30)]
    decision = _check(labels, image_wh=(640, 480))
    assert decision.recomputed
    assert decision.replaced
    assert decision.after.best_possible_recall > max(decision.before.best_possible_recall, 0.98)
    areas = decision.anchors_px.prod(-1).mean(-1)
    assert areas[0] < areas[1] < areas[2]


def test_anchors_follow_descending_strides() -> None:
    np.testing.assert_array_equal(in_stride_order(_COCO_P3_P5, (32, 16, 8)), _COCO_P3_P5[::-1])
    np.testing.assert_array_equal(in_stride_order(_COCO_P3_P5, (8, 16, 32)), _COCO_P3_P5)

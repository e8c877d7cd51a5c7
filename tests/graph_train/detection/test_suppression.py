import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graph_train.detection.suppression import suppress


def boxes_of(*rows: tuple[float, float, float, float]) -> np.ndarray:
    return np.asarray(rows, np.float32).reshape(-1, 4)


def one_at_a_time(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> list[int]:
    """Suppress boxes one by one, as in textbooks, for comparison."""
    kept: list[int] = []
    for row in np.argsort(-scores, kind="stable"):
        x1, y1, x2, y2 = boxes[row]
        for other in kept:
            u1, v1, u2, v2 = boxes[other]
            width = max(np.float32(0), min(x2, u2) - max(x1, u1))
            height = max(np.float32(0), min(y2, v2) - max(y1, v1))
            union = (u2 - u1) * (v2 - v1) + (x2 - x1) * (y2 - y1) - width * height
            if union > 0 and float(width * height / union) > threshold:
                break
        else:
            kept.append(int(row))
    return kept


def test_suppression_chain_known_values() -> None:
    # Neighbours have IoU 6 / 10, the ends 2 / 6. The middle box is suppressed, so the last one is kept.
    boxes = boxes_of((0, 0, 4, 2), (1, 0, 5, 2), (2, 0, 6, 2))
    assert suppress(boxes, np.asarray([0.9, 0.8, 0.7], np.float32), 0.5).tolist() == [0, 2]


def test_result_is_ordered_by_score() -> None:
    boxes = boxes_of((0, 0, 1, 1), (5, 5, 6, 6), (9, 9, 10, 10))
    assert suppress(boxes, np.asarray([0.1, 0.3, 0.2], np.float32), 0.5).tolist() == [1, 2, 0]


def test_threshold_is_strict() -> None:
    boxes = boxes_of((0, 0, 2, 1), (0, 0, 1, 1))  # IoU exactly 1/2
    scores = np.asarray([0.9, 0.8], np.float32)
    assert suppress(boxes, scores, 0.5).tolist() == [0, 1]
    assert suppress(boxes, scores, float(np.nextafter(0.5, 0))).tolist() == [0]


def test_equal_scores_keep_first_row() -> None:
    boxes = boxes_of((0, 0, 2, 2), (0, 0, 2, 2), (0, 0, 2, 2))
    assert suppress(boxes, np.full(3, 0.5, np.float32), 0.5).tolist() == [0]


def test_boxes_without_area_overlap_nothing() -> None:
    boxes = boxes_of((1, 1, 1, 1), (1, 1, 1, 1), (0, 0, 2, 2))
    assert suppress(boxes, np.asarray([0.9, 0.8, 0.7], np.float32), 0.0).tolist() == [0, 1, 2]


def test_no_boxes() -> None:
    assert suppress(boxes_of(), np.empty(0, np.float32), 0.5).tolist() == []


@pytest.mark.parametrize("threshold", [-0.1, 1.5])
def test_impossible_threshold_raises(threshold: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        suppress(boxes_of((0, 0, 1, 1)), np.ones(1, np.float32), threshold)


def test_wrong_shapes_raise() -> None:
    with pytest.raises(ValueError, match=r"\(2,\)"):
        suppress(boxes_of((0, 0, 1, 1)), np.ones(2, np.float32), 0.5)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 700), st.sampled_from([0.1, 0.45, 0.6, 0.9]), st.integers(0, 2**32 - 1))
def test_matches_textbook_nms(count: int, threshold: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    corner = random.integers(0, 60, (count, 2))
    boxes = np.concatenate((corner, corner + random.integers(0, 30, (count, 2))), axis=1).astype(np.float32)
    scores = (random.integers(0, 50, count) / 50).astype(np.float32)  # many ties
    expected = one_at_a_time(boxes, scores, threshold)
    assert suppress(boxes, scores, threshold).tolist() == expected
    assert suppress(boxes, scores, threshold, limit=7).tolist() == expected[:7]

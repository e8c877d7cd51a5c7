import numpy as np
import pytest

from graph_train.metrics.average_precision import (
    IOU_THRESHOLDS,
    average_precision,
    best_row,
    fitness,
    match_detections,
    metrics_per_class,
    pairwise_iou,
    smooth,
)


def detections_of(*rows: tuple[float, ...]) -> np.ndarray:
    return np.asarray(rows, np.float32).reshape(-1, 6)


def labels_of(*rows: tuple[float, ...]) -> np.ndarray:
    return np.asarray(rows, np.float32).reshape(-1, 5)


def test_pairwise_iou_known_values() -> None:
    first = np.array([[0, 0, 2, 2], [1, 0, 3, 2]], np.float32)
    second = np.array([[0, 0, 2, 2], [5, 5, 6, 6], [0, 0, 1, 1]], np.float32)
    np.testing.assert_allclose(pairwise_iou(first, second), [[1, 0, 1 / 4], [2 / 6, 0, 0]], atol=1e-6)


def test_matching_known_values() -> None:
    labels = labels_of((0, 0, 0, 10, 10), (1, 20, 20, 30, 30))
    detections = detections_of(
        (0, 0, 10, 8.2, 0.9, 0),  # IoU 0.82 with the first label: correct up to the level 0.8
        (0, 0, 10, 10, 0.8, 0),  # IoU 1, but its label is taken up to 0.8
        (20, 20, 30, 30, 0.7, 0),  # right place, wrong class
    )
    correct = match_detections(detections, labels)
    assert correct[0].tolist() == [True] * 7 + [False] * 3
    assert correct[1].tolist() == [False] * 7 + [True] * 3
    assert not correct[2].any()


def test_iou_equal_to_level_matches() -> None:
    labels, detections = labels_of((0, 0, 0, 10, 10)), detections_of((0, 0, 10, 5, 0.9, 0))
    iou = np.float32(50) / np.float32(100 + 1e-7)
    levels = np.asarray([iou, np.nextafter(iou, np.float32(1))])
    assert match_detections(detections, labels, levels).tolist() == [[True, False]]


def test_detection_matches_only_its_best_label() -> None:
    # Both detections overlap label 0 most; label 1 stays without one although the second reaches 0.5 there.
    labels = labels_of((0, 0, 0, 10, 10), (0, 0, 0, 10, 14))
    detections = detections_of((0, 0, 10, 10, 0.9, 0), (0, 0, 10, 11, 0.8, 0))
    assert match_detections(detections, labels)[:, 0].tolist() == [True, False]


@pytest.mark.parametrize(("found", "wanted"), [(0, 0), (0, 2), (2, 0)])
def test_matching_without_detections_or_labels(found: int, wanted: int) -> None:
    assert match_detections(np.zeros((found, 6)), np.zeros((wanted, 5))).tolist() == [[False] * 10] * found


def test_average_precision_known_values() -> None:
    # Precision 1 up to recall 1/2, then 2/3 up to 1: trapezes between the points (0, 1), (1/2, 1), (1, 2/3), (1, 0).
    recall, precision = np.asarray([0.5, 0.5, 1.0]), np.asarray([1.0, 0.5, 2 / 3])
    area, _ = average_precision(recall, precision)
    # sampled every 1/100; at a step the lower value counts
    assert area == pytest.approx(np.trapz([1.0] * 50 + [2 / 3] * 50 + [0.0], dx=0.01))


def test_perfect_and_useless_detectors() -> None:
    label_class = np.asarray([0.0, 0.0, 1.0])
    confidence = np.asarray([0.9, 0.8, 0.7])
    perfect = metrics_per_class(np.ones((3, 10), bool), confidence, label_class, label_class)
    # The curve falls to 0 at recall 1, so the last of 100 trapezes counts half.
    assert perfect.means() == pytest.approx((1, 1, 0.995, 0.995))
    useless = metrics_per_class(np.zeros((3, 10), bool), confidence, label_class, label_class)
    assert useless.means()[1:] == (0, 0, 0)


def test_counts_at_best_confidence() -> None:
    correct = np.asarray([[True], [True], [False]])
    found = metrics_per_class(correct, np.asarray([0.9, 0.6, 0.1]), np.zeros(3), np.zeros(2))
    assert (found.true_positives.tolist(), found.false_positives.tolist()) == ([2], [0])
    assert 0.1 < found.confidence < 0.6
    assert (found.precision[0], found.recall[0]) == pytest.approx((1, 1), abs=0.02)  # between the points 0.6 and 0.1


def test_classes_without_detections_or_labels() -> None:
    found = metrics_per_class(np.ones((1, 10), bool), np.ones(1), np.asarray([5.0]), np.asarray([2.0, 2.0, 3.0]))
    assert (found.classes.tolist(), found.labels.tolist()) == ([2, 3], [2, 1])  # class 5 has no labels: not counted
    assert not found.ap.any()


def test_map_of_absent_classes_is_the_mean() -> None:
    found = metrics_per_class(np.ones((1, 10), bool), np.ones(1), np.asarray([1.0]), np.asarray([1.0, 2.0]))
    assert found.maps(4) == pytest.approx([0.4975, 0.995, 0, 0.4975])


def test_no_labels_at_all() -> None:
    found = metrics_per_class(np.zeros((2, 10), bool), np.ones(2), np.zeros(2), np.zeros(0))
    assert found.means() == (0, 0, 0, 0)
    assert found.maps(2).tolist() == [0, 0]


def test_order_of_rows_does_not_matter() -> None:
    random = np.random.default_rng(0)
    correct, confidence = random.random((50, 10)) < 0.5, random.permutation(50) / 50
    category, labels = random.integers(0, 3, 50), random.integers(0, 3, 40)
    shuffled = random.permutation(50)
    first = metrics_per_class(correct, confidence, category, labels)
    second = metrics_per_class(correct[shuffled], confidence[shuffled], category[shuffled], labels)
    assert first.ap.tolist() == second.ap.tolist()


def test_smooth_keeps_constants_and_length() -> None:
    assert smooth(np.full(40, 0.25), 0.1) == pytest.approx(np.full(40, 0.25))
    # 0.6 of 5 values: width round(6) // 2 + 1 = 4 ... an odd width of 3 needs 0.4: round(4) // 2 + 1 = 3
    assert smooth(np.asarray([0.0, 0, 3, 0, 0]), 0.4) == pytest.approx([0, 1, 1, 1, 0])


def test_fitness_weights() -> None:
    assert fitness(np.asarray([[0.9, 0.8, 0.5, 0.25], [0, 0, 1, 1]])) == pytest.approx([0.275, 1.0])


def test_last_of_equal_epochs_is_best() -> None:
    rows = np.zeros((6, 4))
    rows[[1, 3], 2:] = 0.5
    rows[4] = [1.0, 1.0, np.nan, 1.0]
    assert best_row(rows) == 3
    rows[[1, 3], 2:] = 0
    rows[1, 0] = 0.1  # fitness 0, but validated
    assert best_row(rows) == 1
    assert best_row(rows[4:]) == 0
    assert best_row(np.zeros((3, 7))) == 2


def test_iou_levels() -> None:
    assert pytest.approx(np.arange(50, 100, 5) / 100) == IOU_THRESHOLDS

import numpy as np

from graph_train.metrics.confusion import ConfusionMatrix


def detections_of(*rows: tuple[float, ...]) -> np.ndarray:
    return np.asarray(rows, np.float32).reshape(-1, 6)


def labels_of(*rows: tuple[float, ...]) -> np.ndarray:
    return np.asarray(rows, np.float32).reshape(-1, 5)


def test_every_outcome_is_counted() -> None:
    matrix = ConfusionMatrix(2)
    labels = labels_of((0, 0, 0, 10, 10), (1, 20, 20, 30, 30), (1, 60, 60, 70, 70))
    detections = detections_of(
        (0, 0, 10, 10, 0.9, 0),  # right
        (20, 20, 30, 30, 0.8, 0),  # class 0 at a label of class 1
        (40, 40, 50, 50, 0.7, 1),  # no label there
        (60, 60, 70, 70, 0.25, 1),  # not above the confidence: its label is missed
    )
    matrix.add(detections, labels)
    assert matrix.counts.tolist() == [[1, 1, 0], [0, 0, 1], [0, 1, 0]]


def test_highest_iou_wins_and_other_is_false_positive() -> None:
    matrix = ConfusionMatrix(1)
    matrix.add(detections_of((0, 0, 10, 8, 0.9, 0), (0, 0, 10, 10, 0.5, 0)), labels_of((0, 0, 0, 10, 10)))
    assert matrix.counts.tolist() == [[1, 1], [0, 0]]


def test_images_without_match_add_false_negatives_only() -> None:
    matrix = ConfusionMatrix(1)
    matrix.add(detections_of((50, 50, 60, 60, 0.9, 0)), labels_of((0, 0, 0, 10, 10)))
    matrix.add(detections_of((50, 50, 60, 60, 0.9, 0)), labels_of())
    matrix.add(detections_of(), labels_of((0, 0, 0, 10, 10)))
    matrix.add(detections_of(), labels_of())
    assert matrix.counts.tolist() == [[0, 0], [2, 0]]


def test_matrix_sums_count_every_label_once() -> None:
    random = np.random.default_rng(1)
    matrix = ConfusionMatrix(3)
    wanted = np.zeros(3, int)
    for _ in range(20):
        corner = random.uniform(0, 80, (12, 2))
        boxes = np.concatenate((corner, corner + random.uniform(5, 40, (12, 2))), axis=1)
        labels = np.column_stack((random.integers(0, 3, 12), boxes))
        shifted = boxes[:8] + random.normal(0, 2, (8, 4))
        matrix.add(np.column_stack((shifted, random.random(8), random.integers(0, 3, 8))), labels)
        wanted += np.bincount(labels[:, 0].astype(int), minlength=3)
    assert matrix.counts[:, :3].sum(axis=0).tolist() == wanted.tolist()

import numpy as np
import pytest

from graph_train.detection.nms import NmsSettings, non_max_suppression


def prediction(*rows: tuple[float, ...]) -> np.ndarray:
    """Return (1, n, 5 + nc): cx, cy, w, h, objectness, class confidences."""
    return np.asarray([rows], np.float32)


def test_one_box_known_values() -> None:
    found = non_max_suppression(prediction((10, 20, 4, 6, 0.5, 0.25, 0.75)), NmsSettings())
    # corners 10 -+ 2, 20 -+ 3; confidence 0.5 * 0.75 of class 1
    assert [rows.tolist() for rows in found] == [[[8, 17, 12, 23, 0.375, 1]]]


def test_objectness_and_confidence_must_exceed_threshold() -> None:
    rows = prediction((10, 10, 2, 2, 0.25, 1.0), (30, 30, 2, 2, 0.5, 0.5), (50, 50, 2, 2, 0.5, 0.75))
    found = non_max_suppression(rows, NmsSettings(conf_thres=0.25))[0]
    assert found[:, 4].tolist() == [0.375]  # 0.25 and 0.5 * 0.5 do not exceed 0.25


def test_nms_is_class_aware_unless_agnostic() -> None:
    rows = prediction((10, 10, 4, 4, 1, 0.9, 0.1), (10, 10, 4, 4, 1, 0.1, 0.8))
    assert non_max_suppression(rows, NmsSettings())[0][:, 5].tolist() == [0, 1]
    assert non_max_suppression(rows, NmsSettings(agnostic=True))[0][:, 5].tolist() == [0]


def test_multi_label_keeps_every_class_above_threshold() -> None:
    rows = prediction((10, 10, 4, 4, 1, 0.5, 0.75, 0.125))
    assert non_max_suppression(rows, NmsSettings())[0][:, 5].tolist() == [1]
    assert non_max_suppression(rows, NmsSettings(multi_label=True))[0][:, 5].tolist() == [1, 0]


def test_class_filter_applies_after_class_choice() -> None:
    rows = prediction((10, 10, 4, 4, 1, 0.5, 0.75))
    assert len(non_max_suppression(rows, NmsSettings(classes=[0]))[0]) == 0
    assert non_max_suppression(rows, NmsSettings(classes=[0], multi_label=True))[0][:, 5].tolist() == [0]


def test_max_detections_and_candidates() -> None:
    rows = prediction(*((20.0 * i, 10, 4, 4, 1, 0.9 - 0.1 * i) for i in range(5)))
    by_output = non_max_suppression(rows, NmsSettings(max_det=2))[0]
    by_input = non_max_suppression(rows, NmsSettings(max_candidates=3))[0]
    assert (len(by_output), len(by_input)) == (2, 3)
    first_of_equals = prediction(*((20.0 * i, 10, 4, 4, 1, 0.5) for i in range(5)))
    kept = non_max_suppression(first_of_equals, NmsSettings(max_candidates=3))[0]
    assert kept[:, 0].tolist() == [-2, 18, 38]
    assert by_input[:, 4] == pytest.approx([0.9, 0.8, 0.7])


def test_known_labels_are_added_with_confidence_1() -> None:
    rows = prediction((10, 10, 4, 4, 0.9, 0.9, 0.1))
    labels = [np.asarray([[0, 10, 10, 4, 4], [1, 50, 50, 2, 2]], np.float32)]
    found = non_max_suppression(rows, NmsSettings(), known_labels=labels)[0]
    assert found[:, 4:].tolist() == [[1, 0], [1, 1]]  # the prediction overlaps the first label


def test_images_are_independent_and_may_be_empty() -> None:
    rows = np.concatenate((prediction((10, 10, 4, 4, 0.1, 0.9)), prediction((10, 10, 4, 4, 0.9, 0.9))))
    assert [found.shape for found in non_max_suppression(rows, NmsSettings())] == [(0, 6), (1, 6)]


@pytest.mark.parametrize("wrong", [{"conf_thres": 1.1}, {"iou_thres": -1}, {"max_det": 0}])
def test_invalid_settings_raise(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        NmsSettings(**wrong)  # type: ignore[arg-type]


def test_wrong_prediction_shape_raises() -> None:
    with pytest.raises(ValueError, match=r"\(1, 3, 5\)"):
        non_max_suppression(np.zeros((1, 3, 5), np.float32), NmsSettings())

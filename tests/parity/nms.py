"""Parity of `graph_train.detection.nms`: the same detections in the same order; NumPy code, so only one mode."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from graph_train.detection.nms import NmsSettings, non_max_suppression
from tests.parity.harness import Mode, Report, Subject


def check(path: Path, report: Report, _: Mode) -> None:
    """Compare every setting of the file; boxes 1e-3 px, confidences 1e-6, classes and row counts exact."""
    stored = report.open(path)
    settings = json.loads(str(stored["settings_json"]))
    for name in stored["setting_names"]:
        _compare(report, str(name), non_max_suppression(stored["prediction"], NmsSettings(**settings[name])), stored)
    labels = [stored[f"apriori_labels_image{image}"] for image in range(len(stored["prediction"]))]
    chosen = NmsSettings(conf_thres=0.3, iou_thres=0.5)
    _compare(report, "apriori", non_max_suppression(stored["prediction"], chosen, known_labels=labels), stored)
    one_class = NmsSettings(conf_thres=0.25, iou_thres=0.45, multi_label=True)
    _compare(report, "nc1", non_max_suppression(stored["nc1_prediction"], one_class), stored)


def _compare(report: Report, name: str, found: list[np.ndarray], stored: Mapping[str, np.ndarray]) -> None:
    for image, ours in enumerate(found):
        rows, want = _settle_ties(ours), _settle_ties(stored[f"{name}_image{image}"])
        report.close(f"{name} image {image} boxes", rows[:, :4], want[:, :4], atol=1e-3)
        report.close(f"{name} image {image} confidences", rows[:, 4], want[:, 4], atol=1e-6)
        report.exact(f"{name} image {image} classes", rows[:, 5], want[:, 5])


def _settle_ties(rows: np.ndarray) -> np.ndarray:
    """Sort rows of equal confidence by class and corner.

    Known labels all have confidence 1, and the reference's sort leaves their order open. Rows of different confidence
    are not moved.
    """
    run = np.cumsum(np.append(True, rows[1:, 4] != rows[:-1, 4]))[: len(rows)]
    return rows[np.lexsort((rows[:, 1], rows[:, 0], rows[:, 5], run))]


SUBJECT = Subject(patterns=("nms*.npz",), check=check, modes=("eager",))

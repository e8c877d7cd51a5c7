"""Parity of `graph_train.metrics`: average precision and confusion matrix; NumPy code, so only one mode."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from graph_train.metrics.average_precision import (
    average_precision,
    fitness,
    match_detections,
    metrics_per_class,
    smooth,
)
from graph_train.metrics.confusion import ConfusionMatrix
from graph_train.validation.coco_results import default_ids, evaluate_results, result_entries, write_results
from tests.parity.harness import Mode, Report, Subject

_ATOL = 1e-6

Stored = Mapping[str, np.ndarray]


def check(path: Path, report: Report, _: Mode) -> None:
    """Compare matches, counts and the confusion matrix exactly, everything else within 1e-6."""
    stored = report.open(path)
    correct = _check_matching(report, stored)
    _check_classes(report, stored, correct)
    _check_coco(report, stored, correct)
    ap, (recall, precision) = average_precision(stored["compute_ap_recall"], stored["compute_ap_precision"])
    report.close("compute_ap", ap, stored["compute_ap_ap"], atol=_ATOL)
    report.close("compute_ap recall", recall, stored["compute_ap_mrec"], atol=_ATOL)
    report.close("compute_ap precision", precision, stored["compute_ap_mpre"], atol=_ATOL)
    report.close("smooth", smooth(stored["smooth_y"], float(stored["smooth_f"])), stored["smooth_out"], atol=_ATOL)
    report.close("fitness alone", fitness(stored["fitness_in"]), stored["fitness_out"], atol=_ATOL)


def _check_matching(report: Report, stored: Stored) -> np.ndarray:
    detections, labels = stored["detections"], stored["labels"]
    correct = np.zeros((len(detections), len(stored["iouv"])), bool)
    matrix = ConfusionMatrix(
        int(stored["nc"]), conf_thres=float(stored["confusion_conf"]), iou_thres=float(stored["confusion_iou"])
    )
    for image in range(int(stored["n_images"])):
        rows = np.flatnonzero(stored["detection_image"] == image)
        rows = rows[np.argsort(-detections[rows, 4], kind="stable")]
        wanted = labels[stored["label_image"] == image]
        correct[rows] = match_detections(detections[rows], wanted, stored["iouv"])
        matrix.add(detections[rows], wanted)
    report.exact("correct", correct, stored["correct"])
    report.exact("confusion matrix", matrix.counts, stored["confusion_matrix"])
    return correct


def _check_classes(report: Report, stored: Stored, correct: np.ndarray) -> None:
    detections, label_class = stored["detections"], stored["labels"][:, 0]
    found = metrics_per_class(correct, detections[:, 4], detections[:, 5], label_class)
    report.exact("classes", found.classes, stored["ap_unique_classes"])
    report.exact(
        "labels per class", np.bincount(found.classes, found.labels, int(stored["nc"])), stored["nt_per_class"]
    )
    report.exact("true positives", found.true_positives, stored["ap_tp"])
    report.exact("false positives", found.false_positives, stored["ap_fp"])
    report.close("precision", found.precision, stored["ap_p"], atol=_ATOL)
    report.close("recall", found.recall, stored["ap_r"], atol=_ATOL)
    report.close("f1", found.f1, stored["ap_f1"], atol=_ATOL)
    report.close("ap", found.ap, stored["ap_ap"], atol=_ATOL)
    report.close("means", found.means(), stored["mean_p_r_map50_map"], atol=_ATOL)
    report.close("fitness", fitness(np.asarray([found.means()])), np.atleast_1d(stored["fitness"]), atol=_ATOL)


def _check_coco(report: Report, stored: Stored, correct: np.ndarray) -> None:
    """Check our result file with pycocotools, and our own mAP with COCO's sampling of curves.

    COCOeval chooses matches by another rule, hence the 1e-3 for our own.
    """
    detections = stored["detections"]
    ap = coco_ap(correct, detections[:, 4], detections[:, 5], stored["labels"][:, 0])
    report.close("COCO mAP50-95, mAP50", (ap.mean(), ap[:, 0].mean()), stored["coco_stats"][:2], atol=1e-3)
    ids = default_ids([str(category) for category in range(int(stored["nc"]))])
    entries, order = [], []
    for image in range(int(stored["n_images"])):
        rows = np.flatnonzero(stored["detection_image"] == image)
        order.append(rows)
        entries += result_entries(detections[rows], ids.image_id(Path(f"{image}.jpg")), ids.category_ids)
    numbers = np.concatenate(order)
    report.close("bbox", [entry["bbox"] for entry in entries], stored["coco_detection_bbox"][numbers], atol=_ATOL)
    report.close("score", [entry["score"] for entry in entries], stored["coco_detection_score"][numbers], atol=_ATOL)
    with tempfile.TemporaryDirectory() as folder:
        annotations, results = Path(folder) / "annotations.json", Path(folder) / "results.json"
        annotations.write_text(json.dumps(_annotations(stored)))
        write_results(results, entries)
        images = list(range(int(stored["n_images"])))
        report.close("COCOeval", evaluate_results(annotations, results, images).stats, stored["coco_stats"], atol=_ATOL)


def coco_ap(
    correct: np.ndarray, confidence: np.ndarray, predicted_class: np.ndarray, label_class: np.ndarray
) -> np.ndarray:
    """Return the AP (classes, levels) of our matches, sampled as by COCO; arguments as of `metrics_per_class`."""
    order = np.argsort(-confidence, kind="stable")
    classes, labels = np.unique(label_class, return_counts=True)
    ap = np.zeros((len(classes), correct.shape[1]))
    for row, (category, count) in enumerate(zip(classes, labels, strict=True)):
        true = correct[order][predicted_class[order] == category].cumsum(axis=0)
        precision = true / np.arange(1, len(true) + 1)[:, None]
        ap[row] = [coco_sampled(true[:, n] / count, precision[:, n]) for n in range(true.shape[1])]
    return ap


def coco_sampled(recall: np.ndarray, precision: np.ndarray) -> float:
    """Return the mean precision at 101 recalls: at the first point that reaches the recall, else 0."""
    _, (_, envelope) = average_precision(recall, precision)
    reached = np.searchsorted(recall, np.linspace(0, 1, 101))
    return float(np.append(envelope[1:-1], 0.0)[reached].mean())


def _annotations(stored: Stored) -> dict[str, list[dict[str, object]]]:
    width, height = stored["image_wh"].tolist()
    annotations: list[dict[str, object]] = []
    for number, (row, image) in enumerate(zip(stored["labels"], stored["label_image"], strict=True), 1):
        x1, y1, x2, y2 = (float(value) for value in row[1:])
        shape = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
        annotations.append({"id": number, "image_id": int(image), "category_id": int(row[0]), **shape})
    images = [
        {"id": image, "file_name": f"{image}.jpg", "width": width, "height": height}
        for image in range(int(stored["n_images"]))
    ]
    categories = [{"id": category, "name": str(category)} for category in range(int(stored["nc"]))]
    return {"images": images, "annotations": annotations, "categories": categories}


SUBJECT = Subject(("metrics*.npz",), check, modes=("eager",), information=("coco_precision_mean_per_class",))

"""Exported files give the same detections as our network on real images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import graph_train
from graph_train.detection.detector import load_detector
from graph_train.detection.nms import NmsSettings, non_max_suppression
from graph_train.exporting.onnx.check import OnnxSession
from graph_train.metrics.average_precision import pairwise_iou
from kernels.runtime import flow
from models.network import DetectionModel
from models.spec import load_model_spec
from models.weights import save_weights
from pipelines.data.dataset import load_dataset
from pipelines.data.index import index_images
from pipelines.pixels.encoded_images import decode_on_host
from pipelines.predict import ImageBatches, PredictSettings, inspect_images
from tests.graph_train.tiny import steepen
from tests.graph_train.training_runner import TrainingRunner

Array = np.ndarray[Any, Any]

MARGIN = 1e-3  # allowed difference of confidences: one that is nearer to the threshold may pass on one side only
SUPPRESSION = NmsSettings(conf_thres=0.25, iou_thres=0.45, max_det=300)


def assert_same_detections(own: Sequence[Array], others: Sequence[Array]) -> int:
    """Assert that every detection has a match with IoU > 0.99 and confidence within 1e-3; return their count."""
    compared = 0
    for first, second in ((own, others), (others, own)):
        for rows, partners in zip(first, second, strict=True):
            for row in rows[rows[:, 4] > SUPPRESSION.conf_thres + MARGIN]:
                near = pairwise_iou(row[None, :4], partners[:, :4])[0] > 0.99
                near &= (partners[:, 5] == row[5]) & (np.abs(partners[:, 4] - row[4]) < MARGIN)
                assert near.any(), row
                compared += 1
    return compared // 2


def val_images(data: Path) -> Sequence[Path]:
    found = load_dataset(data)
    return index_images(found.val, found.class_names).paths


def compare(weights: Path, images: Sequence[Path], folder: Path, *, imgsz: int, batch_size: int) -> int:
    """Compare our graph and suppression with both kinds of files; return the number of detections."""
    common = {"weights": weights, "include": "onnx", "imgsz": imgsz, "dynamic": True, "device": "cpu", "graph": False}
    raw_file = graph_train.export(**common, output=folder / "raw.onnx").files[0].path
    thresholds = {"conf_thres": SUPPRESSION.conf_thres, "iou_thres": SUPPRESSION.iou_thres}
    nms_file = graph_train.export(**common, **thresholds, nms=True, output=folder / "nms.onnx").files[0].path
    raw, whole = OnnxSession(str(raw_file)), OnnxSession(str(nms_file))
    detector = load_detector([weights], device="cpu")
    index, broken = inspect_images(images)
    assert not broken
    source = ImageBatches(index, PredictSettings((imgsz, imgsz), detector.stride, batch_size, 2))
    compared = 0
    try:
        for batch in source:
            own = non_max_suppression(detector(batch.images)[0], SUPPRESSION)
            outside = non_max_suppression(raw(batch.images)["output0"], SUPPRESSION)
            inside = whole(batch.images)
            kept = [rows[:count] for rows, count in zip(inside["detections"], inside["num_detections"], strict=True)]
            compared += assert_same_detections(own, outside)
            assert_same_detections(own, kept)
    finally:
        source.close()
    return compared


def steep_network(images: Sequence[Path]) -> DetectionModel:
    """Return an untrained network whose confidences depend on the photo and that detects something."""
    network = DetectionModel(load_model_spec("yolov5n.yaml", num_classes=3), seed=4)
    with flow.no_grad():
        for name, value in network.state_dict().items():
            if name.endswith("running_var"):
                value.mul_(0.3)
    photos = np.stack([decode_on_host(path)[:320, :320].transpose(2, 0, 1) for path in images])
    return steepen(network, photos)


def test_exported_files_match_on_photos(bccd: Path, tmp_path: Path) -> None:
    images = val_images(bccd)[:12]
    weights = tmp_path / "steep.safetensors"
    save_weights(steep_network(images[:2]), weights)
    assert compare(weights, images, tmp_path, imgsz=160, batch_size=8) > 5 * len(images)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_exported_files_match_on_blood_cells(bccd: Path, tmp_path: Path) -> None:
    result: Any = graph_train.train(
        data=bccd,
        cfg="yolov5n.yaml",
        imgsz=160,
        epochs=40,
        batch_size=8,
        workers=2,
        project=tmp_path,
        noplots=True,
        hyp=TrainingRunner(tmp_path / "runner").hyp(warmup_epochs=0.5, lr0=0.02),
        device="cpu",
        noval=True,
    )
    images = val_images(bccd)
    assert compare(result.folder / "weights/last.safetensors", images, tmp_path, imgsz=160, batch_size=8) > 5 * len(
        images
    )

"""OpenVINO's results from an exported ONNX file agree with our network's."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import graph_train
from graph_train.detection.inference import Inference
from graph_train.detection.nms import NmsSettings, non_max_suppression
from graph_train.exporting.onnx.check import largest_difference
from graph_train.exporting.onnx.network import COUNTS, DETECTIONS, INPUT, PREDICTIONS, build_onnx
from models.network import DetectionModel
from models.spec import load_model_spec
from models.weights import save_weights
from tests.graph_train.exporting.test_export import network_of, settings
from tests.graph_train.exporting.test_export_detections import assert_same_detections
from tests.graph_train.tiny import TINY, steepen, tiny_network

openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed: uv sync")
TOLERANCE = 1e-4
"""Tolerance, as for onnxruntime."""
NO_LABELS = np.zeros((0, 6), np.float32)


def compiled(path: Path) -> Any:
    """Compile a file for OpenVINO's CPU device in float32, as its default on some processors is bfloat16."""
    core = openvino.Core()
    return core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


def outputs(model: Any, images: np.ndarray) -> dict[str, np.ndarray]:
    """Return the outputs by name for (B, 3, H, W) uint8 RGB images."""
    found = model({INPUT: images.astype(np.float32) / np.float32(255)})
    return {name: np.asarray(value) for port, value in found.items() for name in port.get_names()}


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(4).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("dynamic", [False, True])
def test_openvino_matches_catalogue_network(dynamic: bool, tmp_path: Path) -> None:
    """Export from a weight file, as a user does."""
    weights = tmp_path / "n.safetensors"
    network = DetectionModel(load_model_spec("yolov5n.yaml", num_classes=3), seed=2)
    save_weights(network, weights)
    file = graph_train.export(
        weights=weights, include="onnx", imgsz=(64, 96), batch_size=2, dynamic=dynamic, device="cpu", graph=False
    ).files[0]
    model = compiled(file.path)
    network.eval()
    for shape in [(2, 3, 64, 96), *([(1, 3, 128, 64), (3, 3, 32, 160)] if dynamic else [])]:
        images = noise(*shape)
        expected = Inference(network, graph=False)(images, NO_LABELS)[0]
        assert expected.std() > 1
        assert largest_difference(outputs(model, images)[PREDICTIONS], expected) < TOLERANCE


def test_different_weights_are_detected(tmp_path: Path) -> None:
    network = network_of(TINY)
    file = tmp_path / "tiny.onnx"
    file.write_bytes(build_onnx(network, settings()).SerializeToString())
    found = outputs(compiled(file), noise(1, 3, 64, 96))[PREDICTIONS]
    other = DetectionModel(load_model_spec(TINY), seed=9).eval()
    assert largest_difference(found, Inference(other, graph=False)(noise(1, 3, 64, 96), NO_LABELS)[0]) > 0.1


@pytest.mark.parametrize("dynamic", [False, True])
def test_openvino_matches_detections_with_nms(dynamic: bool, tmp_path: Path) -> None:
    blocks = np.random.default_rng(5).integers(0, 256, (2, 3, 8, 12), np.uint8)
    images = blocks.repeat(8, axis=2).repeat(8, axis=3)
    network = steepen(tiny_network(seed=3), images).eval().fuse()
    suppression = NmsSettings(conf_thres=0.25, max_det=30)
    chosen = settings(batch_size=2, dynamic=dynamic, suppression=suppression)
    file = tmp_path / "tiny.onnx"
    file.write_bytes(build_onnx(network, chosen).SerializeToString())
    found = outputs(compiled(file), images)
    assert found[COUNTS].shape == (2,)
    rows = [detections[:count] for detections, count in zip(found[DETECTIONS], found[COUNTS], strict=True)]
    own = non_max_suppression(Inference(network, graph=False)(images, NO_LABELS)[0], suppression)
    assert assert_same_detections(own, rows) > 0

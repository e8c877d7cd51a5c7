"""Detection, also augmented, runs no CUDA kernel of OneFlow, which has none for GPUs above 8.9."""

import json
from pathlib import Path

import numpy as np
import pytest

from graph_train.detection.detector import load_detector
from graph_train.detection.nms import NmsSettings, non_max_suppression
from graph_train.prediction.feature_maps import FeatureMaps
from kernels.framework.coverage import COPIES
from models.weights import save_weights
from tests.graph_train.tiny import steepen, tiny_network
from tests.python_process import run_python

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 3, 64, 96), np.uint8)
"""Modes of `executed_ops_job`."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_weights(steepen(tiny_network(), IMAGES), path)
    return path


@pytest.mark.timeout(600)
@pytest.mark.parametrize("form", ["graph", "eager"])
@pytest.mark.parametrize("views", ["augment", "plain"])
def test_all_detection_ops_have_plugin_kernels(tmp_path: Path, weights: Path, views: str, form: str) -> None:
    out = tmp_path / "ops.json"
    done = run_python("-m", "tests.graph_train.detection.executed_ops_job", out, weights, views, form)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(out.read_text())
    executed = {tuple(pair) for pair in found["ops"]}
    views_ops = {("graph_train_augmented_view", "plugin"), ("graph_train_join_views", "plugin")}
    assert (views_ops <= executed) == (views == "augment")
    assert ("graph_train_suppress", "plugin") in executed
    assert {op for op, owner in executed if owner == "OneFlow"} <= {*COPIES, "empty"}  # uninitialised memory

    detector = load_detector([weights], device="cpu", graph=False, augment=views == "augment")
    expected = non_max_suppression(detector(IMAGES)[0], NmsSettings(conf_thres=0.01))
    assert sum(map(len, expected)) > 7
    for rows, wanted in zip(found["detections"], expected, strict=True):
        assert len(rows) == len(wanted)
        np.testing.assert_allclose(np.array(rows).reshape(-1, 6), wanted, rtol=1e-3, atol=1e-3)

    folders = [tmp_path / "cpu" / image for image in ("0", "1")]
    FeatureMaps(detector.networks[0], graph=False).write(IMAGES[2:4], folders)
    files = [file for folder in folders for file in sorted(folder.glob("*.npy"))]
    assert len(files) == 2 * 9
    for file in files:
        maps = np.load(tmp_path / file.relative_to(tmp_path / "cpu"))
        np.testing.assert_allclose(maps, np.load(file), rtol=1e-3, atol=1e-3)

"""Detects with the ops used on CUDA and records kernel owners: `... FILE WEIGHTS augment|plain graph|eager`."""

import json
import sys
from pathlib import Path

import numpy as np

from graph_train.detection.detector import load_detector
from graph_train.detection.nms import NmsSettings, non_max_suppression
from graph_train.prediction.feature_maps import FeatureMaps
from kernels.framework.op_trace import executed_ops, reset_executed_ops, trace_ops
from kernels.plugin import load_plugin
from kernels.runtime import flow


def main(out: Path, weights: str, augment: bool, graph: bool) -> None:
    """Detect in batches of arrays and of tensors; write (op, kernel owner) pairs, the detections and feature maps."""
    load_plugin("emulated-cuda")
    trace_ops()
    detector = load_detector([weights], device="cpu", graph=graph, augment=augment)
    images = np.random.default_rng(0).integers(0, 256, (7, 3, 64, 96), np.uint8)
    tensors = [flow.tensor(images[2:4]), flow.tensor(images[4:5])]
    reset_executed_ops()  # loading weights, which happens on the host
    rows = []
    for batch in (images[:2], *tensors, images[5:]):
        rows += non_max_suppression(detector(batch)[0], NmsSettings(conf_thres=0.01))
    FeatureMaps(detector.networks[0], graph=graph).write(tensors[0], [out.parent / "0", out.parent / "1"])
    found = {
        "ops": sorted({(op.kind, op.owner) for op in executed_ops()}),
        "detections": [one.tolist() for one in rows],
    }
    out.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "augment", sys.argv[4] == "graph")

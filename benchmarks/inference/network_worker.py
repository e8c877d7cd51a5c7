"""Worker of `graph-bench inference`: the network alone, from uint8 images to decoded predictions."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.harness.channel import serve
from graph_train.detection.detector import load_network
from kernels.plugin import load_plugin

_NO_LABELS = np.zeros((0, 6), np.float32)
_state: dict[str, Any] = {}


def prepare(*, weights: str, onnx: bool, threads: int, image_px: int, batch: int, device: str) -> float:
    """Compile the network for one shape and run it once, in OneFlow or, on its ONNX export, in onnxruntime.

    Returns:
        The mean of the predictions, to compare both sides.
    """
    images = np.random.default_rng(0).integers(0, 256, (batch, 3, image_px, image_px), np.uint8)
    build = _onnxruntime if onnx else _graph
    predict = build(weights, threads, images, device)
    _state["run"] = lambda: predict(images)
    return float(predict(images).mean())


def _graph(
    weights: str, threads: int, images: npt.NDArray[np.uint8], device: str
) -> Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]:
    del threads, images  # OMP_NUM_THREADS is set; the graph is compiled in the first call
    from graph_train.detection.inference import Inference, on_host

    load_plugin("require", device)
    inference = Inference(load_network(Path(weights)).to(device), graph=True)
    return lambda batch: on_host(inference(batch, _NO_LABELS)[0])


def _onnxruntime(
    weights: str, threads: int, images: npt.NDArray[np.uint8], device: str
) -> Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]:
    del device  # of OneFlow's side
    import onnxruntime

    from graph_train.exporting.onnx.network import INPUT, OnnxSettings, build_onnx
    from models.layout import PIXEL_SCALE

    batch, _, *side = images.shape
    settings = OnnxSettings(batch, (side[0], side[1]), dynamic=False, opset=17, suppression=None)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    content = build_onnx(load_network(Path(weights)), settings).SerializeToString()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    scale = np.float32(1 / PIXEL_SCALE)
    return lambda batch: session.run(None, {INPUT: batch.astype(np.float32) * scale})[0]


def seconds(count: int) -> float:
    """Return the seconds of this number of runs."""
    started = time.perf_counter()
    for _ in range(count):
        _state["run"]()
    return time.perf_counter() - started


if __name__ == "__main__":
    serve({"prepare": prepare, "seconds": seconds})

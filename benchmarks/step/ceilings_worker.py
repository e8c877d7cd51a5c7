"""Worker of `graph-bench ceilings`: matrix products and copies on a CPU (NumPy, oneDNN, C) or a GPU (OneFlow)."""

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np

from benchmarks.harness.channel import serve
from benchmarks.harness.measure import seconds_of

_CPU_SIDE, _GPU_SIDE = 2048, 8192
_CPU_BYTES, _GPU_BYTES = 256 * 2**20, 2**30
_MEMCPY = ctypes.CDLL(None).memcpy
_MEMCPY.argtypes, _MEMCPY.restype = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t), ctypes.c_void_p
_runners: dict[str, Callable[[], float]] = {}


def prepare(device: str, threads: int) -> dict[str, str]:
    """Allocate the buffers; return what can be measured and its unit."""
    if device == "cpu":
        _runners["float32 matmul"], _runners["copy"] = _cpu_matmul(), _cpu_copy(threads)
        return {"float32 matmul": "GFLOP/s", "copy": "GB/s"}
    return _prepare_gpu(device)


def parallel_copy(destination: np.ndarray, source: np.ndarray, pool: ThreadPoolExecutor, threads: int) -> None:
    """Copy contiguous arrays of equal size, with a part for each thread."""
    bounds = [source.nbytes * part // threads for part in range(threads + 1)]
    jobs = [
        pool.submit(_MEMCPY, destination.ctypes.data + start, source.ctypes.data + start, end - start)
        for start, end in pairwise(bounds)
    ]
    for job in jobs:
        job.result()


def _cpu_matmul() -> Callable[[], float]:
    """Return the faster of NumPy's and oneDNN's matrix product; NumPy's OpenBLAS uses SSE on newer processors."""
    random = np.random.default_rng(0)
    left, right = (random.random((_CPU_SIDE, _CPU_SIDE), np.float32) for _ in range(2))
    out = np.empty_like(left)
    products = [lambda: np.matmul(left, right, out=out), *_one_dnn_matmul(left, right)]
    return lambda: 2 * _CPU_SIDE**3 / min(map(seconds_of, products)) / 1e9


def _one_dnn_matmul(left: np.ndarray, right: np.ndarray) -> list[Callable[[], object]]:
    """Return the same product as a 1x1 convolution of our plugin; empty if it cannot be loaded."""
    from kernels.ops.convolution.function import ConvolutionGeometry, convolution
    from kernels.plugin import load_plugin
    from kernels.runtime import flow

    if not load_plugin("auto").loaded:
        return []
    x = flow.tensor(left.reshape(1, _CPU_SIDE, 1, _CPU_SIDE))
    weight = flow.tensor(np.ascontiguousarray(right.T).reshape(_CPU_SIDE, _CPU_SIDE, 1, 1))
    geometry = ConvolutionGeometry()

    def product() -> np.ndarray:
        result: np.ndarray = convolution(x, weight, geometry)[0, 0, 0].numpy()  # synchronises
        return result

    return [product]


def _cpu_copy(threads: int) -> Callable[[], float]:
    source, destination = np.ones(_CPU_BYTES, np.uint8), np.zeros(_CPU_BYTES, np.uint8)
    pool = ThreadPoolExecutor(threads)
    return lambda: 2 * _CPU_BYTES / seconds_of(lambda: parallel_copy(destination, source, pool, threads)) / 1e9


def _prepare_gpu(device: str) -> dict[str, str]:
    from graph_train.host.devices import select_device
    from kernels.runtime import flow

    name = select_device(device)
    values = np.random.default_rng(0).random((_GPU_SIDE, _GPU_SIDE), np.float32)
    for label, dtype in (("float32 matmul", np.float32), ("float16 matmul", np.float16)):
        _runners[label] = _gpu_matmul(flow, flow.tensor(values.astype(dtype), device=name))
    source = flow.tensor(np.zeros(_GPU_BYTES, np.uint8), device=name)
    _runners["copy"] = lambda: 2 * _GPU_BYTES / seconds_of(source.clone, flow.cuda.synchronize) / 1e9
    return {"float32 matmul": "GFLOP/s", "float16 matmul": "GFLOP/s", "copy": "GB/s"}


def _gpu_matmul(flow: Any, matrix: Any) -> Callable[[], float]:
    return lambda: 2 * _GPU_SIDE**3 / seconds_of(lambda: flow.matmul(matrix, matrix), flow.cuda.synchronize) / 1e9


def once(kind: str) -> float:
    """Return one measurement in the unit returned by `prepare`."""
    return _runners[kind]()


if __name__ == "__main__":
    serve({"prepare": prepare, "once": once})

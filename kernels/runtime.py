"""The one place that makes OneFlow importable; every module of the project says `from kernels.runtime import flow`.

The PyPI wheel of OneFlow 0.9.0 links against CUDA 11 libraries that it does not declare and that are not on the
loader's path, even for CPU-only work. They come from the `nvidia-*-cu11` wheels and are loaded here, in dependency
order, before OneFlow itself.
"""

import ctypes
import importlib.metadata
import importlib.util
import os
import resource
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

_CUDA_LIBRARIES = (
    ("nvidia.cublas", "libcublasLt.so.11"),
    ("nvidia.cublas", "libcublas.so.11"),
    ("nvidia.cudnn", "libcudnn.so.8"),
    ("nvidia.cudnn", "libcudnn_ops_infer.so.8"),
    ("nvidia.cudnn", "libcudnn_cnn_infer.so.8"),
    ("nvidia.cudnn", "libcudnn_ops_train.so.8"),
    ("nvidia.cudnn", "libcudnn_cnn_train.so.8"),
)


_NCCL = ("nvidia.nccl", "libnccl.so.2")
_NCCL_DISTRIBUTION = "nvidia-nccl-cu11"


def _library_folder(package: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations))) / "lib"


def _preload_cuda_libraries() -> None:
    """Loads what OneFlow's shared objects need; a library that the system provides itself may be missing here.

    OneFlow's wheel carries NCCL 2.12, which has no code for Hopper. Where a newer one is installed (the extra "nccl"),
    its functions are found first, because it is loaded first.
    """
    for package, name in (*((_NCCL,) if _has_nccl() else ()), *_CUDA_LIBRARIES):
        folder = _library_folder(package)
        if folder is not None and (folder / name).exists():
            ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL)


def _has_nccl() -> bool:
    """False also for the build for CUDA 12, which PyTorch installs in the same folder."""
    try:
        importlib.metadata.distribution(_NCCL_DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


_M_MMAP_THRESHOLD = -3
_OWN_PAGES_BYTES = 256 * 1024


def _return_large_blocks() -> None:
    """Blocks of 256 KiB and more get pages of their own, which go back to the system when they are freed.

    glibc raises that bound to the largest block that was ever freed, up to 32 MB. From then on the buffers of batches,
    whose sizes vary, lie in the heaps of dozens of threads, which are split ever finer: on BCCD at 96 px a training
    grew from 0.8 to 1.4 GB in 90 epochs, and stays below 1 GB with a fixed bound. A user's own setting wins.
    """
    if "MALLOC_MMAP_THRESHOLD_" in os.environ or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # absent from other C libraries
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _OWN_PAGES_BYTES)


_LEAST_ADDRESS_BYTES = 7 * 10**9
"""What libraries, threads and a tiny network map, 6.7 GB on two cores. With less some of them wait for ever."""


def _require_addresses() -> None:
    """Refuses to begin under a limit of addresses that OneFlow and DALI cannot keep.

    Raises:
        MemoryError: `ulimit -v` allows too little.
    """
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY and limit < _LEAST_ADDRESS_BYTES:
        raise MemoryError(f"OneFlow and DALI need {_LEAST_ADDRESS_BYTES / 1e9:.0f} GB of addresses")


def _import_oneflow() -> Any:
    _require_addresses()
    _return_large_blocks()
    # Both must stand before the first CUDA call and the first OpenMP region; a user's own setting wins.
    os.environ.setdefault("CUDA_MODULE_LOADING", "LAZY")
    # OpenMP threads that spin for long would fight OneFlow's own for the cores. But a step has a thousand parallel
    # regions, microseconds apart, and waking a thread takes longer than that: they spin for 24 microseconds.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    _preload_cuda_libraries()
    with StderrFilter():
        import oneflow
    _restore_sigint_handler()
    return oneflow


def _restore_sigint_handler() -> None:
    """OneFlow ends the process at SIGINT, with exit code 255 and nothing told; Python's own handler is put back."""
    if threading.current_thread() is threading.main_thread():
        handler = signal.getsignal(signal.SIGINT)
        if handler is not None:  # None: one that Python did not install
            signal.signal(signal.SIGINT, handler)


_GPU_DRIVER = Path("/proc/driver/nvidia")
_NOTES = (b"libibverbs not available, ibv_fork_init skipped",)
_NOTES_WITHOUT_GPU = (b" cuda_device_descriptor_class.cpp:", b" cuda_device_manager_factory.cpp:")


class StderrFilter:
    """Context manager that drops known harmless lines of OneFlow's native code from stderr: that there is no InfiniBand
    and, without an NVIDIA driver, no CUDA. All other lines appear when the context ends."""

    def __enter__(self) -> None:
        sys.stderr.flush()
        self._saved, self._kept = os.dup(2), tempfile.TemporaryFile()
        os.dup2(self._kept.fileno(), 2)

    def __exit__(self, *_: object) -> None:
        sys.stderr.flush()
        os.dup2(self._saved, 2)
        os.close(self._saved)
        hidden = _NOTES if _GPU_DRIVER.exists() else _NOTES + _NOTES_WITHOUT_GPU
        with self._kept:
            self._kept.seek(0)
            for line in self._kept:
                if not any(note in line for note in hidden):
                    os.write(2, line)


flow: Any = _import_oneflow()
"""The `oneflow` module, ready to use."""
Tensor = Any
"""`oneflow.Tensor`; OneFlow ships no type information, so the checker sees Any. Docstrings give shapes and dtypes."""

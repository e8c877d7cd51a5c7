"""Import of OneFlow; all modules use `from kernels.runtime import flow`.

The PyPI wheel of OneFlow 0.9.0 links against CUDA 11 libraries that it does not declare, even for CPU-only use. They
come from the `nvidia-*-cu11` wheels and are loaded here, in dependency order, before OneFlow itself. Process settings
are made in `kernels.host.process_settings`. OneFlow's import sets missing rank variables (such as `RANK`), which its
native code reads later.
"""

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import os
import resource
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kernels.host.cuda_devices import has_driver_module
from kernels.host.process_settings import mark_oneflow_loaded

_CUDA_LIBRARIES = (
    ("nvidia.cublas", "libcublasLt.so.11"),
    ("nvidia.cublas", "libcublas.so.11"),
    ("nvidia.cudnn", "libcudnn.so.8"),
    ("nvidia.cudnn", "libcudnn_ops_infer.so.8"),
    ("nvidia.cudnn", "libcudnn_cnn_infer.so.8"),
    ("nvidia.cudnn", "libcudnn_ops_train.so.8"),
    ("nvidia.cudnn", "libcudnn_cnn_train.so.8"),
)
_NVRTC = ("nvidia.cuda_nvrtc", "libnvrtc.so.11.2")
_NCCL = ("nvidia.nccl", "libnccl.so.2")
_NCCL_DISTRIBUTION = "nvidia-nccl-cu11"
_CUDNN_9, _CUDNN_9_DISTRIBUTION = ("nvidia.cudnn", "libcudnn.so.9"), "nvidia-cudnn-cu12"


def _library_folder(package: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations))) / "lib"


def _preload_cuda_libraries() -> None:
    """Load the libraries that OneFlow links against; missing ones may be provided by the system.

    OneFlow's wheel contains NCCL 2.12, which has no code for Hopper. Where a newer one is installed (the extra "nccl"),
    its functions are found first, because it is loaded first. cuDNN opens NVRTC on demand, but does not search the
    folder of its wheel, so it must be loaded already.
    """
    on_gpus = (*((_NCCL,) if has_newer_nccl() else ()), *((_NVRTC,) if _has_driver() else ()))
    for package, name in (*on_gpus, *_CUDA_LIBRARIES):
        folder = _library_folder(package)
        if folder is not None and (folder / name).exists():
            ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL)


def _has_driver() -> bool:
    """Return whether NVIDIA's driver is installed, in which case OneFlow loads it anyway."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def has_newer_nccl() -> bool:
    """Return whether NCCL for CUDA 11 is installed; PyTorch's, for CUDA 12, has the same folder."""
    return _is_installed(_NCCL_DISTRIBUTION)


def newer_cudnn() -> Path | None:
    """Return the path of cuDNN 9 (the extra "blackwell"), or None if it is not installed."""
    package, name = _CUDNN_9
    folder = _library_folder(package) if _is_installed(_CUDNN_9_DISTRIBUTION) else None
    return folder / name if folder is not None and (folder / name).exists() else None


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


_MIN_ADDRESS_BYTES = 7 * 10**9
"""Libraries, threads and a tiny network map 6.7 GB of address space on two cores; with less, some of them hang."""


_MIN_DATA_BYTES = 1_200_000_000
"""A tiny training on two cores runs with 1.2 GB of data; with less, libraries abort the process."""


def _require_memory_limits() -> None:
    """Raise if a limit on address space or data is too low for OneFlow and DALI.

    Raises:
        MemoryError: `ulimit -v` or `ulimit -d` allows too little.
    """
    for kind, least, what in (
        (resource.RLIMIT_AS, _MIN_ADDRESS_BYTES, "address space"),
        (resource.RLIMIT_DATA, _MIN_DATA_BYTES, "data"),
    ):
        limit = resource.getrlimit(kind)[0]
        if limit != resource.RLIM_INFINITY and limit < least:
            raise MemoryError(f"OneFlow and DALI need {least / 1e9:g} GB of {what}")


_PROC = Path("/proc")


def _require_proc() -> None:
    """Raise if procfs is not mounted, without which OneFlow aborts the process.

    Raises:
        OSError: it is not mounted.
    """
    if not all((_PROC / name).exists() for name in ("self/stat", "meminfo")):
        raise OSError(f"{_PROC} is not mounted, and OneFlow cannot run without it; mount it: mount -t proc proc /proc")


def _import_oneflow() -> Any:
    _require_memory_limits()
    _require_proc()
    _preload_cuda_libraries()
    with StderrFilter(), _interrupts_delayed():
        import oneflow

        mark_oneflow_loaded()
        _restore_sigint_handler()
    return oneflow


@contextlib.contextmanager
def _interrupts_delayed() -> Iterator[None]:
    """Delay SIGINT, because OneFlow's handler, which is in place for most of its import, ends the process silently."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _restore_sigint_handler() -> None:
    """Restore Python's SIGINT handler: OneFlow's ends the process with exit code 255 and no message."""
    if threading.current_thread() is threading.main_thread():
        handler = signal.getsignal(signal.SIGINT)
        if handler is not None:  # None: one that Python did not install
            signal.signal(signal.SIGINT, handler)


_HIDDEN_MESSAGES = (b"libibverbs not available, ibv_fork_init skipped",)
_HIDDEN_WITHOUT_GPU = (b" cuda_device_descriptor_class.cpp:", b" cuda_device_manager_factory.cpp:")


class StderrFilter:
    """Context manager that drops harmless lines of OneFlow's native code from stderr.

    They are about missing InfiniBand and, without an NVIDIA driver, missing CUDA. All other lines appear when the
    context ends."""

    def __enter__(self) -> None:
        sys.stderr.flush()
        # In memory, because there may be no writable folder.
        self._saved, self._kept = os.dup(2), os.fdopen(os.memfd_create("stderr"), "w+b")
        os.dup2(self._kept.fileno(), 2)

    def __exit__(self, *_: object) -> None:
        sys.stderr.flush()
        os.dup2(self._saved, 2)
        os.close(self._saved)
        hidden = _HIDDEN_MESSAGES if has_driver_module() else _HIDDEN_MESSAGES + _HIDDEN_WITHOUT_GPU
        with self._kept:
            self._kept.seek(0)
            for line in self._kept:
                if not any(note in line for note in hidden):
                    os.write(2, line)


flow: Any = _import_oneflow()
"""The `oneflow` module."""
Tensor = Any
"""`oneflow.Tensor`; OneFlow ships no type information, so the checker sees Any. Docstrings give shapes and dtypes."""

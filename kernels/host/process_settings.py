"""Process settings for OneFlow; importing this module or `kernels.runtime` changes none of them."""

import ctypes
import os
from collections.abc import Mapping

_MMAP_THRESHOLD_BYTES = 256 * 1024
_VARIABLES = {
    # OpenMP threads that spin for long compete with OneFlow's threads. But a step has a thousand parallel regions,
    # microseconds apart, and waking a thread takes longer: spin for 24 microseconds.
    "OMP_WAIT_POLICY": "passive",
    "GOMP_SPINCOUNT": "1000",
}
_M_MMAP_THRESHOLD = -3
_MAX_THREADS = 4096
_loaded_in = 0
"""The process that has loaded OneFlow; 0 if none has."""


def mark_oneflow_loaded() -> None:
    """Record that this process has loaded OneFlow and started its threads."""
    global _loaded_in  # noqa: PLW0603 - the module is loaded once in a process, and copied by a fork
    _loaded_in = os.getpid()


def require_unforked() -> None:
    """Raise in a process that was forked after OneFlow was loaded, where calls would hang.

    Raises:
        ValueError: this is such a process; OneFlow's threads exist in its parent only.
    """
    if _loaded_in not in (0, os.getpid()):
        raise ValueError(
            "this process was forked after OneFlow was loaded, and OneFlow's threads do not survive a fork; start "
            'processes with multiprocessing.get_context("spawn"), or load OneFlow after the fork'
        )


def configure_process() -> None:
    """Set environment variables and the allocator for OneFlow; the user's own settings win.

    Every entry point calls it before OneFlow is imported, because OpenMP reads its variables when it is loaded. A
    second call changes nothing.

    Raises:
        ValueError: OMP_NUM_THREADS is so large that OpenMP would abort the process; or see `require_unforked`.
    """
    require_unforked()
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdecimal() and int(threads) > _MAX_THREADS:
        raise ValueError(
            f"OMP_NUM_THREADS={threads}: at most {_MAX_THREADS} threads are supported; use the number of cores"
        )
    for name, value in _VARIABLES.items():
        os.environ.setdefault(name, value)
    if not _sets_mmap_threshold(os.environ):
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # absent from other C libraries
        if mallopt is not None:
            mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES)


def with_process_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment with the same settings, for a child process."""
    threshold = {} if _sets_mmap_threshold(environment) else {"MALLOC_MMAP_THRESHOLD_": str(_MMAP_THRESHOLD_BYTES)}
    return {**_VARIABLES, **threshold, **environment}


def _sets_mmap_threshold(environment: Mapping[str, str]) -> bool:
    """Return whether the user has set glibc's mmap threshold, which we set to 256 KiB.

    Blocks above the threshold are returned to the system when freed. By default glibc raises it to the largest block
    ever freed, up to 32 MB. Batch buffers of varying size then fragment the heaps of dozens of threads: on BCCD at 96
    px a training grew from 0.8 to 1.4 GB in 90 epochs, and stays below 1 GB with a fixed threshold.
    """
    return "MALLOC_MMAP_THRESHOLD_" in environment or "glibc.malloc" in environment.get("GLIBC_TUNABLES", "")

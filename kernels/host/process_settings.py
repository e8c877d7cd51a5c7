"""Process settings for OneFlow; importing this module or `kernels.runtime` changes none of them."""

import os
import re
from collections.abc import Mapping

from kernels.host.heap import MMAP_THRESHOLD_BYTES, fix_mmap_threshold, is_set_by_user

_VARIABLES = {
    # OpenMP threads that spin for long compete with OneFlow's threads. But a step has a thousand parallel regions,
    # microseconds apart, and waking a thread takes longer: spin for 24 microseconds.
    "OMP_WAIT_POLICY": "passive",
    "GOMP_SPINCOUNT": "1000",
}
_MAX_THREADS = 4096
_STACK_VARIABLES = ("OMP_STACKSIZE", "GOMP_STACKSIZE")
_STACK_SIZE = re.compile(r"\s*\+?([0-9]{1,20})\s*([bkmg]?)\s*", re.IGNORECASE)
_STACK_UNITS = {"b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "": 1 << 10}
_MAX_STACK_BYTES = 1 << 30
_CRASHING_VARIABLES = ("ONEFLOW_DEBUG", "ONEFLOW_DEBUG_MODE", "ONEFLOW_PYTHON_STACK_GETTER")
_TRUE = frozenset({"1", "true", "yes", "on", "y"})
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


def requested_threads() -> int:
    """Return the number in OMP_NUM_THREADS as OpenMP reads it; 0 if there is none, for one thread per core."""
    return _number_in(os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]) or 0


def _number_in(text: str) -> int | None:
    digits = text.strip().removeprefix("+")
    return int(digits) if digits.isascii() and digits.isdecimal() else None


def _apply_thread_limits() -> None:
    """Set OMP_NUM_THREADS to what OpenMP's limits allow: oneDNN waits forever for a thread that a limit takes away.

    Raises:
        ValueError: OpenMP would choose the number of threads of each parallel region.
    """
    if os.environ.get("OMP_DYNAMIC", "").strip().lower() == "true":
        raise ValueError("OMP_DYNAMIC=true: the kernels need a fixed number of threads; use OMP_NUM_THREADS instead")
    threads = requested_threads() or len(os.sched_getaffinity(0))
    limit = _number_in(os.environ.get("OMP_THREAD_LIMIT", "")) or threads
    if _number_in(os.environ.get("OMP_MAX_ACTIVE_LEVELS", "")) == 0:
        limit = 1
    if limit < threads:
        os.environ["OMP_NUM_THREADS"] = str(limit)


def configure_process() -> None:
    """Set environment variables and the allocator for OneFlow; the user's own settings take precedence.

    Every entry point calls it before OneFlow is imported, because OpenMP reads its variables when it is loaded. A
    second call changes nothing.

    Raises:
        ValueError: OMP_NUM_THREADS or a stack size is so large that OpenMP would abort the process; the number of
            threads may change (OMP_DYNAMIC); a variable makes OneFlow crash; or see `require_unforked`.
    """
    require_unforked()
    if requested_threads() > _MAX_THREADS:
        raise ValueError(
            f"OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']:.60}: at most {_MAX_THREADS} threads are supported; use "
            "the number of cores"
        )
    for name in _STACK_VARIABLES:
        size = _STACK_SIZE.fullmatch(os.environ.get(name, ""))
        if size and int(size[1]) * _STACK_UNITS[size[2].lower()] > _MAX_STACK_BYTES:
            raise ValueError(f"{name}={os.environ[name]:.60}: at most 1G per thread is supported; remove it")
    for name in _CRASHING_VARIABLES:
        if os.environ.get(name, "").lower() in _TRUE:
            raise ValueError(f"{name}={os.environ[name]}: OneFlow 0.9.0 crashes with it; unset it")
    _apply_thread_limits()
    for name, value in _VARIABLES.items():
        os.environ.setdefault(name, value)
    fix_mmap_threshold()


def with_process_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment with the same settings, for a child process."""
    threshold = {"MALLOC_MMAP_THRESHOLD_": str(MMAP_THRESHOLD_BYTES)}
    return {**_VARIABLES, **({} if is_set_by_user(environment, "mmap_threshold") else threshold), **environment}

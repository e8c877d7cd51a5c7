"""Settings of glibc's allocator; the user's own take precedence. With another C library, nothing is changed."""

import contextlib
import ctypes
import os
from collections.abc import Iterator, Mapping

MMAP_THRESHOLD_BYTES = 256 * 1024
"""Blocks above the threshold are returned to the system when freed.

By default glibc raises it to the largest block ever freed, up to 32 MB. Batch buffers of varying size then fragment the
heaps of dozens of threads: on BCCD at 96 px a training grew from 0.8 to 1.4 GB in 90 epochs, and stays below 1 GB with
a fixed threshold.
"""
_LIBC = ctypes.CDLL(None)
# Parameters of mallopt, and their values unless a graph is compiled: at first glibc's defaults.
_M_MXFAST, _M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = 1, -1, -2, -3
_usual = {_M_MXFAST: 16 * ctypes.sizeof(ctypes.c_size_t), _M_TRIM_THRESHOLD: 128 * 1024, _M_TOP_PAD: 128 * 1024}
_KEPT_BLOCK_BYTES, _KEPT_BYTES = 4 << 20, 64 << 20
# Small blocks are merged when freed, instead of all of them at each large block; the heap grows in large steps.
_FOR_COMPILING = {_M_MXFAST: 0, _M_TRIM_THRESHOLD: 16 << 20, _M_TOP_PAD: 4 << 20}


def fix_mmap_threshold() -> None:
    """Set glibc's mmap threshold to `MMAP_THRESHOLD_BYTES` for this process."""
    if not is_set_by_user(os.environ, "mmap_threshold"):
        _set({_M_MMAP_THRESHOLD: MMAP_THRESHOLD_BYTES})


def is_set_by_user(environment: Mapping[str, str], name: str) -> bool:
    """Return whether an environment sets a parameter of the allocator, such as `mmap_threshold`."""
    return f"MALLOC_{name.upper()}_" in environment or "glibc.malloc" in environment.get("GLIBC_TUNABLES", "")


def keep_freed_blocks() -> None:
    """Keep freed blocks of up to 4 MB for later allocations of this process.

    Inference allocates and frees the same blocks for each image; returned to the system, their pages would have to be
    cleared again: `graph-predict` then takes up to a third longer.
    """
    if not any(is_set_by_user(os.environ, name) for name in ("mmap_threshold", "trim_threshold")):
        _usual[_M_TRIM_THRESHOLD] = _KEPT_BYTES
        _set({_M_MMAP_THRESHOLD: _KEPT_BLOCK_BYTES, _M_TRIM_THRESHOLD: _KEPT_BYTES})


@contextlib.contextmanager
def heap_for_compiling() -> Iterator[None]:
    """Make the many small blocks of compiling a graph cheaper, and return freed memory to the system at the end.

    Compiling yolov5n's step takes a tenth less time with it.
    """
    fits = not any(is_set_by_user(os.environ, name) for name in ("trim_threshold", "top_pad"))
    if fits:
        _set(_FOR_COMPILING)
    try:
        yield
    finally:
        if fits:
            _set(_usual)
        if hasattr(_LIBC, "malloc_trim"):
            _LIBC.malloc_trim(0)


def _set(parameters: Mapping[int, int]) -> None:
    if hasattr(_LIBC, "mallopt"):
        for parameter, value in parameters.items():
            _LIBC.mallopt(parameter, value)

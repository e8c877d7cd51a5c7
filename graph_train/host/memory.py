"""Memory use of this process, and free memory of a GPU."""

import ctypes
from pathlib import Path
from typing import NamedTuple


def resident_bytes() -> int:
    """Return this process's resident set size in bytes."""
    return _status("VmRSS")


def peak_bytes() -> int:
    """Return this process's peak resident set size in bytes."""
    return _status("VmHWM")


def _status(name: str) -> int:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields[name].split()[0]) * 1024


class DeviceMemory(NamedTuple):
    """Memory of a GPU in bytes."""

    free: int
    total: int


def device_memory(number: int) -> DeviceMemory:
    """Query a GPU's memory, over all processes, from its driver.

    Args:
        number: index of the GPU among those visible to this process.
    Raises:
        OSError: there is no driver, or a driver call fails.
    """
    driver = ctypes.CDLL("libcuda.so.1")
    device, context = ctypes.c_int(), ctypes.c_void_p()
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    _check(driver.cuInit(0), "start")
    _check(driver.cuDeviceGet(ctypes.byref(device), number), f"find GPU {number}")
    _check(driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device), f"open GPU {number}")
    try:
        _check(driver.cuCtxPushCurrent_v2(context), f"use GPU {number}")
        _check(driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)), "measure memory")
        driver.cuCtxPopCurrent_v2(ctypes.byref(context))
    finally:
        driver.cuDevicePrimaryCtxRelease_v2(device)
    return DeviceMemory(free.value, total.value)


def _check(status: int, action: str) -> None:
    if status:
        raise OSError(f"the CUDA driver cannot {action}: error {status}")

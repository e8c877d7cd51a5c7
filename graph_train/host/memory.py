"""How much memory this process takes, and how much of a GPU's is free."""

import ctypes
from pathlib import Path
from typing import NamedTuple


def resident_bytes() -> int:
    """Return the bytes of this process that lie in memory now."""
    return _status("VmRSS")


def peak_bytes() -> int:
    """Return the most bytes of this process that ever lay in memory at once."""
    return _status("VmHWM")


def _status(name: str) -> int:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields[name].split()[0]) * 1024


class DeviceMemory(NamedTuple):
    """Memory of a GPU in bytes."""

    free: int
    total: int


def device_memory(number: int) -> DeviceMemory:
    """Return the memory of a GPU, over all processes, as its driver tells.

    Args:
        number: of the GPU among those that this process may see.
    Raises:
        OSError: there is no driver, or it does not answer.
    """
    driver = ctypes.CDLL("libcuda.so.1")
    device, context = ctypes.c_int(), ctypes.c_void_p()
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    _asked(driver.cuInit(0), "start")
    _asked(driver.cuDeviceGet(ctypes.byref(device), number), f"find GPU {number}")
    _asked(driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device), f"open GPU {number}")
    try:
        _asked(driver.cuCtxPushCurrent_v2(context), f"use GPU {number}")
        _asked(driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)), "measure memory")
        driver.cuCtxPopCurrent_v2(ctypes.byref(context))
    finally:
        driver.cuDevicePrimaryCtxRelease_v2(device)
    return DeviceMemory(free.value, total.value)


def _asked(status: int, what: str) -> None:
    if status:
        raise OSError(f"the CUDA driver cannot {what}: error {status}")

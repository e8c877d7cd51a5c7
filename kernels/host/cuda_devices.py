"""The CUDA devices of this machine, queried by the driver API without the CUDA runtime."""

import ctypes
from functools import cache

_DRIVER = "libcuda.so.1"
_MAJOR, _MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*."""


@cache
def compute_capabilities() -> tuple[tuple[int, int], ...]:
    """Return (major, minor) of each device by ordinal; empty without driver or devices."""
    try:
        driver = ctypes.CDLL(_DRIVER)
    except OSError:
        return ()
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return ()
    return tuple(
        (_attribute(driver, device, _MAJOR), _attribute(driver, device, _MINOR)) for device in range(count.value)
    )


def _attribute(driver: ctypes.CDLL, ordinal: int, which: int) -> int:
    device, value = ctypes.c_int(), ctypes.c_int()
    for result in (
        driver.cuDeviceGet(ctypes.byref(device), ordinal),
        driver.cuDeviceGetAttribute(ctypes.byref(value), which, device),
    ):
        if result != 0:
            raise OSError(f"{_DRIVER}: cannot query device {ordinal} (error {result})")
    return value.value

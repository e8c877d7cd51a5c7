"""The CUDA devices of this machine, queried by the driver API without the CUDA runtime."""

import ctypes
from functools import cache
from pathlib import Path

_DRIVER = "libcuda.so.1"
MAX_CUDNN_8_CAPABILITY = 90
"""The highest compute capability, times ten, that OneFlow's cuDNN, 8.9, supports."""
_DRIVER_MODULE = Path("/proc/driver/nvidia")
_MAJOR, _MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*."""
_MIN_CUDA = 12000
"""The CUDA version, 1000 * major + 10 * minor, that DALI needs of the driver."""


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


def has_driver_module() -> bool:
    """Return whether the kernel module of NVIDIA's driver is loaded, which is so on a host with a GPU."""
    return _DRIVER_MODULE.exists()


def driver_problem() -> str:
    """Return why NVIDIA's driver cannot be used, with a remedy if there is one, or "" if it can."""
    try:
        driver = ctypes.CDLL(_DRIVER)
    except OSError as error:
        return f"NVIDIA's driver is not installed ({error})"
    version = ctypes.c_int()
    if driver.cuDriverGetVersion(ctypes.byref(version)) == 0 and version.value < _MIN_CUDA:
        supported = f"{version.value // 1000}.{version.value % 1000 // 10}"
        return f"NVIDIA's driver supports CUDA {supported}, but 12.0 is needed; update it to version 525 or newer"
    result = driver.cuInit(0)
    return "" if result == 0 else f"NVIDIA's driver does not start: {_error_text(driver, result)} ({result})"


def _error_text(driver: ctypes.CDLL, result: int) -> str:
    text = ctypes.c_char_p()
    driver.cuGetErrorString(result, ctypes.byref(text))
    return (text.value or b"unknown error").decode(errors="replace")


def _attribute(driver: ctypes.CDLL, ordinal: int, which: int) -> int:
    device, value = ctypes.c_int(), ctypes.c_int()
    for result in (
        driver.cuDeviceGet(ctypes.byref(device), ordinal),
        driver.cuDeviceGetAttribute(ctypes.byref(value), which, device),
    ):
        if result != 0:
            raise OSError(f"{_DRIVER}: cannot query device {ordinal} (error {result})")
    return value.value

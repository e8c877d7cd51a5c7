"""Devices for launching kernels: a GPU by the driver API, or the emulated device of the plugin's test build."""

import ctypes
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

DRIVER = "libcuda.so.1"
_MULTIPROCESSORS = 16
"""CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT."""
_REPEATS = 20


class Device(Protocol):
    """A device's memory and launches, which are executed in order."""

    name: str

    def put(self, array: np.ndarray) -> int:
        """Copy an array to the device and return its address."""

    def get(self, address: int, like: np.ndarray) -> np.ndarray:
        """Copy an array from the device."""

    def launch(self, kernel: str, grid: tuple[int, int, int], threads: int, args: ctypes.Structure) -> None:
        """Start a kernel."""

    def launch_cooperative(self, kernel: str, max_blocks: int, threads: int, args: ctypes.Structure) -> None:
        """Start a kernel whose blocks wait for each other."""

    def microseconds(self, start: Callable[[], None]) -> float | None:
        """Return the mean time of the launches by `start`; None if it is meaningless."""

    def free_all(self) -> None:
        """Free all memory of `put`."""


class Gpu:
    """GPU 0, without OneFlow or the CUDA runtime."""

    def __init__(self, images: list[bytes]) -> None:
        self._driver = ctypes.CDLL(DRIVER)
        self._call("cuInit", 0)
        self._handle, context = ctypes.c_int(), ctypes.c_void_p()
        self._call("cuDeviceGet", ctypes.byref(self._handle), 0)
        text = ctypes.create_string_buffer(100)
        self._call("cuDeviceGetName", text, len(text), self._handle)
        self.name = text.value.decode()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._handle)
        self._call("cuCtxSetCurrent", context)
        self._modules = [ctypes.c_void_p() for _ in images]
        for module, image in zip(self._modules, images, strict=True):
            self._call("cuModuleLoadData", ctypes.byref(module), image)
        self._functions: dict[str, ctypes.c_void_p] = {}
        self._addresses: list[int] = []

    def driver_version(self) -> str:
        """Return the newest CUDA version that the driver supports."""
        version = ctypes.c_int()
        self._call("cuDriverGetVersion", ctypes.byref(version))
        return f"{version.value // 1000}.{version.value % 1000 // 10}"

    def works(self) -> bool:
        """Return whether more kernels can be launched, which is not the case after an illegal address."""
        return int(self._driver.cuCtxSynchronize()) == 0

    def _call(self, name: str, *arguments: Any) -> None:
        result = getattr(self._driver, name)(*arguments)
        if result != 0:
            text = ctypes.c_char_p()
            self._driver.cuGetErrorString(result, ctypes.byref(text))
            raise RuntimeError(f"{name}: {(text.value or b'unknown error').decode()} ({result})")

    def _function(self, kernel: str) -> ctypes.c_void_p:
        known = self._functions.get(kernel)
        if known is not None:
            return known
        function = ctypes.c_void_p()
        for module in self._modules:
            if self._driver.cuModuleGetFunction(ctypes.byref(function), module, kernel.encode()) == 0:
                self._functions[kernel] = function
                return function
        raise RuntimeError(f"no kernel {kernel}")

    def put(self, array: np.ndarray) -> int:
        address, data = ctypes.c_uint64(), np.ascontiguousarray(array)
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(data.nbytes, 1)))
        source = ctypes.c_void_p(data.ctypes.data)
        self._call("cuMemcpyHtoD_v2", address, source, ctypes.c_size_t(data.nbytes))
        self._addresses.append(address.value)
        return address.value

    def free_all(self) -> None:
        for address in self._addresses:
            self._call("cuMemFree_v2", ctypes.c_uint64(address))
        self._addresses = []

    def get(self, address: int, like: np.ndarray) -> np.ndarray:
        result = np.empty_like(like)
        target = ctypes.c_void_p(result.ctypes.data)
        self._call("cuMemcpyDtoH_v2", target, ctypes.c_uint64(address), ctypes.c_size_t(result.nbytes))
        return result

    def launch(self, kernel: str, grid: tuple[int, int, int], threads: int, args: ctypes.Structure) -> None:
        parameters = (ctypes.c_void_p * 1)(ctypes.addressof(args))
        self._call("cuLaunchKernel", self._function(kernel), *grid, threads, 1, 1, 0, None, parameters, None)

    def launch_cooperative(self, kernel: str, max_blocks: int, threads: int, args: ctypes.Structure) -> None:
        parameters = (ctypes.c_void_p * 1)(ctypes.addressof(args))
        function, each, processors = self._function(kernel), ctypes.c_int(), ctypes.c_int()
        occupancy = "cuOccupancyMaxActiveBlocksPerMultiprocessor"
        self._call(occupancy, ctypes.byref(each), function, threads, ctypes.c_size_t(0))
        self._call("cuDeviceGetAttribute", ctypes.byref(processors), _MULTIPROCESSORS, self._handle)
        blocks = max(1, min(max_blocks, each.value * processors.value))
        self._call("cuLaunchCooperativeKernel", function, blocks, 1, 1, threads, 1, 1, 0, None, parameters)

    def microseconds(self, start: Callable[[], None]) -> float | None:
        begin, end, milliseconds = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_float()
        for event in (begin, end):
            self._call("cuEventCreate", ctypes.byref(event), 0)
        start()
        self._call("cuEventRecord", begin, None)
        for _ in range(_REPEATS):
            start()
        self._call("cuEventRecord", end, None)
        self._call("cuEventSynchronize", end)
        self._call("cuEventElapsedTime", ctypes.byref(milliseconds), begin, end)
        for event in (begin, end):
            self._call("cuEventDestroy_v2", event)
        return 1000 * milliseconds.value / _REPEATS


class EmulatedGpu:
    """The same kernels compiled for the CPU, using host memory."""

    name = "emulated"

    def __init__(self) -> None:
        from kernels.plugin import load_plugin, plugin_library

        load_plugin("emulated-cuda")
        self._library = plugin_library()
        self._kept: list[np.ndarray] = []

    def put(self, array: np.ndarray) -> int:
        room = np.zeros(array.nbytes, np.uint8)  # exact size, so that AddressSanitizer detects overruns
        if room.ctypes.data % 16:
            room = np.zeros(array.nbytes + 16, np.uint8)
        self._kept.append(room)
        start = -room.ctypes.data % 16
        room[start : start + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        return int(room.ctypes.data) + start

    def get(self, address: int, like: np.ndarray) -> np.ndarray:
        return np.frombuffer(ctypes.string_at(address, like.nbytes), like.dtype).reshape(like.shape)

    def launch(self, kernel: str, grid: tuple[int, int, int], threads: int, args: ctypes.Structure) -> None:
        self._library.graph_train_check_launch(
            0, None, kernel.encode(), (ctypes.c_uint * 3)(*grid), threads, ctypes.byref(args)
        )

    def launch_cooperative(self, kernel: str, max_blocks: int, threads: int, args: ctypes.Structure) -> None:
        self._library.graph_train_check_launch_cooperative(
            0, None, kernel.encode(), ctypes.c_int64(max_blocks), threads, ctypes.byref(args)
        )

    def microseconds(self, start: Callable[[], None]) -> float | None:
        return None

    def free_all(self) -> None:
        self._kept = []

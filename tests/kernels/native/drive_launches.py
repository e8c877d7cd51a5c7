"""The host side of the CUDA kernels, driven against a recording driver, in a child process.

`RECORD=FILE python -m tests.kernels.native.drive_launches DRIVER SCENARIO`.
"""

import ctypes
import sys
from collections.abc import Callable, Mapping

from kernels.plugin import load_plugin, plugin_library

_Grid = ctypes.c_uint * 3


class Host:
    """The plugin's functions, with two images of device code per device: kernels "a..." and kernels "b..."."""

    def __init__(self, driver: str) -> None:
        load_plugin("require")
        self._library = plugin_library()
        self._library.graph_train_cuda_library(driver.encode())
        self._library.graph_train_cudnn_use(driver.encode())
        add_image = self._library.graph_train_cuda_add_image
        add_image.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int64]
        for device in (0, 1):
            for image in (b"a", b"b"):
                add_image(device, image, len(image))
        for name in ("table", "counters", "workspace", "cudnn_handle"):
            getattr(self._library, f"graph_train_check_{name}").restype = ctypes.c_void_p

    def launch(
        self, kernel: str, device: int, stream: int, *, grid: tuple[int, int, int], threads: int, args: int
    ) -> None:
        self._library.graph_train_check_launch(
            device, ctypes.c_void_p(stream), kernel.encode(), _Grid(*grid), threads, ctypes.byref(ctypes.c_int64(args))
        )

    def launch_cooperative(self, kernel: str, device: int, stream: int, max_blocks: int, threads: int) -> None:
        self._library.graph_train_check_launch_cooperative(
            device,
            ctypes.c_void_p(stream),
            kernel.encode(),
            ctypes.c_int64(max_blocks),
            threads,
            ctypes.byref(ctypes.c_int64(7)),
        )

    def table(self, device: int, stream: int, content: bytes) -> int:
        size = ctypes.c_int64(len(content))
        return int(self._library.graph_train_check_table(device, ctypes.c_void_p(stream), content, size))

    def counters(self, device: int, stream: int) -> int:
        return int(self._library.graph_train_check_counters(device, ctypes.c_void_p(stream)))

    def cudnn_handle(self, device: int, stream: int) -> int:
        return int(self._library.graph_train_check_cudnn_handle(device, ctypes.c_void_p(stream)))

    def output_size(self) -> list[int]:
        sizes, output = (ctypes.c_int64 * 19)(*[1] * 19), (ctypes.c_int * 4)()
        self._library.graph_train_cudnn_output_size(sizes, 0, output)
        return list(output)

    def workspace(self, device: int, stream: int, size: int) -> int:
        return int(self._library.graph_train_check_workspace(device, ctypes.c_void_p(stream), ctypes.c_int64(size)))


def launches(host: Host) -> None:
    """Launch on two devices from one thread, two images."""
    host.launch("add", 0, 5, grid=(70000, 2, 3), threads=256, args=1234567890123)
    host.launch("blur", 0, 6, grid=(1, 1, 1), threads=32, args=-1)
    host.launch("add", 1, 7, grid=(2, 1, 1), threads=128, args=2)
    host.launch("add", 0, 5, grid=(1, 1, 1), threads=256, args=3)


def cooperative(host: Host) -> None:
    """Launch as many blocks as fit, at most as many as there is work for."""
    host.launch_cooperative("add", 0, 5, 1000, 128)
    host.launch_cooperative("add", 0, 5, 3, 128)


def tables(host: Host) -> None:
    """Check that equal tables are shared, and that beyond 64 MiB per stream the least recently used are freed."""
    first = host.table(0, 5, b"first")
    assert host.table(0, 5, b"first") == first
    assert ctypes.string_at(first, 5) == b"first"
    assert host.table(0, 6, b"first") != first
    for number in range(200):
        host.table(0, 5, b"table%d" % number)
    large = [bytes([number]) * (30 << 20) for number in range(3)]
    for content in large[:2]:
        host.table(0, 5, content)
    assert host.table(0, 5, b"first") == first
    host.table(0, 5, large[2])
    assert host.table(0, 5, b"first") == first
    host.table(0, 5, large[2])


def counters(host: Host) -> None:
    """Check that each stream has two counters, zeroed once."""
    pair = host.counters(0, 5)
    assert host.counters(0, 5) == pair
    assert len({pair, host.counters(0, 6), host.counters(1, 5)}) == 3


def workspace(host: Host) -> None:
    """Check that the workspace synchronizes only when it grows."""
    block = host.workspace(1, 5, 1000)
    assert host.workspace(1, 5, 10) == block
    host.workspace(1, 5, 2000)


def newer_cudnn(host: Host) -> None:
    """Check that each stream has a handle of the newer cuDNN, whose functions are used."""
    handle = host.cudnn_handle(0, 5)
    assert host.cudnn_handle(0, 5) == handle
    assert len({handle, host.cudnn_handle(0, 6), host.cudnn_handle(1, 5)}) == 3
    assert host.output_size() == [1, 2, 3, 4]


SCENARIOS: Mapping[str, Callable[[Host], None]] = {
    function.__name__: function for function in (launches, cooperative, tables, counters, workspace, newer_cudnn)
}

if __name__ == "__main__":
    SCENARIOS[sys.argv[2]](Host(sys.argv[1]))

"""Common parts of the cases: results, conversion of activations, and launches."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tests.gpu.devices import Device

KINDS = ("f32", "bf16", "f16")
ROUNDING = {"f32": 2.0**-23, "bf16": 2.0**-8, "f16": 2.0**-10}


@dataclass(frozen=True)
class Line:
    """A line of the kit's table; `output` is the output of a failed command, for the JSON file."""

    stage: str
    name: str
    result: Literal["PASS", "FAIL", "SKIP"]
    seconds: float
    note: str
    output: str = ""


@dataclass(frozen=True)
class Launched:
    """Result of a case: pairs of the device's and NumPy's arrays, their error bound, and a function to launch again."""

    pairs: tuple[tuple[np.ndarray, np.ndarray], ...]
    relative: float
    absolute: float
    again: Callable[[], None]
    bytes_moved: int


def encode(values: np.ndarray, kind: str) -> np.ndarray:
    """Convert float32 to the bits of the device's activation type, rounding to nearest."""
    values = values.astype(np.float32)
    if kind == "bf16":
        bits = values.view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return values if kind == "f32" else values.astype(np.float16)


def decode(stored: np.ndarray) -> np.ndarray:
    """Convert the bits of the device's activation type to float32."""
    return (stored.astype(np.uint32) << 16).view(np.float32) if stored.dtype == np.uint16 else stored.astype(np.float32)


def random_numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def blocks(items: int, per_block: int) -> tuple[int, int, int]:
    return (items + per_block - 1) // per_block, 1, 1


def starter(
    device: Device, kernel: str, grid: tuple[int, int, int], threads: int, args: ctypes.Structure
) -> Callable[[], None]:
    """Launch once and return a function that launches again."""

    def start() -> None:
        device.launch(kernel, grid, threads, args)

    start()
    return start


def cooperative(
    device: Device, kernel: str, max_blocks: int, threads: int, args: ctypes.Structure
) -> Callable[[], None]:
    """Launch like `starter` a kernel whose blocks wait for each other."""

    def start() -> None:
        device.launch_cooperative(kernel, max_blocks, threads, args)

    start()
    return start

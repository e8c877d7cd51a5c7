"""Cases of upsampling and max pooling."""

from collections.abc import Sequence

import numpy as np

from tests.gpu.base import ROUNDING, Launched, blocks, decode, encode, random_numbers, starter
from tests.gpu.devices import Device
from tests.gpu.layouts import constant, structure

_POOLING = "ops/pooling/pooling.h"
_CHANNELS = (19, 24)
"""Numbers of channels that do not and do allow 16-byte accesses."""
_SHAPE = (2, 11, 13)
"""Number of images, rows and columns."""
_WINDOWS = ((5, 1, 2), (3, 2, 1))
"""Kernel, stride, padding."""


def _pixel_blocks(pixels: int, channels: int) -> tuple[int, int, int]:
    groups = blocks(channels, constant(_POOLING, "kPoolPerThread"))[0]
    return blocks(pixels * groups, constant(_POOLING, "kPoolThreads"))


def upsample(
    device: Device,
    kind: str,
    gradient: bool,
    shape: tuple[int, int, int] = _SHAPE,
    channel_numbers: Sequence[int] = _CHANNELS,
) -> Launched:
    """Upsample by two, and sum its gradient."""
    pairs, factor, (batch, rows, columns) = [], 2, shape
    for channels in channel_numbers:
        small = encode(random_numbers(*shape, channels), kind)
        large = small.repeat(factor, 1).repeat(factor, 2)
        given, want = small, decode(large)
        if gradient:
            given = encode(random_numbers(*large.shape, seed=1), kind)
            cells = decode(given).reshape(batch, rows, factor, columns, factor, channels)
            want = cells.astype(np.float64).sum((2, 4)).astype(np.float32)
        stored = encode(np.zeros_like(want), kind)
        args = structure(_POOLING, "UpsampleArgs")(
            device.put(given), device.put(stored), batch * rows, columns, channels, factor
        )
        grid = _pixel_blocks(batch * rows * columns, channels)
        name = f"upsample_{'grad_' if gradient else ''}{kind}"
        start = starter(device, name, grid, constant(_POOLING, "kPoolThreads"), args)
        pairs.append((decode(device.get(args.out, stored)), want))
    relative, absolute = (ROUNDING[kind], 1e-6) if gradient else (0, 0)
    return Launched(tuple(pairs), relative, absolute, start, small.nbytes + large.nbytes)


def _windows(x: np.ndarray, kernel: int, stride: int, padding: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the maximum of each window and its first index in the window."""
    edges = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    padded = np.pad(x, edges, constant_values=-np.inf)
    rows, columns = (size + 2 * padding - kernel + 1 for size in x.shape[1:3])
    shifted = [padded[:, i : i + rows, j : j + columns] for i in range(kernel) for j in range(kernel)]
    flat = np.stack(shifted, -1)[:, ::stride, ::stride]
    where = flat.argmax(-1).astype(np.int32)
    return np.take_along_axis(flat, where[..., None], -1)[..., 0], where


def max_pool(
    device: Device,
    kind: str,
    gradient: bool,
    shape: tuple[int, int, int] = _SHAPE,
    channel_numbers: Sequence[int] = _CHANNELS,
) -> Launched:
    """Pool windows of several sizes, each with its own number of channels, with ties."""
    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    threads = constant(_POOLING, "kPoolThreads")
    for (kernel, stride, padding), channels in zip(_WINDOWS, channel_numbers, strict=False):
        x = encode(np.round(random_numbers(*shape, channels) * 4) / 4, kind)
        y, where = _windows(decode(x), kernel, stride, padding)
        args = structure(_POOLING, "PoolArgs")()
        sizes = (*shape, channels, *y.shape[1:3], kernel, stride, padding)
        args.shape = structure(_POOLING, "PoolShape")(*sizes)
        if gradient:
            dy = encode(random_numbers(*y.shape, seed=1), kind)
            args.out, args.where = device.put(np.zeros_like(x)), device.put(where)
            setattr(args, "in", device.put(dy))
            start = starter(device, f"max_pool_grad_{kind}", _pixel_blocks(x.size // channels, channels), threads, args)
            pairs.append((decode(device.get(args.out, x)), _spread(decode(dy), where, x.shape, sizes[6:])))
            continue
        stored = encode(np.zeros_like(y), kind)
        setattr(args, "in", device.put(x))
        args.out, args.where = device.put(stored), device.put(np.full_like(where, -1))
        start = starter(device, f"max_pool_{kind}", _pixel_blocks(y.size // channels, channels), threads, args)
        pairs += [(decode(device.get(args.out, stored)), y), (device.get(args.where, where), where)]
    relative, absolute = (ROUNDING[kind], 1e-6) if gradient else (0, 0)
    return Launched(tuple(pairs), relative, absolute, start, 2 * x.nbytes)


def _spread(dy: np.ndarray, where: np.ndarray, shape: tuple[int, ...], window: tuple[int, ...]) -> np.ndarray:
    """Add each element of dy to the selected input of its window."""
    kernel, stride, padding = window
    image, row, column, channel = np.indices(dy.shape)
    rows = row * stride - padding + where // kernel
    columns = column * stride - padding + where % kernel
    dx = np.zeros(shape, np.float64)
    np.add.at(dx, (image, rows, columns, channel), dy)
    return dx.astype(np.float32)

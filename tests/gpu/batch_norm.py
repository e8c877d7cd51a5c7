"""Cases of BatchNorm with SiLU, in one launch each for forward and backward, and its parts for several ranks."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tests.gpu.base import ROUNDING, Launched, cooperative, decode, encode, random_numbers, starter
from tests.gpu.devices import Device
from tests.gpu.layouts import constant, structure

_NORM = "ops/batch_norm/batch_norm.h"
_SHAPE = (4000, 72)
"""Number of rows and channels."""
_EPSILON, _RATE = 1e-3, 0.25
_RANKS = 2
"""Number of ranks whose statistics are combined."""


@dataclass(frozen=True)
class _Inputs:
    """The stored x, the arguments of a kernel, and all numbers in float64."""

    rows: int
    channels: int
    stored: np.ndarray
    args: ctypes.Structure
    x: np.ndarray
    dy: np.ndarray
    gamma: np.ndarray
    beta: np.ndarray
    mean: np.ndarray
    inverse: np.ndarray

    @property
    def normal(self) -> np.ndarray:
        return (self.x - self.mean) * self.inverse

    @property
    def dz(self) -> np.ndarray:
        """Return the gradient before the SiLU."""
        z = self.normal * self.gamma + self.beta
        sigmoid = 1 / (1 + np.exp(-z))
        return self.dy * sigmoid * (1 + z * (1 - sigmoid))

    def bounded(self, kind: str) -> float:
        """Return the relative bound of activations."""
        return max(2 * ROUNDING[kind], 1e-5)


def _inputs(device: Device, kind: str, shape: tuple[int, int] = _SHAPE) -> _Inputs:
    rows, channels = shape
    x, dy = (
        encode(random_numbers(rows, channels) * 2 + 1, kind),
        encode(random_numbers(rows, channels, seed=3), kind),
    )
    gamma, beta = random_numbers(channels, seed=1), random_numbers(channels, seed=2)
    exact = decode(x).astype(np.float64)
    mean, inverse = exact.mean(0).astype(np.float32), (1 / np.sqrt(exact.var(0) + _EPSILON)).astype(np.float32)
    args, empty = structure(_NORM, "NormArgs")(), np.zeros(channels, np.float32)
    args.x, args.dy, args.out = device.put(x), device.put(dy), device.put(np.zeros_like(x))
    args.rows, args.channels = rows, channels
    args.gamma, args.beta, args.mean = device.put(gamma), device.put(beta), device.put(mean)
    args.variance = device.put((1 / inverse.astype(np.float64) ** 2 - _EPSILON).astype(np.float32))
    args.moving_mean, args.moving_variance = device.put(empty), device.put(empty + 1)
    args.statistics = device.put(np.stack([mean, inverse]))
    args.d_beta, args.d_gamma, args.both = device.put(empty), device.put(empty), device.put(np.stack([empty, empty]))
    max_blocks = constant(_NORM, "kNormMaxBlocks")
    args.partial_sums = device.put(np.zeros((max_blocks, 2, channels), np.float32))
    args.counters = device.put(np.zeros(2, np.uint32))
    args.pixels, args.epsilon, args.rate = rows, _EPSILON, _RATE
    args.silu = args.statistics_of_batch = True
    numbers = (array.astype(np.float64) for array in (exact, decode(dy), gamma, beta, mean, inverse))
    return _Inputs(rows, channels, x, args, *numbers)


def _pieces(rows: int, channels: int) -> int:
    """Return the number of pieces as split by `norm_pieces`, with 4 rows for each thread."""
    threads, of_thread = constant(_NORM, "kNormThreads"), constant(_NORM, "kNormPerThread")
    columns = -(-channels // of_thread)
    tiles = -(-columns * of_thread // constant(_NORM, "kNormTile"))
    lanes = threads // -(-columns // tiles)
    return tiles * -(-rows // (4 * lanes))


def _start_cooperative(device: Device, kernel: str, args: ctypes.Structure) -> Callable[[], None]:
    max_blocks = min(constant(_NORM, "kNormMaxBlocks"), _pieces(args.rows, args.channels))
    return cooperative(device, kernel, max_blocks, constant(_NORM, "kNormThreads"), args)


def _start_pieces(device: Device, kernel: str, args: ctypes.Structure) -> Callable[[], None]:
    """Launch a block for each piece."""
    grid = (_pieces(args.rows, args.channels), 1, 1)
    return starter(device, kernel, grid, constant(_NORM, "kNormThreads"), args)


def _channels(device: Device, given: _Inputs, address: int, rows: int = 1) -> np.ndarray:
    return device.get(address, np.zeros((rows, given.channels), np.float32))


def _updated_statistics(device: Device, given: _Inputs, pixels: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the running statistics after a step."""
    variance = (1 / given.inverse**2 - _EPSILON) * pixels / (pixels - 1)
    return [
        (_channels(device, given, given.args.moving_mean), (_RATE * given.mean)[None]),
        (_channels(device, given, given.args.moving_variance), (1 - _RATE + _RATE * variance)[None]),
    ]


def _silu(z: np.ndarray) -> np.ndarray:
    return z / (1 + np.exp(-z))


def forward(device: Device, kind: str, shape: tuple[int, int] = _SHAPE) -> Launched:
    """Normalise by batch statistics, with SiLU, in one launch whose blocks wait for each other."""
    given = _inputs(device, kind, shape)
    start = _start_cooperative(device, f"batch_norm_{kind}", given.args)
    y = decode(device.get(given.args.out, given.stored))
    pairs = [(y, _silu(given.normal * given.gamma + given.beta)), *_updated_statistics(device, given, given.rows)]
    pairs.append((_channels(device, given, given.args.statistics, 2), np.stack([given.mean, given.inverse])))
    return Launched(tuple(pairs), given.bounded(kind), 1e-5, start, 3 * given.stored.nbytes)


def normalise(device: Device, kind: str) -> Launched:
    """Normalise by given statistics of two ranks."""
    given = _inputs(device, kind)
    given.args.pixels = _RANKS * given.rows
    start = _start_pieces(device, f"normalise_{kind}", given.args)
    y = decode(device.get(given.args.out, given.stored))
    pairs = [
        (y, _silu(given.normal * given.gamma + given.beta)),
        *_updated_statistics(device, given, _RANKS * given.rows),
    ]
    pairs.append((_channels(device, given, given.args.statistics, 2), np.stack([given.mean, given.inverse])))
    return Launched(tuple(pairs), given.bounded(kind), 1e-5, start, 2 * given.stored.nbytes)


def _gradient_pairs(device: Device, given: _Inputs) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return sums over the rows as means, so that one error bound fits all."""
    dz = given.dz
    return [
        (_channels(device, given, given.args.d_beta) / given.rows, dz.mean(0)[None]),
        (_channels(device, given, given.args.d_gamma) / given.rows, (dz * given.normal).mean(0)[None]),
    ]


def _input_gradient(given: _Inputs, d_beta: np.ndarray, d_gamma: np.ndarray, pixels: int) -> np.ndarray:
    dz = given.dz - d_beta / pixels - given.normal * d_gamma / pixels
    return dz * given.gamma * given.inverse


def backward(device: Device, kind: str, shape: tuple[int, int] = _SHAPE) -> Launched:
    """Compute all gradients in one launch."""
    given = _inputs(device, kind, shape)
    start = _start_cooperative(device, f"batch_norm_grad_{kind}", given.args)
    pairs = _gradient_pairs(device, given)
    want = _input_gradient(given, given.dz.sum(0), (given.dz * given.normal).sum(0), given.rows)
    pairs.append((decode(device.get(given.args.out, given.stored)), want))
    return Launched(tuple(pairs), given.bounded(kind), 1e-5, start, 5 * given.stored.nbytes)


def channel_mean(device: Device, kind: str) -> Launched:
    """Compute this rank's part of the mean over two ranks."""
    given = _inputs(device, kind)
    given.args.pixels = _RANKS * given.rows
    start = _start_cooperative(device, f"channel_mean_{kind}", given.args)
    pair = _channels(device, given, given.args.statistics), (given.x.mean(0) / _RANKS)[None]
    return Launched((pair,), 1e-6, 1e-6, start, given.stored.nbytes)


def channel_variance(device: Device, kind: str) -> Launched:
    """Compute this rank's part of the variance about a given mean."""
    given = _inputs(device, kind)
    given.args.pixels = _RANKS * given.rows
    start = _start_cooperative(device, f"channel_variance_{kind}", given.args)
    pair = _channels(device, given, given.args.statistics), (((given.x - given.mean) ** 2).mean(0) / _RANKS)[None]
    return Launched((pair,), 2e-6, 1e-6, start, given.stored.nbytes)


def normalise_sums(device: Device, kind: str) -> Launched:
    """Sum the gradients for the other ranks and for the parameters."""
    given = _inputs(device, kind)
    start = _start_cooperative(device, f"normalise_sums_{kind}", given.args)
    pairs = _gradient_pairs(device, given)
    both = np.concatenate([want for _, want in pairs])
    pairs.append((_channels(device, given, given.args.both, 2) / given.rows, both))
    return Launched(tuple(pairs), 1e-5, 1e-6, start, 2 * given.stored.nbytes)


def normalise_grad(device: Device, kind: str) -> Launched:
    """Compute the gradient of the input from sums over two ranks."""
    given = _inputs(device, kind)
    sums = random_numbers(2, given.channels, seed=4) * 1000
    given.args.both, given.args.pixels = device.put(sums), _RANKS * given.rows
    start = _start_pieces(device, f"normalise_grad_{kind}", given.args)
    want = _input_gradient(given, sums[0].astype(np.float64), sums[1].astype(np.float64), _RANKS * given.rows)
    pair = decode(device.get(given.args.out, given.stored)), want
    return Launched((pair,), given.bounded(kind), 1e-5, start, 3 * given.stored.nbytes)

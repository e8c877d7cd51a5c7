"""Each kernel alone: inputs, how it is launched, and what NumPy makes of the same inputs."""

import ctypes
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from kernels.build.nvrtc import cuda_sources
from tests.gpu.devices import Device
from tests.gpu.layouts import constant, structure

KINDS = ("f32", "bf16", "f16")
ROUNDING = {"f32": 2.0**-23, "bf16": 2.0**-8, "f16": 2.0**-10}
_ELEMENTS = "ops/elementwise/elementwise.h"
_BIAS, _PIXELS = "ops/bias/bias.h", "ops/pixels/pixels.h"
_PACKING, _NORM = "ops/weight_packing/weight_packing.h", "ops/batch_norm/batch_norm.h"


@dataclass(frozen=True)
class Launched:
    """What came of a case: pairs of the device's and NumPy's arrays, their bound, and how to start it again."""

    pairs: tuple[tuple[np.ndarray, np.ndarray], ...]
    relative: float
    absolute: float
    again: Callable[[], None]
    bytes_moved: int


def encode(values: np.ndarray, kind: str) -> np.ndarray:
    """Float32 as the bits that activations have on the device, rounded to the nearest."""
    values = values.astype(np.float32)
    if kind == "bf16":
        bits = values.view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return values if kind == "f32" else values.astype(np.float16)


def decode(stored: np.ndarray) -> np.ndarray:
    """The other way."""
    return (stored.astype(np.uint32) << 16).view(np.float32) if stored.dtype == np.uint16 else stored.astype(np.float32)


def _random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _blocks(items: int, per_block: int) -> tuple[int, int, int]:
    return (items + per_block - 1) // per_block, 1, 1


def _elementwise_blocks(count: int) -> tuple[int, int, int]:
    return _blocks(count, constant(_ELEMENTS, "kElementwiseThreads") * constant(_ELEMENTS, "kPerThread"))


def add_n(device: Device, kind: str, count: int = 1_000_003) -> Launched:
    """A sum of three, whose last thread has fewer numbers."""
    summands = [encode(_random(count, seed=seed), kind) for seed in range(3)]
    args = structure(_ELEMENTS, "AddArgs")()
    for index, summand in enumerate(summands):
        args.inputs[index] = device.put(summand)
    args.out, args.count, args.summands = device.put(np.zeros_like(summands[0])), count, 3
    start = _starter(
        device, f"add_n_{kind}", _elementwise_blocks(count), constant(_ELEMENTS, "kElementwiseThreads"), args
    )
    a, b, c = (decode(summand) for summand in summands)
    got = decode(device.get(args.out, summands[0]))
    return Launched(((got, decode(encode(a + b + c, kind))),), 0, 0, start, 4 * summands[0].nbytes)


def cast(device: Device, source: str, target: str, count: int = 1_000_003) -> Launched:
    """Between float32 and a 16-bit type: the very bits."""
    given = encode(_random(count), source)
    want = encode(decode(given), target)
    args = structure(_ELEMENTS, "CastArgs")(device.put(given), device.put(np.zeros_like(want)), count)
    name = f"cast_{source}_{target}"
    start = _starter(device, name, _elementwise_blocks(count), constant(_ELEMENTS, "kElementwiseThreads"), args)
    return Launched(((device.get(args.out, want), want),), 0, 0, start, given.nbytes + want.nbytes)


def fill(device: Device, count: int = 1_000_003) -> Launched:
    """A constant."""
    want = np.full(count, 2.5, np.float32)
    args = structure(_ELEMENTS, "FillArgs")(device.put(np.zeros_like(want)), count, 2.5)
    threads = constant(_ELEMENTS, "kElementwiseThreads")
    start = _starter(device, "fill_f32", _elementwise_blocks(count), threads, args)
    return Launched(((device.get(args.out, want), want),), 0, 0, start, want.nbytes)


def add_bias(device: Device, kind: str, target: str, rows: int = 5000, channels: int = 85) -> Launched:
    """With SiLU behind it."""
    x, bias = encode(_random(rows, channels), kind), _random(channels, seed=1)
    out = encode(np.zeros((rows, channels)), target)
    addresses = (device.put(array) for array in (x, bias, out))
    args = structure(_BIAS, "AddBiasArgs")(*addresses, rows * channels, channels, True)
    threads = constant(_BIAS, "kBiasThreads")
    blocks = _blocks(rows * channels, threads * constant(_BIAS, "kBiasPerThread"))
    start = _starter(device, f"add_bias_{kind}_{target}", blocks, threads, args)
    total = decode(x).astype(np.float64) + bias
    want = (total / (1 + np.exp(-total))).astype(np.float32)
    pair = decode(device.get(args.out, out)), want
    return Launched((pair,), max(ROUNDING[target], 2e-6), 1e-6, start, x.nbytes + out.nbytes)


def bias_gradient(device: Device, kind: str, target: str, rows: int = 5000, channels: int = 85) -> Launched:
    """The sum over rows, in two launches."""
    dy, threads, parts = encode(_random(rows, channels), kind), constant(_BIAS, "kBiasThreads"), 40
    exact = decode(dy)
    dx, bias = encode(np.zeros_like(exact), target), np.zeros(channels, np.float32)
    addresses = [device.put(array) for array in (dy, dx, np.zeros((parts, channels), np.float32), bias)]
    args = structure(_BIAS, "AddBiasGradArgs")(*addresses, rows, channels, parts)
    columns = _blocks(channels, constant(_BIAS, "kBiasColumns"))[0]

    def start() -> None:
        device.launch(f"add_bias_grad_{kind}_{target}", (parts, columns, 1), threads, args)
        device.launch("add_bias_sums", (channels, 1, 1), threads, args)

    start()
    pairs = (
        (decode(device.get(args.dx, dx)), decode(encode(exact, target))),
        (device.get(args.d_bias, bias), exact.astype(np.float64).sum(0).astype(np.float32)),
    )
    return Launched(pairs, 1e-6, 1e-4, start, dy.nbytes + dx.nbytes)


def pixels(device: Device, kind: str, batch: int = 2, area: int = 96 * 100) -> Launched:
    """Bytes (batch, 3, area) to channels last, divided by 255."""
    images = np.random.default_rng(0).integers(0, 256, (batch, 3, area), np.uint8)
    want = encode(images.transpose(0, 2, 1).astype(np.float32) / np.float32(255), kind)
    args = structure(_PIXELS, "PixelArgs")(device.put(images), device.put(np.zeros_like(want)), batch, area)
    threads, of_thread = constant(_PIXELS, "kPixelThreads"), constant(_PIXELS, "kPixelsPerThread")
    start = _starter(device, f"pixels_{kind}", _blocks(batch * _blocks(area, of_thread)[0], threads), threads, args)
    pair = decode(device.get(args.out, want)), decode(want)
    return Launched((pair,), ROUNDING[kind], 0, start, images.nbytes + want.nbytes)


def pack_weights(device: Device, kind: str, unpack: bool) -> Launched:
    """Two weights in one launch, of which one has a single tap."""
    plain = [_random(32, 16, 3, 3), _random(255, 32, 1, 1, seed=1)]
    packed = [encode(np.ascontiguousarray(one.transpose(0, 2, 3, 1)), kind) for one in plain]
    if unpack:
        plain = [np.ascontiguousarray(decode(one).transpose(0, 3, 1, 2)) for one in packed]
    given, want = (packed, plain) if unpack else (plain, packed)
    sources, targets = [device.put(one) for one in given], [device.put(np.zeros_like(one)) for one in want]
    entry, threads = structure(_PACKING, "PackedWeight"), constant(_PACKING, "kPackThreads")
    table, blocks = (entry * len(plain))(), 0
    for index, one in enumerate(plain):
        taps = one.shape[2] * one.shape[3]
        table[index] = entry(sources[index], targets[index], one.size, blocks, one.shape[1], taps)
        blocks += _blocks(one.size, threads * constant(_PACKING, "kPackPerThread"))[0]
    args = structure(_PACKING, "PackArgs")(device.put(np.frombuffer(bytes(table), np.uint8)), len(plain))
    name = f"{'unpack' if unpack else 'pack'}_weights_{kind}"
    start = _starter(device, name, (blocks, 1, 1), threads, args)
    pairs = tuple((device.get(address, one), one) for address, one in zip(targets, want, strict=True))
    return Launched(pairs, 0, 0, start, sum(one.nbytes for one in plain + packed))


def batch_norm(device: Device, kind: str, rows: int = 4000, channels: int = 72) -> Launched:
    """Statistics of the batch and SiLU in one launch, whose blocks wait for each other."""
    x = encode(_random(rows, channels) * 2 + 1, kind)
    gamma, beta = _random(channels, seed=1), _random(channels, seed=2)
    moving = np.zeros(channels, np.float32), np.ones(channels, np.float32)
    statistics, threads = np.zeros((2, channels), np.float32), constant(_NORM, "kNormThreads")
    most_blocks = constant(_NORM, "kNormMostBlocks")
    args = structure(_NORM, "NormArgs")()
    args.x, args.out, args.rows, args.channels = device.put(x), device.put(np.zeros_like(x)), rows, channels
    args.gamma, args.beta, args.statistics = device.put(gamma), device.put(beta), device.put(statistics)
    args.moving_mean, args.moving_variance = device.put(moving[0]), device.put(moving[1])
    args.partial_sums = device.put(np.zeros((most_blocks, 2, channels), np.float32))
    args.counters = device.put(np.zeros(2, np.uint32))
    args.pixels, args.epsilon, args.rate = rows, 1e-3, 0.25
    args.silu = args.statistics_of_batch = True

    def start() -> None:
        device.launch_together(f"batch_norm_{kind}", min(most_blocks, rows // 64), threads, args)

    start()
    exact = decode(x).astype(np.float64)
    mean, variance = exact.mean(0), exact.var(0)
    y = (exact - mean) / np.sqrt(variance + 1e-3) * gamma + beta
    pairs = (
        (decode(device.get(args.out, x)), (y / (1 + np.exp(-y))).astype(np.float32)),
        (device.get(args.moving_mean, moving[0]), (0.25 * mean).astype(np.float32)),
        (device.get(args.moving_variance, moving[1]), (0.75 + 0.25 * variance * rows / (rows - 1)).astype(np.float32)),
    )
    return Launched(pairs, max(2 * ROUNDING[kind], 1e-5), 1e-5, start, 3 * x.nbytes)


def _starter(
    device: Device, kernel: str, grid: tuple[int, int, int], threads: int, args: ctypes.Structure
) -> Callable[[], None]:
    """Launches once; returns how to do so again."""

    def start() -> None:
        device.launch(kernel, grid, threads, args)

    start()
    return start


def _cases() -> dict[str, Callable[[Device], Launched]]:
    cases: dict[str, Callable[[Device], Launched]] = {"fill_f32": fill}
    for kind in KINDS:
        cases |= {
            f"add_n_{kind}": partial(add_n, kind=kind),
            f"add_bias_{kind}_{kind}": partial(add_bias, kind=kind, target=kind),
            f"add_bias_grad_{kind}_{kind}": partial(bias_gradient, kind=kind, target=kind),
            f"pixels_{kind}": partial(pixels, kind=kind),
            f"pack_weights_{kind}": partial(pack_weights, kind=kind, unpack=False),
            f"unpack_weights_{kind}": partial(pack_weights, kind=kind, unpack=True),
            f"batch_norm_{kind}": partial(batch_norm, kind=kind),
        }
    for kind in KINDS[1:]:
        cases |= {
            f"cast_f32_{kind}": partial(cast, source="f32", target=kind),
            f"cast_{kind}_f32": partial(cast, source=kind, target="f32"),
            f"add_bias_{kind}_f32": partial(add_bias, kind=kind, target="f32"),
            f"add_bias_grad_f32_{kind}": partial(bias_gradient, kind="f32", target=kind),
        }
    return cases


CASES: Mapping[str, Callable[[Device], Launched]] = _cases()
WITHIN_OTHERS = {"add_bias_sums"}
"""Kernels that the case of another one starts too."""


def kernel_names() -> set[str]:
    """Every kernel of the sources."""
    names: set[str] = set()
    for source in cuda_sources():
        text = source.read_text(encoding="utf-8")
        names |= set(re.findall(r"GT_(?:BLOCK_)?KERNEL\((\w+), \w+", text))
        for name in re.findall(r"GT_KERNEL_OF_ACTIVATIONS\(\w+, (\w+),", text):
            names |= {f"{name}_{kind}" for kind in KINDS}
    return names

"""Cases of the small kernels: sums, casts, biases, pixels and weights."""

import numpy as np

from tests.gpu.base import ROUNDING, Launched, blocks, decode, encode, random_numbers, starter
from tests.gpu.devices import Device
from tests.gpu.layouts import constant, structure

_ELEMENTS = "ops/elementwise/elementwise.h"
_BIAS, _PIXELS = "ops/bias/bias.h", "ops/pixels/pixels.h"
_PACKING = "ops/weight_packing/weight_packing.h"


def _elementwise_blocks(count: int) -> tuple[int, int, int]:
    return blocks(count, constant(_ELEMENTS, "kElementwiseThreads") * constant(_ELEMENTS, "kPerThread"))


def add_n(device: Device, kind: str, count: int = 1_000_003) -> Launched:
    """Add three tensors whose size leaves the last thread fewer numbers."""
    summands = [encode(random_numbers(count, seed=seed), kind) for seed in range(3)]
    args = structure(_ELEMENTS, "AddArgs")()
    for index, summand in enumerate(summands):
        args.inputs[index] = device.put(summand)
    args.out, args.count, args.summands = device.put(np.zeros_like(summands[0])), count, 3
    start = starter(
        device, f"add_n_{kind}", _elementwise_blocks(count), constant(_ELEMENTS, "kElementwiseThreads"), args
    )
    a, b, c = (decode(summand) for summand in summands)
    got = decode(device.get(args.out, summands[0]))
    return Launched(((got, decode(encode(a + b + c, kind))),), 0, 0, start, 4 * summands[0].nbytes)


def cast(device: Device, source: str, target: str, count: int = 1_000_003) -> Launched:
    """Cast between float32 and a 16-bit type, bit for bit."""
    given = encode(random_numbers(count), source)
    want = encode(decode(given), target)
    args = structure(_ELEMENTS, "CastArgs")(device.put(given), device.put(np.zeros_like(want)), count)
    name = f"cast_{source}_{target}"
    start = starter(device, name, _elementwise_blocks(count), constant(_ELEMENTS, "kElementwiseThreads"), args)
    return Launched(((device.get(args.out, want), want),), 0, 0, start, given.nbytes + want.nbytes)


def fill(device: Device, count: int = 1_000_003) -> Launched:
    """Fill a tensor with a constant."""
    want = np.full(count, 2.5, np.float32)
    args = structure(_ELEMENTS, "FillArgs")(device.put(np.zeros_like(want)), count, 2.5)
    threads = constant(_ELEMENTS, "kElementwiseThreads")
    start = starter(device, "fill_f32", _elementwise_blocks(count), threads, args)
    return Launched(((device.get(args.out, want), want),), 0, 0, start, want.nbytes)


def add_bias(device: Device, kind: str, target: str, rows: int = 5000, channels: int = 85) -> Launched:
    """Add a bias, followed by SiLU."""
    x, bias = encode(random_numbers(rows, channels), kind), random_numbers(channels, seed=1)
    out = encode(np.zeros((rows, channels)), target)
    addresses = (device.put(array) for array in (x, bias, out))
    args = structure(_BIAS, "AddBiasArgs")(*addresses, rows * channels, channels, True)
    threads = constant(_BIAS, "kBiasThreads")
    number = blocks(rows * channels, threads * constant(_BIAS, "kBiasPerThread"))
    start = starter(device, f"add_bias_{kind}_{target}", number, threads, args)
    total = decode(x).astype(np.float64) + bias
    want = (total / (1 + np.exp(-total))).astype(np.float32)
    pair = decode(device.get(args.out, out)), want
    return Launched((pair,), max(ROUNDING[target], 2e-6), 1e-6, start, x.nbytes + out.nbytes)


def bias_gradient(device: Device, kind: str, target: str, rows: int = 5000, channels: int = 85) -> Launched:
    """Sum over rows, in two launches."""
    dy, threads, parts = encode(random_numbers(rows, channels), kind), constant(_BIAS, "kBiasThreads"), 40
    exact = decode(dy)
    dx, bias = encode(np.zeros_like(exact), target), np.zeros(channels, np.float32)
    addresses = [device.put(array) for array in (dy, dx, np.zeros((parts, channels), np.float32), bias)]
    args = structure(_BIAS, "AddBiasGradArgs")(*addresses, rows, channels, parts)
    columns = blocks(channels, constant(_BIAS, "kBiasColumns"))[0]

    def start() -> None:
        device.launch(f"add_bias_grad_{kind}_{target}", (parts, columns, 1), threads, args)
        device.launch("add_bias_sums", (channels, 1, 1), threads, args)

    start()
    pairs = (
        (decode(device.get(args.dx, dx)), decode(encode(exact, target))),
        (device.get(args.d_bias, bias), exact.astype(np.float64).sum(0).astype(np.float32)),
    )
    return Launched(pairs, 1e-6, 1e-4, start, dy.nbytes + dx.nbytes)


def pixels(device: Device, kind: str, of_bytes: bool, batch: int = 2, area: int = 96 * 100) -> Launched:
    """Convert (batch, 3, area) to channels last: bytes, which are divided by 255, or float32."""
    images = np.random.default_rng(0).integers(0, 256, (batch, 3, area), np.uint8)
    values = images.astype(np.float32) / np.float32(255)
    given = images if of_bytes else values
    want = encode(values.transpose(0, 2, 1), kind)
    args = structure(_PIXELS, "PixelArgs")(device.put(given), device.put(np.zeros_like(want)), batch, area)
    threads, of_thread = constant(_PIXELS, "kPixelThreads"), constant(_PIXELS, "kPixelsPerThread")
    name = f"{'pixels' if of_bytes else 'float_pixels'}_{kind}"
    start = starter(device, name, blocks(batch * blocks(area, of_thread)[0], threads), threads, args)
    pair = decode(device.get(args.out, want)), decode(want)
    return Launched((pair,), ROUNDING[kind], 0, start, given.nbytes + want.nbytes)


def pack_weights(device: Device, kind: str, unpack: bool) -> Launched:
    """Pack two weights in one launch, one of them with a 1x1 kernel."""
    plain = [random_numbers(32, 16, 3, 3), random_numbers(255, 32, 1, 1, seed=1)]
    packed = [encode(np.ascontiguousarray(one.transpose(0, 2, 3, 1)), kind) for one in plain]
    if unpack:
        plain = [np.ascontiguousarray(decode(one).transpose(0, 3, 1, 2)) for one in packed]
    given, want = (packed, plain) if unpack else (plain, packed)
    sources, targets = [device.put(one) for one in given], [device.put(np.zeros_like(one)) for one in want]
    entry, threads = structure(_PACKING, "PackedWeight"), constant(_PACKING, "kPackThreads")
    table, number = (entry * len(plain))(), 0
    for index, one in enumerate(plain):
        taps = one.shape[2] * one.shape[3]
        table[index] = entry(sources[index], targets[index], one.size, number, one.shape[1], taps)
        number += blocks(one.size, threads * constant(_PACKING, "kPackPerThread"))[0]
    args = structure(_PACKING, "PackArgs")(device.put(np.frombuffer(bytes(table), np.uint8)), len(plain))
    name = f"{'unpack' if unpack else 'pack'}_weights_{kind}"
    start = starter(device, name, (number, 1, 1), threads, args)
    pairs = tuple((device.get(address, one), one) for address, one in zip(targets, want, strict=True))
    return Launched(pairs, 0, 0, start, sum(one.nbytes for one in plain + packed))

"""Cases of kernels that copy several tensors: concat, split, flatten and the start of a step."""

import ctypes

import numpy as np

from tests.gpu.base import Launched, blocks, random_numbers, starter
from tests.gpu.devices import Device
from tests.gpu.layouts import constant, structure

_CONCAT, _FLATTEN, _BEGIN_STEP = "ops/concat/concat.h", "ops/flatten/flatten.h", "ops/begin_step/begin_step.h"
UNITS = (1, 2, 4, 8, 16)


def table_on(device: Device, table: ctypes.Array) -> int:
    """Return the address of a copy of a table of structures."""
    return device.put(np.frombuffer(bytes(table), np.uint8))


def concat(device: Device, unit: int, split: bool, rows: int = 37) -> Launched:
    """Concatenate a few tensors, passed as launch arguments, and more tensors, passed in a table."""
    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    inline = constant(_CONCAT, "kConcatInline")
    for number in (3, inline + 8):
        widths = [1 + 5 * index % 7 for index in range(number)]
        generator = np.random.default_rng(number)
        tensors = [generator.integers(1, 256, (rows, width * unit), np.uint8) for width in widths]
        joined = np.concatenate(tensors, 1)
        addresses = [device.put(one if not split else np.zeros_like(one)) for one in tensors]
        piece = structure(_CONCAT, "ConcatPiece")
        entries = [piece(addresses[at], sum(widths[:at]), widths[at]) for at in range(number)]
        args = structure(_CONCAT, "ConcatArgs")()
        args.joined = device.put(joined if split else np.zeros_like(joined))
        args.rows, args.width, args.number = rows, sum(widths), number
        if number > inline:
            args.table = table_on(device, (piece * number)(*entries))
        else:
            args.pieces[:number] = entries
        threads = constant(_CONCAT, "kConcatThreads")
        name = f"{'split' if split else 'concat'}_{unit}"
        start = starter(device, name, blocks(rows * sum(widths), threads), threads, args)
        if split:
            pairs += [(device.get(at, one), one) for at, one in zip(addresses, tensors, strict=True)]
        else:
            pairs.append((device.get(args.joined, joined), joined))
    return Launched(tuple(pairs), 0, 0, start, 2 * joined.nbytes)


def _pieces(device: Device, tensors: list[np.ndarray]) -> tuple[int, int]:
    """Return the address of the table of pieces and their number."""
    most, piece, start = constant(_FLATTEN, "kFlattenPiece"), structure(_FLATTEN, "FlatPiece"), 0
    entries = []
    for tensor in tensors:
        address = device.put(tensor)
        for at in range(0, tensor.size, most):
            entries.append(piece(address + 4 * at, start + at, min(most, tensor.size - at)))
        start += tensor.size
    return table_on(device, (piece * len(entries))(*entries)), len(entries)


def _tensors() -> list[np.ndarray]:
    return [random_numbers(size, seed=size) for size in (5000, 3, 4096, 1, 70)]


def flatten(device: Device) -> Launched:
    """Flatten tensors larger and smaller than a piece; all but the first start at odd offsets."""
    tensors = _tensors()
    want = np.concatenate(tensors)
    table, number = _pieces(device, tensors)
    args = structure(_FLATTEN, "FlattenArgs")(table, device.put(np.zeros_like(want)))
    start = starter(device, "flatten", (number, 1, 1), constant(_FLATTEN, "kFlattenThreads"), args)
    return Launched(((device.get(args.out, want), want),), 0, 0, start, 2 * want.nbytes)


def begin_step(device: Device) -> Launched:
    """Compare both rows of scalars bit for bit; with a weight of 0 even infinity does not change the average."""
    tensors, pairs = _tensors(), []
    for share, updated in ((0.125, 1.0), (0.0, 0.0)):
        tensors[1][0] = np.inf if share == 0 else 1.0
        current = np.concatenate(tensors)
        average = random_numbers(current.size, seed=1)
        want = average if share == 0 else average - (average - current) * np.float32(share)
        rows = random_numbers(2 * 19, seed=2).reshape(2, 19)
        chosen = rows[0 if updated else 1]
        chosen[-1] = share
        table, number = _pieces(device, tensors)
        args = structure(_BEGIN_STEP, "BeginStepArgs")()
        args.pieces, args.average, args.rows = table, device.put(average), device.put(rows)
        args.previous = device.put(np.array([7.0, updated], np.float32))
        args.first, args.second = device.put(np.zeros_like(chosen[:17])), device.put(np.zeros_like(chosen[17:]))
        args.first_size, args.size = 17, 19
        threads = constant(_BEGIN_STEP, "kFlattenThreads")
        start = starter(device, "begin_step", (number, 1, 1), threads, args)
        pairs += [(device.get(args.average, average), want)]
        pairs += [
            (device.get(args.first, chosen[:17]), chosen[:17]),
            (device.get(args.second, chosen[17:]), chosen[17:]),
        ]
    return Launched(tuple(pairs), 0, 0, start, 3 * current.nbytes)

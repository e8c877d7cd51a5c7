"""Cases of the detection loss, the balance of its levels and the parameter update."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tests.gpu.base import Launched, cooperative, random_numbers, starter
from tests.gpu.boxes import CIOU, overlap
from tests.gpu.copies import table_on
from tests.gpu.devices import Device
from tests.gpu.layouts import constant, structure

_LOSS, _UPDATE = "ops/detection_loss/launch.h", "ops/update/launch.h"
_REBALANCE = "ops/detection_loss/rebalance.h"
_ANCHORS = 3
_BOX, _OBJECTNESS, _CLASS, _ANCHOR_T = 0.05, 1.0, 0.5, 4.0
_SCALE = 8.0
_Pairs = list[tuple[np.ndarray, np.ndarray]]
_STEP = 1e-6


@dataclass(frozen=True)
class LossSizes:
    """The levels' rows and columns, number of classes, images, and label slots of an image."""

    levels: tuple[tuple[int, int], ...] = ((12, 10), (6, 5), (3, 3))
    classes: int = 4
    batch: int = 3
    slots: int = 40


_SMALL = LossSizes()


def _labels(sizes: LossSizes) -> np.ndarray:
    """Return (batch, slots, 5) labels, of which the last quarter is empty; many are close together, so that they share
    cells."""
    generator, shape = np.random.default_rng(5), (sizes.batch, sizes.slots)
    labels = np.zeros((*shape, 5), np.float32)
    labels[..., 0] = generator.integers(0, sizes.classes, shape)
    labels[..., 1:3] = generator.beta(2, 2, (*shape, 2))
    labels[..., 3:] = generator.uniform(0.05, 0.6, (*shape, 2))
    labels[:, 3 * sizes.slots // 4 :, 0] = -1
    return labels


def detection_loss(device: Device, sizes: LossSizes = _SMALL) -> Launched:
    """Compute the loss of three levels: total, parts and gradients against float64; CIoU's gradient by differences."""
    labels, balance = _labels(sizes), np.array([4.0, 1.0, 0.4], np.float32)
    anchors = np.random.default_rng(1).uniform(0.8, 3, (len(sizes.levels), _ANCHORS, 2)).astype(np.float32)
    outputs = 5 + sizes.classes
    maps = [random_numbers(sizes.batch, r, c, _ANCHORS * outputs, seed=r) for r, c in sizes.levels]
    settings = np.array([_BOX, _OBJECTNESS, _CLASS, 1, 1, _ANCHOR_T, 1, 0, 1, 0, 0, 0.25], np.float32)
    args = structure(_LOSS, "LossArgs")()
    tile, tiles = constant(_LOSS, "kLossTile"), 0
    for index, ((rows, columns), level_map) in enumerate(zip(sizes.levels, maps, strict=True)):
        level = structure(_LOSS, "LossLevel")
        addresses = device.put(level_map), device.put(np.ones_like(level_map)), device.put(anchors[index])
        args.levels[index] = level(*addresses, rows, columns, _ANCHORS, outputs)
        tiles += sizes.batch * -(-rows * columns * _ANCHORS // tile)
        args.first_tile[index + 1] = tiles
    most, levels = constant(_LOSS, "kMaxLossBlocks"), constant(_LOSS, "kMaxLevels")
    parts = np.zeros(3 + len(sizes.levels), np.float32)
    args.first_image, args.batch, args.level_count, args.slots = 0, sizes.batch, len(sizes.levels), sizes.slots
    args.labels, args.settings, args.balance = device.put(labels), device.put(settings), device.put(balance)
    args.scale, args.total = device.put(np.array([_SCALE], np.float32)), device.put(parts[:1])
    args.parts, args.counts = device.put(parts), device.put(np.zeros((levels, most), np.int64))
    args.sums, args.grid_counters = device.put(np.zeros((tiles, 3))), device.put(np.zeros(2, np.uint32))
    start = cooperative(device, "detection_loss", min(tiles, most), constant(_LOSS, "kLossThreads"), args)
    wanted = [_level_loss(*one, labels, w) for one, w in zip(zip(maps, anchors, strict=True), balance, strict=True)]
    box, objectness, classes = (sum(parts[index] for parts, _, _ in wanted) for index in range(3))
    total = np.array([(box + objectness + classes) * sizes.batch])
    means = [mean for _, mean, _ in wanted]
    pairs = [(device.get(args.total, parts[:1]), total)]
    pairs.append((device.get(args.parts, parts), np.array([box, objectness, classes, *means])))
    for index, (_, _, gradient) in enumerate(wanted):
        pairs.append((device.get(args.levels[index].gradient, maps[index]), gradient))
    return Launched(tuple(pairs), 1e-4, 1e-6, start, 2 * sum(one.nbytes for one in maps))


def _matches(anchors: np.ndarray, labels: np.ndarray, rows: int, columns: int) -> list[tuple[int, ...]]:
    """Return (image, slot, anchor, row, column) in build order, decided in float32 as the kernel does."""
    found: list[tuple[int, ...]] = []
    size = np.array([columns, rows], np.float32)
    for neighbour, anchor, image, slot in np.ndindex(5, _ANCHORS, *labels.shape[:2]):
        category, xy, wh = labels[image, slot, 0], labels[image, slot, 1:3] * size, labels[image, slot, 3:] * size
        ratio = wh / anchors[anchor]
        if category < 0 or np.maximum(ratio, 1 / ratio).max() >= _ANCHOR_T:
            continue
        distance = (xy[0], xy[1], size[0] - xy[0], size[1] - xy[1])[max(neighbour - 1, 0)]
        if neighbour and not (distance % 1 < 0.5 and distance > 1):
            continue
        shift = np.array([(0, 0), (0.5, 0), (0, 0.5), (-0.5, 0), (0, -0.5)][neighbour], np.float32)
        column, row = np.clip(np.floor(xy - shift), 0, size - 1).astype(int)
        found.append((image, slot, anchor, int(row), int(column)))
    return found


def _level_loss(
    level_map: np.ndarray, anchors: np.ndarray, labels: np.ndarray, balance: float
) -> tuple[tuple[float, float, float], float, np.ndarray]:
    """Return the three parts, the mean objectness loss and the gradient of the map, of one level."""
    batch, rows, columns = level_map.shape[:3]
    logits = level_map.reshape(batch, rows, columns, _ANCHORS, -1).astype(np.float64)
    categories = logits.shape[-1] - 5
    image, slot, anchor, row, column = np.array(_matches(anchors, labels, rows, columns)).T
    matches, places = len(image), (image, row, column, anchor)
    xy = labels[image, slot, 1:3] * np.array([columns, rows], np.float32) - np.stack([column, row], -1)
    target = np.concatenate([xy, labels[image, slot, 3:] * np.array([columns, rows], np.float32)], -1)
    gradient, goal = np.zeros_like(logits), np.zeros(logits.shape[:4])
    _, alpha = overlap(_box(logits[places], anchors[anchor]), target, CIOU, True)

    def ciou(moved: np.ndarray | float) -> np.ndarray:
        return overlap(_box(logits[places] + moved, anchors[anchor]), target, CIOU, True, alpha)[0]

    iou = ciou(0.0)
    for side in range(4):
        step = _STEP * (np.arange(logits.shape[-1]) == side)
        slope = (ciou(step) - ciou(-step)) / (2 * _STEP)
        np.add.at(gradient, (*places, side), -_BOX * batch * _SCALE / matches * slope)
    for place, quality in zip(zip(*places, strict=True), iou, strict=True):
        goal[place] = max(quality, 0.0)  # the last one stays
    is_class = labels[image, slot, 0].astype(int)[:, None] == np.arange(categories)
    loss, slope = _cross_entropy(logits[places][:, 5:], is_class)
    for index in range(categories):
        np.add.at(gradient, (*places, 5 + index), _CLASS * batch * _SCALE / (matches * categories) * slope[:, index])
    objectness, slope = _cross_entropy(logits[..., 4], goal)
    gradient[..., 4] = _OBJECTNESS * balance * _SCALE / goal[0].size * slope
    parts = (_BOX * (1 - iou).mean(), _OBJECTNESS * balance * objectness.mean(), _CLASS * loss.mean())
    return parts, float(objectness.mean()), gradient.reshape(level_map.shape)


def _box(logits: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    scores = 1 / (1 + np.exp(-logits[:, :4]))
    return np.concatenate([scores[:, :2] * 2 - 0.5, (scores[:, 2:] * 2) ** 2 * anchors], -1)


def _cross_entropy(logits: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.logaddexp(0, logits) - target * logits, 1 / (1 + np.exp(-logits)) - target


def rebalance_levels(device: Device) -> Launched:
    """Rebalance three levels with the second as reference."""
    balance, parts = np.array([4.0, 1.0, 0.4], np.float32), np.array([1, 1, 1, 0.2, 0.5, 0.9], np.float32)
    addresses = device.put(balance), device.put(parts), device.put(np.zeros_like(balance))
    args = structure(_REBALANCE, "RebalanceArgs")(*addresses, 3, 1)
    start = starter(device, "rebalance_levels", (1, 1, 1), 32, args)
    want = balance * 0.9999 + 0.0001 / parts[3:].astype(np.float64)
    pairs = tuple((device.get(address, balance), want / want[1]) for address in (args.balance, args.out))
    return Launched(pairs, 1e-6, 0, start, balance.nbytes)


_HYPER = np.array(
    [0.01, 0.02, 0.1, 0.0, 5e-4, 0.01, 0.9, 0.1, 0.999, 0.001, 0.3, 0.1, 1e-8, 0.99, 0.01, 0.5, 1.0], np.float32
)
"""Hyper vector in the order of `Hyper` in update.h: three learning rates and decays, betas, corrections, EMA, loss
scale, update."""
_MAX_NORM = 10.0


_CASES_OF_UPDATE = ((0, "updates"), (1, "updates"), (2, "updates"), (0, "infinite"), (0, "accumulates"))


def update(
    device: Device,
    sizes: tuple[int, int, int] = (5000, 7, 4096),
    cases: Sequence[tuple[int, str]] = _CASES_OF_UPDATE,
) -> Launched:
    """Update by SGD, Adam, AdamW with clipping; with a non-finite gradient; and only accumulate gradients.

    Args:
        device: the device.
        sizes: the parameters of each group.
        cases: rule and kind of each update; the last one is timed.
    """
    pairs: _Pairs = []
    for rule, case in cases:
        more, start, moved = _update(device, rule, case, sizes)
        pairs += more
    return Launched(tuple(pairs), 1e-5, 1e-6, start, moved)


def _update(
    device: Device, rule: int, case: str, sizes: tuple[int, int, int]
) -> tuple[_Pairs, Callable[[], None], int]:
    most = constant(_UPDATE, "kUpdatePiece")
    state = {name: random_numbers(sum(sizes), seed=at) for at, name in enumerate(_STATE)}
    state["second_moment"] **= 2
    if case == "infinite":
        state["gradient"][77] = np.inf
    hyper = _HYPER.copy()
    hyper[16] = case != "accumulates"
    addresses = {name: device.put(values) for name, values in state.items()}
    group = np.repeat(np.arange(3), sizes)
    piece, entries = structure(_UPDATE, "Piece"), []
    for index, size in enumerate(sizes):
        for at in range(0, size, most):
            start, count = sum(sizes[:index]) + at, min(most, size - at)
            entries.append(piece(*(addresses[name] + 4 * start for name in _STATE), start, count, index))
    args = structure(_UPDATE, "UpdateArgs")()
    args.pieces, args.count = table_on(device, (piece * len(entries))(*entries)), len(entries)
    args.hyper, args.out = device.put(hyper), device.put(np.zeros(2, np.float32))
    args.squares, args.grid_counters = device.put(np.zeros(len(entries))), device.put(np.zeros(2, np.uint32))
    args.rule, args.max_norm = rule, _MAX_NORM
    again = cooperative(device, "update_parameters", len(entries), constant(_UPDATE, "kUpdateThreads"), args)
    want, norm = _updated({name: values.astype(np.float64) for name, values in state.items()}, group, rule, case)
    got = device.get(args.out, np.zeros(2, np.float32))
    pairs = [(device.get(addresses[name], state[name]), want[name]) for name in _STATE if name != "gradient"]
    pairs.append((np.nan_to_num(got, nan=-1, posinf=-2), np.array([norm, float(case == "updates")])))
    return pairs, again, 8 * state["parameter"].nbytes


_STATE = ("parameter", "gradient_sum", "first_moment", "second_moment", "ema", "gradient")


def _updated(
    state: dict[str, np.ndarray], group: np.ndarray, rule: int, case: str
) -> tuple[dict[str, np.ndarray], float]:
    """Return the state after the step in float64, and the gradient norm, with -1 for none and -2 for infinity."""
    rates, decays = _HYPER[group].astype(np.float64), _HYPER[3 + group].astype(np.float64)
    beta1, rest1, beta2, rest2, correction1, root2 = (float(number) for number in _HYPER[6:12])
    gradient = state["gradient_sum"] + state["gradient"]
    if case == "accumulates":
        return state | {"gradient_sum": gradient}, -1.0
    state = state | {"gradient_sum": np.zeros_like(gradient)}
    if case == "infinite":
        return state, -2.0
    norm = float(np.linalg.norm(gradient * 0.5))
    clipped, weights = gradient * 0.5 * min(1.0, _MAX_NORM / (norm + 1e-6)), state["parameter"]
    direction = clipped if rule == 2 else clipped + decays * weights
    if rule == 0:
        state["first_moment"] = beta1 * state["first_moment"] + direction
        weights = weights - rates * (direction + beta1 * state["first_moment"])
    else:
        state["first_moment"] = beta1 * state["first_moment"] + rest1 * direction
        state["second_moment"] = beta2 * state["second_moment"] + rest2 * direction**2
        step = state["first_moment"] / (np.sqrt(state["second_moment"]) / root2 + 1e-8)
        weights = weights * (1 - rates * decays if rule == 2 else 1) - rates / correction1 * step
    state["parameter"] = weights
    state["ema"] = state["ema"] * float(_HYPER[13]) + weights * float(_HYPER[14])
    return state, norm

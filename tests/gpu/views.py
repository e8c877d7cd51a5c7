"""Cases of test-time augmentation: views, and concatenation of their predictions."""

import numpy as np

from tests.gpu.base import Launched, blocks, random_numbers, starter
from tests.gpu.devices import Device
from tests.gpu.layouts import constant, structure

_VIEWS = "ops/augmented_views/augmented_views.h"


def interpolation(size: int, scaled: int) -> np.ndarray:
    """Return the (scaled, size) weights of bilinear interpolation between pixel centres."""
    source = ((np.arange(scaled) + 0.5) * size / scaled - 0.5).clip(0, size - 1)
    return np.maximum(0, 1 - np.abs(source[:, None] - np.arange(size)))


def augmented_view(device: Device, planes: int = 6, border: float = 0.447) -> Launched:
    """Scale mirrored images by 0.83 and others by 0.67, with padding."""
    pairs, threads = [], constant(_VIEWS, "kViewThreads")
    images = np.random.default_rng(0).integers(0, 256, (planes, 96, 160), np.uint8)
    for rows, columns, mirrored in ((79, 132, True), (64, 107, False)):
        want = np.full((planes, 96, 160), border)
        given = (images[..., ::-1] if mirrored else images) / 255
        want[:, :rows, :columns] = interpolation(96, rows) @ given @ interpolation(160, columns).T
        stored = want.astype(np.float32)
        addresses = device.put(images), device.put(np.zeros_like(stored))
        sizes = (planes, 96, 160, rows, columns, 96, 160)
        args = structure(_VIEWS, "ViewArgs")(*addresses, *sizes, border, mirrored)
        start = starter(device, "augmented_view", blocks(stored.size, threads), threads, args)
        pairs.append((device.get(args.out, stored), stored))
    return Launched(tuple(pairs), 0, 2e-5, start, images.nbytes + stored.nbytes)


def join_views(device: Device, images: int = 2, numbers: int = 9, width: float = 96.0) -> Launched:
    """Concatenate three views, two of which only in part."""
    views, parts, place = structure(_VIEWS, "JoinArgs")(), [], 0
    for index, (count, first, kept, scale, mirrored) in enumerate(
        ((500, 0, 480, 1.0, False), (500, 0, 500, 0.83, True), (300, 220, 80, 0.67, False))
    ):
        rows = random_numbers(images, count, numbers, seed=index) * 50
        views.views[index] = structure(_VIEWS, "ViewRows")(device.put(rows), count, first, kept, place, scale, mirrored)
        place += kept
        counted = rows[:, first : first + kept].copy()
        counted[..., :4] = counted[..., :4] / np.float32(scale)
        counted[..., 0] = np.float32(width) - counted[..., 0] if mirrored else counted[..., 0]
        parts.append(counted)
    want = np.concatenate(parts, 1)
    views.out, views.images, views.joined, views.numbers = device.put(np.zeros_like(want)), images, place, numbers
    views.width, views.view_count = width, 3
    threads = constant(_VIEWS, "kViewThreads")
    start = starter(device, "join_views", blocks(want.size, threads), threads, views)
    return Launched(((device.get(views.out, want), want),), 0, 0, start, 2 * want.nbytes)

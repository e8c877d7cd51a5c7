"""Images with rectangles at known positions, and their detection in the output of a pipeline."""

from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from pipelines.data.images import inspect_image
from pipelines.data.index import ImageIndex

GROUND = 40
COLOURS = np.array(((230, 40, 40), (40, 230, 40), (40, 40, 230)), np.uint8)
"""One colour per class on the dark grey ground: its own channel differs from the ground, the others do not."""


def rendered_index(
    folder: Path, *, images: int = 24, seed: int = 0, polygons: bool = False, sides: tuple[int, int] = (200, 420)
) -> ImageIndex:
    """Write and index images of 1 to 4 rectangles that touch neither each other nor the edges."""
    rng = np.random.default_rng(seed)
    paths, labels, segments, facts = [], [], [], []
    for number in range(images):
        width, height = (int(v) for v in rng.integers(*sides, 2))
        pixels = np.full((height, width, 3), GROUND, np.uint8)
        rows = []
        # One rectangle at most in each quarter, with a margin, so that no two of them ever touch.
        for quarter in rng.permutation(4)[: rng.integers(1, 5)]:
            down, across = divmod(int(quarter), 2)
            w, h = (int(v) for v in rng.uniform(0.2, 0.4, 2) * (width, height))
            x = int(across * width / 2 + rng.uniform(0.03, 0.08) * width)
            y = int(down * height / 2 + rng.uniform(0.03, 0.08) * height)
            kind = int(rng.integers(3))
            pixels[y : y + h, x : x + w] = COLOURS[kind]
            rows.append((kind, (x + w / 2) / width, (y + h / 2) / height, w / width, h / height))
        path = folder / f"{number:03d}.{('png', 'jpg')[number % 2]}"
        Image.fromarray(pixels).save(path, quality=98, subsampling=0)
        paths.append(path)
        boxes = np.array(rows, np.float32)
        labels.append(boxes)
        segments.append(tuple(_corners(box) for box in boxes[:, 1:]) if polygons else ())
        facts.append(inspect_image(path))
    found = list(zip(paths, facts, strict=True))
    return ImageIndex.of(found, labels=labels, segments=segments, class_names=("red", "green", "blue"))


def _corners(box: np.ndarray) -> np.ndarray:
    x, y, w, h = box
    signs = np.array(((-1, -1), (1, -1), (1, 1), (-1, 1)), np.float32) / 2
    return ((x, y) + signs * (w, h)).astype(np.float32)


def found_boxes(image: np.ndarray, kind: int, *, contrast: int = 90) -> np.ndarray:
    """Return the corners (n, 4) in px of each connected patch of a class's colour in a (3, h, w) uint8 image."""
    planes = image.astype(np.int32)
    others = np.delete(planes, kind, axis=0).max(axis=0)
    patches, _ = ndimage.label(planes[kind] - others > contrast)
    slices = ndimage.find_objects(patches)
    return np.array([(x.start, y.start, x.stop, y.stop) for y, x in slices], np.float64).reshape(-1, 4)


def overlaps(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return (n, m) IoU of corner boxes."""
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, 2:], other[None, :, 2:])
    inner = np.clip(high - low, 0, None).prod(axis=2)
    areas = [(b[:, 2:] - b[:, :2]).prod(axis=1) for b in (one, other)]
    return inner / (areas[0][:, None] + areas[1][None, :] - inner)


def label_hits(images: np.ndarray, labels: np.ndarray, *, min_side: float = 12.0, contrast: int = 90) -> np.ndarray:
    """Return the best IoU with a patch for each label whose sides are at least `min_side` px."""
    best = []
    size = np.array(images.shape[:1:-1] * 2)
    for number, kind, *box in labels:
        centre, half = np.array(box[:2]), np.array(box[2:]) / 2
        corners = np.concatenate((centre - half, centre + half)) * size
        if (corners[2:] - corners[:2]).min() >= min_side:
            found = found_boxes(images[int(number)], int(kind), contrast=contrast)
            best.append(overlaps(corners[None], found).max(initial=0.0))
    return np.array(best)


def blended_hits(images: np.ndarray, labels: np.ndarray, *, min_side: float = 12.0) -> np.ndarray:
    """Apply `label_hits` to two blended images, in which objects of one class may touch or overlap.

    At most two classes meet at a pixel, one per image. A class therefore shows wherever its channel exceeds the smaller
    of the other two by r * 190 levels, for an image with mixing ratio r, and nowhere else. Touching objects are
    compared together: the IoU of the area of their labels with the area of their class.
    """
    best = []
    height, width = images.shape[2:]
    for number, image in enumerate(images.astype(np.int32)):
        for kind in range(len(COLOURS)):
            rows = labels[(labels[:, 0] == number) & (labels[:, 1] == kind), 2:].astype(np.float64)
            corners = np.concatenate((rows[:, :2] - rows[:, 2:] / 2, rows[:, :2] + rows[:, 2:] / 2), axis=1)
            corners *= (width, height, width, height)
            labelled = np.zeros((height, width), bool)
            for x1, y1, x2, y2 in corners.round().astype(int):
                labelled[y1:y2, x1:x2] = True
            shown = image[kind] - np.delete(image, kind, axis=0).min(axis=0) > 33
            groups, count = ndimage.label(labelled | shown)
            every = range(1, count + 1)
            shares = ndimage.sum(labelled & shown, groups, every) / ndimage.sum(labelled | shown, groups, every)
            for (x1, y1, x2, y2), size in zip(corners, corners[:, 2:] - corners[:, :2], strict=True):
                if size.min() >= min_side:
                    best.append(shares[groups[int((y1 + y2) / 2), int((x1 + x2) / 2)] - 1])
    return np.array(best)


def unlabelled_patches(images: np.ndarray, labels: np.ndarray, *, min_side: float = 12.0) -> int:
    """Count the patches of at least `min_side` px that no label of their class covers by half."""
    count = 0
    size = np.array(images.shape[:1:-1] * 2)
    for number, image in enumerate(images):
        for kind in range(len(COLOURS)):
            rows = labels[(labels[:, 0] == number) & (labels[:, 1] == kind), 2:].astype(np.float64)
            known = np.concatenate((rows[:, :2] - rows[:, 2:] / 2, rows[:, :2] + rows[:, 2:] / 2), axis=1) * size
            found = found_boxes(image, kind)
            found = found[(found[:, 2:] - found[:, :2]).min(axis=1) >= min_side]
            if len(found):
                hits = overlaps(found, known).max(axis=1, initial=0.0) if len(known) else np.zeros(len(found))
                count += int((hits < 0.5).sum())
    return count

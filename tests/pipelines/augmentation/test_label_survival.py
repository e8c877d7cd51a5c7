"""Random samples keep the labels that the reference keeps, by an independent implementation of its rules."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.augmentation.augment_config import AugmentConfig
from pipelines.augmentation.random_samples import RandomSamples, SamplePlan, View
from pipelines.data.index import ImageIndex
from tests.pipelines.augmentation.test_random_samples import configs, random_index

DRAWS = 40
Points = list[tuple[float, float]]


def expected_rows(plan: SamplePlan, index: ImageIndex) -> Sequence[tuple[float, ...]]:
    """Return [class, cx, cy, w, h] of the labels that the reference keeps, in its order."""
    rows = []
    width, height = plan.output_wh
    for view in plan.views:
        for kind, box in kept_boxes(view, index):
            x1, x2 = (min(max(x, 0.0), width - 1e-3) for x in box[::2])
            y1, y2 = (min(max(y, 0.0), height - 1e-3) for y in box[1::2])
            cx, cy = (x1 + x2) / 2 / width, (y1 + y2) / 2 / height
            cx, cy = 1 - cx if plan.flip_left_right else cx, 1 - cy if plan.flip_up_down else cy
            rows.append((kind, cx, cy, (x2 - x1) / width, (y2 - y1) / height))
    return rows


def kept_boxes(view: View, index: ImageIndex) -> list[tuple[float, tuple[float, ...]]]:
    before: list[tuple[float, list[float]]] = []
    polygons: list[Points] = []
    for source, placed in zip(view.sources, view.placements, strict=True):
        (w, h), (left, top) = placed.size_wh, placed.offset_xy
        for kind, cx, cy, bw, bh in index.labels[source].astype(float).tolist():
            corners = [
                (cx - bw / 2) * w + left,
                (cy - bh / 2) * h + top,
                (cx + bw / 2) * w + left,
                (cy + bh / 2) * h + top,
            ]
            before.append((kind, [on_canvas(v, n, view) for n, v in enumerate(corners)]))
        for polygon in index.segments[source]:
            points = [(x * w + left, y * h + top) for x, y in polygon.astype(float).tolist()]
            polygons.append([(on_canvas(x, 0, view), on_canvas(y, 1, view)) for x, y in points])
    outlined = len(polygons) == len(before) and any(v for polygon in polygons for point in polygon for v in point)
    kept = []
    for number, (kind, box) in enumerate(before):
        after = outline_box(polygons[number], view) if outlined else corner_box(box, view)
        if survives(box, after, view.scale, 0.01 if outlined else 0.1):
            kept.append((kind, after))
    return kept


def on_canvas(value: float, axis: int, view: View) -> float:
    return min(max(value, 0.0), view.canvas_wh[axis % 2]) if view.clip_labels else value


def mapped(points: Points, view: View) -> Points:
    m = view.matrix.tolist()
    out = []
    for x, y in points:
        third = m[2][0] * x + m[2][1] * y + m[2][2] if m[2][0] or m[2][1] else 1.0
        out.append(((m[0][0] * x + m[0][1] * y + m[0][2]) / third, (m[1][0] * x + m[1][1] * y + m[1][2]) / third))
    return out


def corner_box(box: Sequence[float], view: View) -> tuple[float, ...]:
    x1, y1, x2, y2 = box
    xs, ys = zip(*mapped([(x1, y1), (x2, y2), (x1, y2), (x2, y1)], view), strict=True)
    w, h = view.output_wh
    return tuple(min(max(v, 0.0), limit) for v, limit in ((min(xs), w), (min(ys), h), (max(xs), w), (max(ys), h)))


def outline_box(polygon: Points, view: View) -> tuple[float, ...]:
    closed = [*polygon, polygon[0]]
    dense = []
    for step in range(1000):
        at = step * (len(closed) - 1) / 999
        n = min(math.floor(at), len(closed) - 2)
        (xa, ya), (xb, yb) = closed[n], closed[n + 1]
        dense.append((xa + (xb - xa) * (at - n), ya + (yb - ya) * (at - n)))
    w, h = view.output_wh
    inside = [(x, y) for x, y in mapped(dense, view) if 0 <= x <= w and 0 <= y <= h]
    if not any(x for x, _ in inside):
        return (0.0,) * 4
    xs, ys = zip(*inside, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def survives(before: Sequence[float], after: Sequence[float], scale: float, min_share: float) -> bool:
    w1, h1 = (before[2] - before[0]) * scale, (before[3] - before[1]) * scale
    w2, h2 = after[2] - after[0], after[3] - after[1]
    aspect = max(w2 / (h2 + 1e-16), h2 / (w2 + 1e-16))
    return w2 > 2 and h2 > 2 and w2 * h2 / (w1 * h1 + 1e-16) > min_share and aspect < 100


def check_samples(augment: AugmentConfig, seed: int, polygons: bool, side: int) -> int:
    """Check random samples and return the number of labels compared."""
    index = random_index(seed, polygons=polygons)
    samples = RandomSamples(index, replace(augment, copy_paste=0.0), seed=seed)
    compared = 0
    for number in range(DRAWS):
        plan = samples.sample(number // 8, number % len(index), output_wh=(side, side))
        expected = np.array(expected_rows(plan, index)).reshape(-1, 5)
        rows = samples.labels(plan)
        assert rows.shape == expected.shape
        assert np.allclose(rows, expected, atol=1e-5)
        compared += len(rows)
    return compared


def test_default_augmentation_keeps_enough_labels() -> None:
    """If few labels were kept, the tests below would prove nothing."""
    assert check_samples(AugmentConfig(), 3, False, 320) > 50


boxes_only = given(augment=configs, seed=st.integers(0, 2**32), side=st.sampled_from([64, 320, 640]))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@boxes_only
def test_thousand_samples_keep_reference_labels(augment: AugmentConfig, seed: int, side: int) -> None:
    check_samples(augment, seed, False, side)


@settings(max_examples=2, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@boxes_only
def test_samples_keep_reference_polygon_labels(augment: AugmentConfig, seed: int, side: int) -> None:
    check_samples(augment, seed, True, side)


@pytest.mark.slow
@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@boxes_only
def test_ten_thousand_samples_keep_reference_labels(augment: AugmentConfig, seed: int, side: int) -> None:
    check_samples(augment, seed, False, side)


@pytest.mark.slow
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@boxes_only
def test_many_samples_keep_reference_polygon_labels(augment: AugmentConfig, seed: int, side: int) -> None:
    check_samples(augment, seed, True, side)

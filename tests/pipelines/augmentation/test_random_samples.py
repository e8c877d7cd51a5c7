from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.augmentation.augment_config import AugmentConfig
from pipelines.augmentation.copy_paste import choose_pasted, mirrored_boxes
from pipelines.augmentation.random_samples import RandomSamples, epoch_order, generator, multi_scale_sizes
from pipelines.augmentation.rendering import render_sample
from pipelines.data.images import ImageFacts, ImageFormat
from pipelines.data.index import ImageIndex


def index_of(sizes: list[tuple[int, int]], labels: list[np.ndarray], *, polygons: bool = False) -> ImageIndex:
    """Return an index without files; sampling needs only sizes and labels."""
    corners = np.array(((-1, -1), (1, -1), (1, 1), (-1, 1))) / 2
    segments = [
        tuple((row[1:3] + corners * row[3:]).astype(np.float32) for row in rows) if polygons else () for rows in labels
    ]
    stored = ImageFormat(kind="jpeg", mode="RGB", bits=8, orientation=1, file_bytes=1, intact=True)
    images = [(Path(f"{n}.jpg"), ImageFacts(*size, stored)) for n, size in enumerate(sizes)]
    return ImageIndex.of(images, labels=labels, segments=segments, class_names=("a", "b", "c"))


def random_index(seed: int, *, polygons: bool = False) -> ImageIndex:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 9))
    sizes = [(int(w), int(h)) for w, h in rng.integers(10, 1500, (count, 2))]
    labels = []
    for _ in sizes:
        low, high = np.sort(rng.random((int(rng.integers(0, 9)), 2, 2)), axis=1).transpose(1, 0, 2)
        kinds = rng.integers(0, 3, (len(low), 1))
        labels.append(np.concatenate((kinds, (low + high) / 2, high - low), axis=1).astype(np.float32))
    return index_of(sizes, labels, polygons=polygons)


configs = st.builds(
    AugmentConfig,
    degrees=st.sampled_from([0.0, 10.0, 180.0]),
    translate=st.floats(0, 0.9),
    scale=st.floats(0, 0.9),
    shear=st.sampled_from([0.0, 10.0]),
    perspective=st.sampled_from([0.0, 0.0005, 0.001]),
    flipud=st.sampled_from([0.0, 0.5]),
    fliplr=st.sampled_from([0.0, 0.5]),
    mosaic=st.sampled_from([0.0, 0.5, 1.0]),
    mosaic9=st.sampled_from([0.0, 0.5]),
    mixup=st.sampled_from([0.0, 0.5]),
    copy_paste=st.sampled_from([0.0, 0.5]),
)


_SAMPLES = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
_given_settings = given(
    augment=configs, seed=st.integers(0, 2**32), polygons=st.booleans(), side=st.sampled_from([64, 320, 640])
)


@settings(_SAMPLES, max_examples=50)
@_given_settings
def test_two_thousand_samples_are_valid(augment: AugmentConfig, seed: int, polygons: bool, side: int) -> None:
    _check_forty_samples(augment, seed, polygons, side)


@pytest.mark.slow
@settings(_SAMPLES, max_examples=250)
@_given_settings
def test_ten_thousand_samples_are_valid(augment: AugmentConfig, seed: int, polygons: bool, side: int) -> None:
    _check_forty_samples(augment, seed, polygons, side)


def _check_forty_samples(augment: AugmentConfig, seed: int, polygons: bool, side: int) -> None:
    index = random_index(seed, polygons=polygons)
    samples = RandomSamples(index, augment, seed=seed)
    sizes = index.sizes_wh
    for number in range(40):
        plan = samples.sample(number // 8, number % len(index), output_wh=(side, side))
        rows = samples.labels(plan)
        assert rows.dtype == np.float32
        assert np.isfinite(rows).all()
        assert np.all(rows[:, 3:] > 0)
        low, high = rows[:, 1:3] - rows[:, 3:] / 2, rows[:, 1:3] + rows[:, 3:] / 2
        assert np.all(low >= -1e-6)
        assert np.all(high <= 1 + 1e-6)
        for view in render_sample(plan, sizes, warp=not augment.axis_aligned or augment.copy_paste > 0):
            for tile in view.tiles:
                assert_inside(tile.anchor, tile.shape, view.canvas_hw)
                assert_inside(tile.crop_start, tile.crop_shape, sizes[tile.source][::-1])


def assert_inside(start: tuple[int, int], shape: tuple[int, int], limit: tuple[int, int]) -> None:
    assert min(start) >= 0
    assert min(shape) >= 1
    assert start[0] + shape[0] <= limit[0]
    assert start[1] + shape[1] <= limit[1]


def test_sample_depends_only_on_key() -> None:
    index = random_index(7)
    augment = AugmentConfig(mixup=0.5, degrees=5)
    one, other = RandomSamples(index, augment, seed=1), RandomSamples(index, augment, seed=1)
    other.sample(3, 0, output_wh=(64, 64))  # another sample in between has no effect
    a, b = (samples.sample(4, 0, output_wh=(64, 64)) for samples in (one, other))
    assert a.hsv_gains == b.hsv_gains
    assert [v.sources for v in a.views] == [v.sources for v in b.views]
    assert all(np.array_equal(v.matrix, w.matrix) for v, w in zip(a.views, b.views, strict=True))
    for changed in (
        RandomSamples(index, augment, seed=2).sample(4, 0, output_wh=(64, 64)),
        one.sample(5, 0, output_wh=(64, 64)),
        one.sample(4, 0, output_wh=(64, 64), repeat=1),
    ):
        assert changed.hsv_gains != a.hsv_gains


def test_rng_counters_do_not_collide() -> None:
    firsts = {
        generator(seed, epoch, number, purpose=purpose, repeat=repeat).bit_generator.random_raw()
        for seed in range(3)
        for epoch in range(3)
        for number in range(3)
        for purpose in range(3)
        for repeat in range(3)
    }
    assert len(firsts) == 3**5


def test_single_image_known_values() -> None:
    # 100 x 50 px at 64 px become 64 x 32, with a border of 16 px at the top; without random geometry.
    box = np.array([[1, 0.5, 0.5, 0.5, 0.5]], np.float32)
    still = AugmentConfig(mosaic=0, translate=0, scale=0, fliplr=0)
    samples = RandomSamples(index_of([(100, 50)], [box]), still, seed=0)
    plan = samples.sample(0, 0, output_wh=(64, 64))
    assert plan.views[0].placements[0].rectangle == (0, 16, 64, 48)
    assert np.allclose(samples.labels(plan), [[1, 0.5, 0.5, 0.5, 0.25]], atol=1e-6)


def test_flips_known_values() -> None:
    # 100 x 50 px becomes 64 x 32 with a border of 16 px above, so a centre at (0.25, 0.3) moves to (0.25, 0.4).
    box = np.array([[1, 0.25, 0.3, 0.5, 0.5]], np.float32)
    samples = RandomSamples(
        index_of([(100, 50)], [box]), AugmentConfig(mosaic=0, translate=0, scale=0, fliplr=0), seed=0
    )
    plan = samples.sample(0, 0, output_wh=(64, 64))
    for left_right, up_down, centre in (
        (False, False, (0.25, 0.4)),
        (True, False, (0.75, 0.4)),
        (False, True, (0.25, 0.6)),
        (True, True, (0.75, 0.6)),
    ):
        labels = samples.labels(replace(plan, flip_left_right=left_right, flip_up_down=up_down))
        np.testing.assert_allclose(labels, [[1, *centre, 0.5, 0.25]], atol=1e-6)


def test_copy_paste_known_values() -> None:
    # Canvas 100 wide. The mirror place of the first box is free; the second one lies on the middle line and would
    # cover itself; the third one's place is taken by the fourth and the other way round.
    labels = np.array([[0, 10, 0, 30, 10], [1, 40, 20, 60, 30], [2, 10, 40, 30, 50], [0, 70, 40, 90, 50]], np.float64)
    outlines = [np.array([[x1, y1], [x2, y1], [x2, y2]]) for _, x1, y1, x2, y2 in labels]
    pasted = choose_pasted(np.random.default_rng(0), labels, outlines, share=1.0, width=100)
    assert [p.label for p in pasted] == [0]
    assert pasted[0].polygon.tolist() == [[90, 0], [70, 0], [70, 10]]
    assert mirrored_boxes(labels[:1, 1:], width=100).tolist() == [[70, 0, 90, 10]]
    assert choose_pasted(np.random.default_rng(0), labels, [], share=1.0, width=100) == ()
    assert choose_pasted(np.random.default_rng(0), labels, outlines, share=0.1, width=100) == ()


def test_distributions_match_reference() -> None:
    index = index_of([(64, 64)] * 50, [np.zeros((0, 5), np.float32)] * 50)
    augment = AugmentConfig(mixup=0.3, flipud=0.2)
    samples = RandomSamples(index, augment, seed=0)
    plans = [samples.sample(epoch, n, output_wh=(64, 64)) for epoch in range(60) for n in range(50)]
    assert np.mean([len(p.views) == 2 for p in plans]) == pytest.approx(0.3, abs=0.03)
    assert np.mean([p.flip_up_down for p in plans]) == pytest.approx(0.2, abs=0.03)
    assert np.mean([p.flip_left_right for p in plans]) == pytest.approx(0.5, abs=0.03)
    scales = np.array([p.views[0].scale for p in plans])
    assert scales.min() >= 0.5
    assert scales.max() <= 1.5
    assert scales.mean() == pytest.approx(1.0, abs=0.02)
    gains = np.array([p.hsv_gains for p in plans])
    assert np.allclose(gains.mean(axis=0), 1, atol=0.03)
    assert np.allclose(gains.max(axis=0), (1.015, 1.7, 1.4), atol=0.01)
    ratios = np.array([p.mix_ratio for p in plans if len(p.views) == 2])
    assert ratios.std() == pytest.approx((32 * 32 / (64**2 * 65)) ** 0.5, rel=0.1)  # of beta(32, 32)
    # The image itself is in every mosaic, at each position equally often.
    places = [p.views[0].sources.index(p.index) for p in plans]
    assert np.allclose(np.bincount(places) / len(places), 0.25, atol=0.03)
    centres = np.array([p.views[0].placements[3].offset_xy for p in plans])
    assert centres.min() >= 32
    assert centres.max() < 96


def test_colours_are_unchanged_without_gain() -> None:
    index = random_index(7)
    strong, none = (
        RandomSamples(index, AugmentConfig(mixup=0.5, hsv_h=h, hsv_s=0, hsv_v=0), seed=1).sample(
            0, 0, output_wh=(64, 64)
        )
        for h in (0.1, 0.0)
    )
    assert strong.hsv_gains is not None and strong.hsv_gains[1:] == (1.0, 1.0)
    # Gains of 1 would change pixels, because conversion to 8-bit hue and saturation loses levels.
    assert none.hsv_gains is None
    # All other draws are the same.
    assert (none.flip_left_right, none.mix_ratio) == (strong.flip_left_right, strong.mix_ratio)
    assert [v.sources for v in none.views] == [v.sources for v in strong.views]


def test_mixup_partner_is_any_image() -> None:
    """Image weights select the images of an epoch and of its mosaics, but not the mixup partner, as in YOLOv5."""
    index = index_of([(64, 64)] * 20, [np.zeros((0, 5), np.float32)] * 20)
    samples = RandomSamples(index, AugmentConfig(mixup=1.0), seed=0)
    blended = set()
    for epoch in range(50):
        own, other = samples.sample(epoch, 2, output_wh=(64, 64), partners=np.array([2] * 20)).views
        assert own.sources == (2, 2, 2, 2)
        assert other.sources.count(2) >= 3
        blended |= set(other.sources)
    assert len(blended) > 15


def test_order_is_permutation_with_repeats() -> None:
    order, repeat = epoch_order(0, 3, 100)
    assert sorted(order.tolist()) == list(range(100))
    assert not repeat.any()
    assert not np.array_equal(order, epoch_order(0, 4, 100)[0])
    weighted, repeat = epoch_order(0, 3, 100, image_weights=np.arange(100) % 3 == 0)
    assert np.all(weighted % 3 == 0)
    seen: dict[int, int] = {}
    for number, times in zip(weighted.tolist(), repeat.tolist(), strict=True):
        assert times == seen.get(number, 0)
        seen[number] = times + 1


def test_multi_scale_sizes_are_multiples_of_stride() -> None:
    sizes = multi_scale_sizes(0, 0, 500, image_px=640, stride=32)
    assert set(sizes) == set(range(320, 961, 32))


def test_invalid_configuration_raises() -> None:
    with pytest.raises(ValueError, match=r"augmentation mixup=1.5: must be between 0 and 1"):
        AugmentConfig(mixup=1.5)
    with pytest.raises(ValueError, match="rect cannot be used with quad"):
        AugmentConfig(rect=True, quad=True)

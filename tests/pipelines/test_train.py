import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.augmentation.augment_config import AugmentConfig
from pipelines.batches import Batch
from pipelines.data.columns import ImageFormats, ImagePaths, Polygons, RowGroups
from pipelines.data.images import inspect_image
from pipelines.data.index import ImageIndex
from pipelines.settings import BatchSettings
from pipelines.shard import Shard
from pipelines.train import TrainPipeline
from tests.pipelines.rendered import blended_hits, label_hits, rendered_index, unlabelled_patches

GEOMETRY_ONLY = AugmentConfig(hsv_h=0, hsv_s=0, hsv_v=0)
"""Default geometry, without colour augmentation."""


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ImageIndex:
    return rendered_index(tmp_path_factory.mktemp("rendered"))


Make = Callable[..., TrainPipeline]


@pytest.fixture
def make(index: ImageIndex) -> Iterator[Make]:
    made: list[TrainPipeline] = []

    def build(augment: AugmentConfig = GEOMETRY_ONLY, **changes: object) -> TrainPipeline:
        images, seed = changes.pop("index", index), changes.pop("seed", 3)
        settings = replace(BatchSettings(batch_size=8, image_px=256, workers=2), **changes)  # type: ignore[arg-type]
        made.append(TrainPipeline(images, augment, settings, seed=seed))  # type: ignore[arg-type]
        return made[-1]

    yield build
    for pipeline in made:
        pipeline.close()


def assert_same(one: Batch, other: Batch) -> None:
    assert np.array_equal(one.images, other.images)
    assert np.array_equal(one.labels, other.labels)
    assert np.array_equal(one.indices, other.indices)
    assert one.paths == other.paths


@pytest.mark.parametrize(
    ("augment", "limit"),
    [
        (GEOMETRY_ONLY, 0.95),
        (replace(GEOMETRY_ONLY, flipud=0.5), 0.95),
        (replace(GEOMETRY_ONLY, mosaic=0.0), 0.95),
        (replace(GEOMETRY_ONLY, rect=True), 0.95),
        (replace(GEOMETRY_ONLY, quad=True), 0.95),
        (replace(GEOMETRY_ONLY, degrees=15, shear=4), 0.9),
        (replace(GEOMETRY_ONLY, perspective=0.0005), 0.9),
        (replace(GEOMETRY_ONLY, degrees=0.01), 0.95),  # an almost identical warp, to test the alignment of that path
    ],
    ids=lambda value: "",
)
def test_boxes_match_pixels(make: Make, augment: AugmentConfig, limit: float) -> None:
    hits, lost = [], 0
    for epoch in range(2):
        for batch in make(augment).epoch(epoch):
            assert batch.images.dtype == np.uint8
            assert batch.labels.dtype == np.float32
            hits.append(label_hits(batch.images, batch.labels))
            lost += unlabelled_patches(batch.images, batch.labels)
    every = np.concatenate(hits)
    assert len(every) > 60
    assert every.mean() >= limit
    # By the reference's rule, boxes that keep less than a tenth of their area lose their label.
    assert lost <= 0.1 * len(every)


@pytest.mark.parametrize("changes", [{}, {"flipud": 0.5}, {"mosaic9": 0.5}, {"degrees": 0.01}], ids=str)
def test_boxes_match_pixels_in_mixup(make: Make, changes: dict[str, Any]) -> None:
    batches = list(make(replace(GEOMETRY_ONLY, mixup=1.0, **changes)).epoch(0))
    hits = np.concatenate([blended_hits(b.images, b.labels) for b in batches])
    assert len(hits) > 60
    assert hits.mean() >= 0.97


def test_boxes_match_pixels_in_nine_image_mosaics(make: Make) -> None:
    # Later images cover parts of earlier ones; labels are kept, as in the reference.
    batches = list(make(replace(GEOMETRY_ONLY, mosaic9=1.0)).epoch(0))
    hits = np.concatenate([label_hits(b.images, b.labels) for b in batches])
    assert len(hits) > 60
    assert hits.mean() >= 0.9


def test_pasted_objects_match_labels(make: Make, tmp_path: Path) -> None:
    outlined = rendered_index(tmp_path, polygons=True)
    with_copies, without = (
        list(make(replace(GEOMETRY_ONLY, copy_paste=share), index=outlined).epoch(0)) for share in (0.8, 0.0)
    )
    assert sum(len(b.labels) for b in with_copies) > 1.15 * sum(len(b.labels) for b in without)
    # Copies may touch or partly cover other objects (by up to 30 %), so a few patches are incomplete.
    hits = np.concatenate([label_hits(b.images, b.labels) for b in with_copies])
    assert np.median(hits) >= 0.95
    assert hits.mean() >= 0.85


def test_batches_do_not_depend_on_workers(make: Make) -> None:
    default = AugmentConfig()
    for one, other in zip(make(default, workers=1).epoch(5), make(default, workers=3).epoch(5), strict=True):
        assert_same(one, other)


def test_epoch_resumed_midway_is_identical(make: Make) -> None:
    pipeline = make(AugmentConfig())
    whole = list(pipeline.epoch(2))
    rest = list(pipeline.epoch(2, first_batch=1))
    assert len(rest) == len(whole) - 1
    for one, other in zip(whole[1:], rest, strict=True):
        assert_same(one, other)


def test_epochs_differ_and_are_reproducible(make: Make) -> None:
    pipeline = make(AugmentConfig())
    first, again, other = (next(pipeline.epoch(epoch)) for epoch in (0, 0, 1))
    assert_same(first, again)
    assert not np.array_equal(first.indices, other.indices)
    assert not np.array_equal(first.images, other.images)


def test_ranks_partition_single_process_batch(make: Make) -> None:
    whole = list(make(AugmentConfig()).epoch(1))
    parts = [list(make(AugmentConfig(), shard=Shard(rank, 2)).epoch(1)) for rank in range(2)]
    for one, *shares in zip(whole, *parts, strict=True):
        assert np.array_equal(one.images, np.concatenate([share.images for share in shares]))
        assert np.array_equal(one.indices, np.concatenate([share.indices for share in shares]))


def test_every_image_once_with_smaller_last_batch(make: Make, index: ImageIndex) -> None:
    pipeline = make(batch_size=7)
    batches = list(pipeline.epoch(0))
    assert [len(b.images) for b in batches] == [7, 7, 7, 3]
    assert pipeline.batches_per_epoch == 4
    assert sorted(np.concatenate([b.indices for b in batches])) == list(range(len(index)))


@pytest.mark.parametrize("ranks", [2, 3])
def test_uneven_batches_are_split_among_ranks(make: Make, index: ImageIndex, ranks: int) -> None:
    small = replace(
        index,
        paths=ImagePaths.of(index.paths[:5]),
        sizes=index.sizes[:5],
        labels=RowGroups.of(index.labels[:5], columns=5),
        segments=Polygons.of(index.segments[:5]),
        formats=ImageFormats.of(index.formats[:5]),
    )
    pipeline = make(index=small, batch_size=4)
    assert [pipeline.images_of(batch) for batch in range(2)] == [4, 1]
    whole = list(pipeline.epoch(0))
    parts = [list(make(index=small, batch_size=4, shard=Shard(rank, ranks)).epoch(0)) for rank in range(ranks)]
    first = np.concatenate([part[0].indices for part in parts])
    assert first.tolist() == whole[0].indices.tolist()
    # A single image is processed by all ranks.
    assert all(part[1].indices.tolist() == whole[1].indices.tolist() for part in parts)


def test_quad_images_stay_on_one_rank(make: Make, index: ImageIndex) -> None:
    quad = AugmentConfig(quad=True)
    whole = next(make(quad, batch_size=12).epoch(0))
    parts = [next(make(quad, batch_size=12, shard=Shard(rank, 2)).epoch(0)) for rank in range(2)]
    assert [len(part.images) for part in parts] == [2, 1]
    with pytest.raises(ValueError, match="batch size 6: must be a multiple of 4 with quad"):
        make(quad, batch_size=6)
    assert np.array_equal(whole.images, np.concatenate([part.images for part in parts]))


def test_shard_rows() -> None:
    shards = [Shard(rank, 3) for rank in range(3)]
    for count in range(12):
        rows = [row for shard in shards if shard.owns_rows(count) for row in range(count)[shard.rows(count)]]
        assert rows == list(range(count))
        most = max(len(range(count)[shard.rows(count)]) for shard in shards)
        assert most <= shards[0].max_rows(count)


def test_image_weights_sample_images(make: Make, index: ImageIndex) -> None:
    weights = np.zeros(len(index))
    weights[[2, 5]] = 1
    batches = list(make().epoch(0, image_weights=weights))
    drawn = np.concatenate([b.indices for b in batches])
    assert set(drawn.tolist()) == {2, 5}
    images = np.concatenate([b.images for b in batches])
    # The same image again in one epoch is another sample.
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) == len(images)
    with pytest.raises(ValueError, match="image weights"):
        next(make().epoch(0, image_weights=np.zeros(len(index))))


def test_batch_image_sizes_can_be_set(make: Make) -> None:
    batches = list(make().epoch(0, sizes=[128, 320, 256]))
    assert [b.images.shape[2:] for b in batches] == [(128, 128), (320, 320), (256, 256)]
    assert np.concatenate([label_hits(b.images, b.labels) for b in batches]).mean() > 0.93
    with pytest.raises(ValueError, match="2 image sizes for 3"):
        make().epoch(0, sizes=[128, 256])


def test_quad_joins_four_images(make: Make) -> None:
    batches = list(make(replace(GEOMETRY_ONLY, quad=True)).epoch(0))
    assert [b.images.shape for b in batches] == [(2, 3, 512, 512)] * 3
    with pytest.raises(ValueError, match="multiple of 4"):
        make(replace(GEOMETRY_ONLY, quad=True), batch_size=6)


def test_rectangular_batches_fit_their_images(make: Make, index: ImageIndex) -> None:
    batches = list(make(replace(GEOMETRY_ONLY, rect=True)).epoch(0))
    aspect = index.sizes[:, 1] / index.sizes[:, 0]
    order = np.concatenate([b.indices for b in batches])
    assert np.all(np.diff(aspect[order]) >= 0)
    for batch in batches:
        height, width = batch.images.shape[2:]
        assert max(height, width) == 256
        assert height % 32 == width % 32 == 0
    with pytest.raises(ValueError, match="rect cannot be used with"):
        make(replace(GEOMETRY_ONLY, rect=True)).epoch(0, sizes=[256] * 3)


def test_warp_and_region_resize_match(make: Make) -> None:
    direct = next(make(replace(GEOMETRY_ONLY, scale=0.1)).epoch(0))
    warped = next(make(replace(GEOMETRY_ONLY, scale=0.1, degrees=1e-9)).epoch(0))
    assert np.array_equal(direct.indices, warped.indices)
    assert np.allclose(direct.labels, warped.labels, atol=1e-5)
    assert np.abs(direct.images.astype(int) - warped.images).mean() < 2  # grey levels: edges are blurred once more


def test_max_labels_is_the_maximum_per_image(make: Make) -> None:
    for batch in make().epoch(0):
        counts = [int((batch.labels[:, 0] == n).sum()) for n in range(len(batch.images))]
        assert batch.max_labels == max(counts)


def test_break_mid_epoch_leaves_no_thread(make: Make) -> None:
    before = set(threading.enumerate())
    pipeline = make()
    batches = pipeline.epoch(0)
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    started = {thread.name for thread in set(threading.enumerate()) - before}
    assert not any("batches" in name for name in started)  # threads that draw stay for the next epoch
    other = pipeline.epoch(1)
    kept = next(other)
    copy = kept.images.copy()
    pipeline.close()
    assert set(threading.enumerate()) == before
    assert np.array_equal(kept.images, copy)


def test_waiting_time_is_measured(make: Make) -> None:
    pipeline = make()
    list(pipeline.epoch(0))
    assert pipeline.timings.batches == 3
    assert pipeline.timings.waiting > 0


def test_file_damaged_during_run_is_named(make: Make, tmp_path: Path) -> None:
    index = rendered_index(tmp_path, images=6, seed=1)
    index.paths[3].write_bytes(index.paths[3].read_bytes()[:200])
    with pytest.raises(OSError, match=r"003\.jpg"):
        list(make(index=index, batch_size=2).epoch(0))
    index.paths[3].unlink()
    with pytest.raises(OSError, match=r"003\.jpg: can no longer be read"):
        list(make(index=index, batch_size=2).epoch(0))
    os.mkfifo(index.paths[3])  # opening it would block
    with pytest.raises(OSError, match=r"003\.jpg: can no longer be read \(not a regular file\)"):
        list(make(index=index, batch_size=2).epoch(0))


@pytest.mark.parametrize("degrees", [0.0, 5.0])
def test_pass_after_failed_pass_is_complete(make: Make, tmp_path: Path, degrees: float) -> None:
    """Batches queued when the file was missing must not appear in the next pass."""
    index = rendered_index(tmp_path, images=12, seed=1)
    settings = {"index": index, "batch_size": 2, "image_px": 128}
    augment = replace(GEOMETRY_ONLY, degrees=degrees, mosaic=0.0)
    expected = list(make(augment, **settings).epoch(0))
    missed = expected[3].paths[0]
    pipeline, content = make(augment, **settings), missed.read_bytes()
    missed.unlink()
    with pytest.raises(OSError, match=missed.name):
        list(pipeline.epoch(0))
    missed.write_bytes(content)
    for one, other in zip(expected, pipeline.epoch(0), strict=True):
        assert_same(one, other)


def test_starting_a_pass_ends_the_previous(make: Make) -> None:
    """Include a stop that removes the end marker from the queue just before the thread ends."""
    pipeline = make(batch_size=16)
    old = pipeline.epoch(0)
    next(old)
    run = pipeline._source._running
    assert run is not None
    run._thread.join(30)  # the other batch and the end wait in the queue now
    moments = [True] * 3
    run._thread = SimpleNamespace(is_alive=lambda: bool(moments) and moments.pop(), join=lambda _: None)  # type: ignore[assignment]
    next(pipeline.epoch(1))
    rest: list[Batch] = []
    ended = threading.Thread(target=lambda: rest.extend(old), daemon=True)
    ended.start()
    ended.join(30)
    assert not ended.is_alive()
    assert rest == []


def test_unexplained_failure_names_files(make: Make, index: ImageIndex) -> None:
    pipeline = make(batch_size=2)
    plan = next(pipeline.plans(0))
    with pytest.raises(RuntimeError, match=rf"DALI failed on a batch with .*{index.paths[plan.sources[0]].name}.*: no"):
        pipeline._source.recover([plan], RuntimeError("no reason"))


def test_colours_are_unchanged_without_gain(make: Make, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    noise = _reindexed(rendered_index(tmp_path, images=1), tmp_path / "noise.png")
    centre = replace(GEOMETRY_ONLY, mosaic=0.0, translate=0.0, scale=0.0, fliplr=0.0)
    shown = next(make(centre, index=noise, batch_size=1).epoch(0)).images[0]
    assert np.array_equal(shown, pixels.transpose(2, 0, 1))


@pytest.mark.parametrize("changes", [{}, {"degrees": 5.0}, {"cache": "ram"}], ids=str)
def test_file_rejected_by_dali_is_decoded_on_host(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, changes: dict
) -> None:
    """GPU decoders reject some files that others accept, here with bytes between segments."""
    index = rendered_index(tmp_path, images=9, seed=1)
    augment = replace(GEOMETRY_ONLY, degrees=changes.get("degrees", 0.0))
    settings = {"index": index, "batch_size": 2, "image_px": 128, "cache": changes.get("cache")}
    # Cached as files, because decoded images need no decoder.
    monkeypatch.setattr("pipelines.pixels.image_cache._fits_decoded", lambda index, free: False)
    expected = list(make(augment, **settings).epoch(0))
    content = index.paths[3].read_bytes()
    index.paths[3].write_bytes(content[:20] + b"\0\0" + content[20:])
    assert not inspect_image(index.paths[3]).format.intact
    for epoch in range(2):  # `index` still says that the file is intact
        pipeline = make(augment, **settings)
        for one, other in zip(expected, pipeline.epoch(0), strict=True):
            # The host decodes the whole picture, DALI a part: chroma at its edges may differ by a level.
            assert np.abs(one.images.astype(int) - other.images).max() <= 3
            assert np.array_equal(one.labels, other.labels)
        assert caplog.text.count("003.jpg: DALI cannot decode it") == epoch + 1


@pytest.mark.parametrize("kind", ["cmyk", "grey", "palette", "alpha", "grey16", "exif", "webp", "tiff", "bmp"])
def test_every_file_format_gives_same_pixels(make: Make, tmp_path: Path, kind: str) -> None:
    plain = rendered_index(tmp_path, images=1, seed=4)
    picture = Image.open(plain.paths[0])
    path, expected = _save_as(picture, tmp_path, kind)
    odd = _reindexed(plain, path)
    centre = replace(GEOMETRY_ONLY, mosaic=0.0, translate=0.0, scale=0.0, fliplr=0.0)
    shown = next(make(centre, index=odd, batch_size=1).epoch(0)).images[0]
    Image.fromarray(expected).save(tmp_path / "expected.png")
    wanted = next(make(centre, index=_reindexed(plain, tmp_path / "expected.png"), batch_size=1).epoch(0)).images[0]
    assert np.abs(shown.astype(int) - wanted).mean() < 1.0  # JPEG and WebP lose a little


def _reindexed(index: ImageIndex, path: Path) -> ImageIndex:
    again = ImageIndex.of([(path, inspect_image(path))])
    return replace(index, paths=again.paths, sizes=again.sizes, formats=again.formats)


def _save_as(picture: Image.Image, folder: Path, kind: str) -> tuple[Path, np.ndarray]:
    """Save an image; return the file and the expected pixels."""
    turned = Image.Exif()
    turned[0x0112] = 6
    grey = np.asarray(picture.convert("L"))
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    with_alpha = picture.convert("RGBA")
    with_alpha.putalpha(128)
    fine = {"quality": 98, "subsampling": 0}
    kinds: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "cmyk": (picture.convert("CMYK"), "jpg", fine),
        "grey": (picture.convert("L"), "jpg", fine),
        "palette": (picture.quantize(8), "png", {}),
        "alpha": (with_alpha, "png", {}),
        "grey16": (deep, "png", {}),
        "exif": (picture, "jpg", {**fine, "exif": turned}),
        "webp": (picture, "webp", {"quality": 98}),
        "tiff": (picture, "tif", {}),
        "bmp": (picture, "bmp", {}),
    }
    image, suffix, options = kinds[kind]
    image.save(folder / f"x.{suffix}", **options)
    pixels = np.asarray(picture)
    if kind in ("grey", "grey16"):
        pixels = np.repeat(grey[..., None], 3, axis=2)
    if kind == "exif":
        pixels = np.ascontiguousarray(np.rot90(pixels, -1))
    return folder / f"x.{suffix}", pixels


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_px": 250}, "image size 250: must be a multiple of the stride 32"),
        ({"batch_size": 0}, "batch size 0: must be at least 1"),
        ({"seed": -1}, "seed -1: must be at least 0"),
        ({"workers": 0}, "workers 0: must be at least 1"),
    ],
)
def test_invalid_settings_raise(make: Make, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(GEOMETRY_ONLY, **changes)


def test_batches_are_prefetched(make: Make) -> None:
    pipeline = make()
    batches = pipeline.epoch(0)
    made = pipeline._source._running
    assert made is not None
    waited = threading.Event()
    for _ in range(600):
        if made.ready.full():
            break
        waited.wait(0.1)
    assert made.ready.full()
    assert_same(next(batches), next(make().epoch(0)))
    next(pipeline.epoch(1))  # ends the unfinished pass

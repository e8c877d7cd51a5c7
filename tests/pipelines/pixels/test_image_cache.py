import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kernels.host.free_memory import free_memory
from pipelines.augmentation.augment_config import AugmentConfig
from pipelines.augmentation.rendering import TileRender
from pipelines.data.columns import ImageFormats
from pipelines.data.index import ImageIndex, index_images
from pipelines.pixels.encoded_images import decode_on_host
from pipelines.pixels.image_cache import CacheKind, cache_need, open_images
from pipelines.settings import BatchSettings
from pipelines.train import TrainPipeline
from tests.pipelines.rendered import rendered_index


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ImageIndex:
    return rendered_index(tmp_path_factory.mktemp("rendered"), images=8)


@pytest.mark.parametrize("cache", ["ram", "disk"])
def test_batches_are_identical_with_cache(index: ImageIndex, tmp_path: Path, cache: CacheKind) -> None:
    batches = []
    for kind in (None, cache):
        settings = BatchSettings(batch_size=4, image_px=160, workers=2, cache=kind, cache_dir=tmp_path)
        pipeline = TrainPipeline(index, AugmentConfig(), settings, seed=0)
        batches.append(list(pipeline.epoch(0)))
        pipeline.close()
    for one, other in zip(*batches, strict=True):
        assert np.array_equal(one.images, other.images)


def test_real_photos_are_identical_with_cache(bccd: Path, tmp_path: Path) -> None:
    """Cached images are decoded by Pillow, others partially by DALI; chroma has half the resolution."""
    index = index_images([bccd.parent / "images" / "val"], ("RBC", "WBC", "Platelets"), cache_dir=tmp_path)
    first = []
    for kind in (None, "ram"):
        settings = BatchSettings(batch_size=8, image_px=320, workers=2, cache="ram" if kind else None)
        pipeline = TrainPipeline(index, AugmentConfig(), settings, seed=0)
        first.append(next(pipeline.epoch(0)))
        pipeline.close()
    assert np.array_equal(first[0].images, first[1].images)


def test_memory_need_known_values(index: ImageIndex) -> None:
    two = replace(
        index,
        sizes=np.array([(10, 20), (30, 40)]),
        formats=ImageFormats.of(
            (
                replace(index.formats[0], file_bytes=70),
                replace(index.formats[1], kind="png", mode="RGBA", file_bytes=80),
            )
        ),
    )
    need = cache_need(two)
    assert need.decoded == 10 * 20 * 3 + 30 * 40 * 3
    assert need.encoded == 70 + 30 * 40 * 3  # alpha is removed on the host, so pixels are cached


def test_available_memory_decides_cache_format(index: ImageIndex) -> None:
    need = cache_need(index)
    free = {"decoded": need.decoded * 2, "encoded": int(need.encoded * 1.5)}
    assert free["encoded"] * 0.8 < need.decoded
    for form, amount in free.items():
        images = open_images(index, "ram", memory=[amount].pop)
        assert images.decoded == (form == "decoded")
    with pytest.raises(ValueError, match=r"cache ram: 8 images take .* GB decoded and .* GB encoded, but only 0.00 GB"):
        open_images(index, "ram", memory=lambda: 1000)
    assert free_memory() > 1 << 20


def test_disk_cache_is_private_reused_and_follows_changes(index: ImageIndex, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    open_images(index, "disk", folder=folder)
    first = sorted(folder.iterdir())
    assert len(first) == len(index)
    assert not [p for p in index.paths[0].parent.iterdir() if p.suffix not in (".png", ".jpg")]
    stamps = [p.stat().st_mtime_ns for p in first]
    open_images(index, "disk", folder=folder)
    assert [p.stat().st_mtime_ns for p in sorted(folder.iterdir())] == stamps
    facts = index.paths[0].stat()
    os.utime(index.paths[0], ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
    open_images(index, "disk", folder=folder)
    assert len(list(folder.iterdir())) == len(index) + 1
    with pytest.raises(ValueError, match="cache 'tape': must be ram or disk"):
        open_images(index, "tape")  # type: ignore[arg-type]


def test_truncated_cache_file_is_rebuilt(index: ImageIndex, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    open_images(index, "disk", folder=folder)
    kept = sorted(folder.iterdir())
    whole = [file.read_bytes() for file in kept]
    os.truncate(kept[0], 100)
    kept[1].write_bytes(b"")
    open_images(index, "disk", folder=folder)
    assert [file.read_bytes() for file in sorted(folder.iterdir())] == whole


def whole_image(index: ImageIndex, number: int) -> TileRender:
    width, height = index.sizes_wh[number]
    shape = (height, width)
    return TileRender(
        number, crop_start=(0, 0), crop_shape=shape, region_start=(0, 0), region_end=shape, shape=shape, anchor=(0, 0)
    )


def decoded(index: ImageIndex, number: int) -> np.ndarray:
    return decode_on_host(index.paths[number], index.sizes_wh[number])


def test_damaged_cache_file_is_decoded_again(
    index: ImageIndex, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "cache"
    open_images(index, "disk", folder=folder)
    kept = sorted(folder.iterdir())
    whole = [file.read_bytes() for file in kept]
    for file, place in zip(kept, (0, 100, -1), strict=False):  # the last byte is part of the checksum
        content = bytearray(file.read_bytes())
        content[place] ^= 1
        file.write_bytes(content)
    images = open_images(index, "disk", folder=folder)
    for _ in range(2):
        for number in range(len(index)):
            np.testing.assert_array_equal(images.tile(whole_image(index, number)), decoded(index, number))
    assert [file.read_bytes() for file in sorted(folder.iterdir())] == whole
    assert [text.partition(": ")[2] for text in caplog.messages] == [
        "damaged in the image cache; decoding it again"
    ] * 3


def test_open_cache_survives_removal_of_its_folder(index: ImageIndex, tmp_path: Path) -> None:
    open_images(index, "disk", folder=tmp_path / "cache")
    images = open_images(index, "disk", folder=tmp_path / "cache")
    shutil.rmtree(tmp_path / "cache")
    np.testing.assert_array_equal(images.tile(whole_image(index, 0)), decoded(index, 0))


@pytest.mark.parametrize("size", [None, 0, 100, -1])
@pytest.mark.parametrize("used", [False, True])
def test_cache_file_cut_or_removed_during_a_run_is_written_again(
    index: ImageIndex, tmp_path: Path, caplog: pytest.LogCaptureFixture, size: int | None, used: bool
) -> None:
    open_images(index, "disk", folder=tmp_path)
    whole = {file: file.read_bytes() for file in tmp_path.iterdir()}
    images = open_images(index, "disk", folder=tmp_path)
    if used:
        for number in range(len(index)):
            images.tile(whole_image(index, number))
    for file, content in whole.items():
        if size is None:
            file.unlink()
        else:
            os.truncate(file, size % len(content))
    caplog.clear()
    for number in range(len(index)):
        np.testing.assert_array_equal(images.tile(whole_image(index, number)), decoded(index, number))
    if used and size == -1:  # only the checksum is incomplete, which is not needed any more
        assert caplog.messages == []
    else:
        assert len(caplog.messages) == len(index)
        assert {file: file.read_bytes() for file in tmp_path.iterdir()} == whole


def test_disk_cache_keeps_no_file_open(index: ImageIndex, tmp_path: Path) -> None:
    """A data set may have more images than a process may open files, usually 1024."""
    for _ in range(2):
        before = len(os.listdir("/proc/self/fd"))
        images = open_images(index, "disk", folder=tmp_path)
        images.tile(whole_image(index, 0))
        assert len(os.listdir("/proc/self/fd")) == before


def test_crop_of_disk_cache_is_that_of_the_image(index: ImageIndex, tmp_path: Path) -> None:
    width, height = index.sizes_wh[3]
    shape = (height - 7, width - 9)
    tile = replace(whole_image(index, 3), crop_start=(3, 4), crop_shape=shape, region_end=shape)
    images = open_images(index, "disk", folder=tmp_path)
    for opened in (images, open_images(index, "disk", folder=tmp_path)):
        for _ in range(2):
            np.testing.assert_array_equal(opened.tile(tile), decoded(index, 3)[3 : height - 4, 4 : width - 5])


def test_replaced_image_with_same_mtime_and_size_is_decoded_again(tmp_path: Path) -> None:
    index = rendered_index(tmp_path, images=1)
    open_images(index, "disk", folder=tmp_path / "cache")
    shutil.copy2(index.paths[0], tmp_path / "copy")
    os.replace(tmp_path / "copy", index.paths[0])
    open_images(index, "disk", folder=tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_image_with_unexpected_size_is_reported(tmp_path: Path) -> None:
    index = rendered_index(tmp_path, images=1)
    with Image.open(index.paths[0]) as image:
        smaller = image.resize((20, 20))
    smaller.save(index.paths[0])
    with pytest.raises(OSError, match=r"000\.png: is no longer .* px; check whether it was changed"):
        open_images(index, "disk", folder=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []

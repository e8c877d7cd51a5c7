from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.augmentation.letterbox import BORDER_GREY
from pipelines.predict import FrameBatches, ImageBatches, PredictSettings, inspect_images


def settings(batch_size: int = 3) -> PredictSettings:
    return PredictSettings(image_hw=(64, 64), stride=16, batch_size=batch_size, workers=1)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Write four wide images of 64 x 40 px, a tall one of 40 x 64 px and a small one of 32 x 24 px, random pixels."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(1)
    paths = []
    for number, (height, width) in enumerate([(40, 64), (40, 64), (64, 40), (40, 64), (24, 32), (40, 64)]):
        paths.append(folder / f"{number}.png")
        Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8)).save(paths[-1])
    return paths


def test_broken_images_are_reported_separately(photos: list[Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(photos[0].read_bytes()[:100])
    index, problems = inspect_images([photos[0], broken, tmp_path / "none.png", photos[2]], workers=2)
    assert index.paths == (photos[0], photos[2])
    assert index.sizes.tolist() == [[64, 40], [40, 64]]
    assert [problem.file for problem in problems] == [broken, tmp_path / "none.png"]


def test_images_of_one_shape_share_even_batches(photos: list[Path]) -> None:
    source = ImageBatches(inspect_images(photos)[0], settings())
    try:
        # 40 rows need a border of 8 to be a multiple of 16; 32 x 24 px grow to 64 x 48 without any.
        assert source.shapes == {(48, 64): 3, (64, 48): 1}
        batches = list(source)
    finally:
        source.close()
    assert [batch.indices.tolist() for batch in batches] == [[0, 1, 3], [4, 5], [2]]
    assert [batch.images.shape for batch in batches] == [(3, 3, 48, 64), (2, 3, 48, 64), (1, 3, 64, 48)]
    assert batches[1].paths == (photos[4], photos[5])


def test_pixels_are_unchanged_without_resizing(photos: list[Path]) -> None:
    source = ImageBatches(inspect_images(photos)[0], settings())
    try:
        batch = next(iter(source))
        images, place = batch.images.copy(), batch.geometry[0]
    finally:
        source.close()
    pixels = np.asarray(Image.open(photos[0])).transpose(2, 0, 1)
    assert np.array_equal(images[0, :, 4:44], pixels)
    assert (images[0, :, :4] == BORDER_GREY).all()
    assert (images[0, :, 44:] == BORDER_GREY).all()
    assert (place.original_hw, place.ratio_hw, place.pad_wh) == ((40, 64), (1.0, 1.0), (0.0, 4.0))


def test_one_pixel_wide_image(tmp_path: Path) -> None:
    Image.new("RGB", (4000, 12), (9, 9, 9)).save(tmp_path / "thread.png")
    source = ImageBatches(inspect_images([tmp_path / "thread.png"])[0], settings())
    try:
        batch = next(iter(source))
        images = batch.images.copy()
    finally:
        source.close()
    assert images.shape == (1, 3, 16, 64)
    assert (images[0, 0] == 9).sum() == 64


def test_frames_match_images(photos: list[Path]) -> None:
    wide = [photos[0], photos[1], photos[3], photos[5]]
    images = ImageBatches(inspect_images(wide)[0], settings(4))
    frames = FrameBatches(Path("clip.mp4"), (64, 40), settings(3))
    try:
        expected = next(iter(images)).images
        pixels = [np.asarray(Image.open(path)) for path in wide]
        found = list(frames.batches(pixels))
        assert frames.shape_hw == (48, 64)
    finally:
        images.close()
        frames.close()
    assert [len(batch.images) for batch, _ in found] == [3, 1]
    assert np.array_equal(np.concatenate([batch.images for batch, _ in found]), expected)
    kept = [frame for _, group in found for frame in group]
    assert all(np.array_equal(*pair) for pair in zip(kept, pixels, strict=True))

"""Finding the damaged image after DALI has failed on a batch."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.data.images import inspect_image
from pipelines.data.index import ImageIndex
from pipelines.data.intact import ORIENTATION_TAG
from pipelines.pixels import encoded_images
from pipelines.pixels.backend import Backend
from pipelines.pixels.decoding import dali_can_decode
from pipelines.pixels.encoded_images import ImageBytes, decode_on_host
from tests.pipelines.rendered import rendered_index


@pytest.fixture
def index(tmp_path: Path) -> ImageIndex:
    return rendered_index(tmp_path, images=2)


def test_damage_at_end_of_image_is_found(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (80, 120, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.jpg", quality=95)
    content = np.fromfile(tmp_path / "a.jpg", np.uint8)
    assert dali_can_decode(content, (120, 80), Backend())
    assert not dali_can_decode(content[: len(content) * 3 // 4], (120, 80), Backend())


def test_images_are_tested_completely(index: ImageIndex) -> None:
    encoded = ImageBytes(index)
    assert encoded.decode_rejected_on_host([0, 1], Backend()) == []
    jpeg = index.paths[1].read_bytes()
    index.paths[1].write_bytes(jpeg[: len(jpeg) * 3 // 4])
    assert encoded.decode_rejected_on_host([0, 1], Backend()) == [1]
    with pytest.raises(OSError, match=r"001\.jpg: can no longer be decoded"):  # nor can Pillow
        encoded[1]


def test_any_pillow_error_explains_failure(index: ImageIndex) -> None:
    """A file replaced by one that claims 3.6 gigapixels raises no OSError in Pillow."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), (b"IDAT", b""))
    ]
    index.paths[0].write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    with pytest.raises(OSError, match=r"000\.png: can no longer be decoded; check whether it was changed"):
        ImageBytes(index)[0]
    message = ImageBytes(index).explain_failure([0, 1, 0])
    assert message.startswith(f"{index.paths[0]} (Image size")
    assert "001.jpg" not in message and "\n" not in message


def test_garbage_is_reported_as_non_image(index: ImageIndex) -> None:
    index.paths[0].write_bytes(b"garbage")
    assert ImageBytes(index).explain_failure([0, 1]) == f"{index.paths[0]} (not an image)"


def test_image_replaced_by_one_of_another_size(index: ImageIndex) -> None:
    """The boxes would be wrong, and DALI fails on crops outside of the image."""
    encoded = ImageBytes(index)
    width, height = index.sizes_wh[0]
    Image.new("RGB", (width + 5, height)).save(index.paths[0])
    with pytest.raises(OSError, match=rf"000\.png: is no longer {width} x {height} px; check whether it was changed"):
        encoded[0]
    with pytest.raises(OSError, match="is no longer"):
        decode_on_host(index.paths[0], (width, height))
    Image.new("RGB", (width, height)).save(index.paths[0])  # a new version of the same picture, say
    assert len(encoded[0]) == index.paths[0].stat().st_size


@pytest.mark.parametrize("number", [0, 1])
def test_image_header_changed_to_gigapixels_is_rejected(index: ImageIndex, number: int) -> None:
    """The file keeps its number of bytes; DALI would decode it for minutes."""
    path, (width, height) = index.paths[number], index.sizes_wh[number]
    content = path.read_bytes()
    if path.suffix == ".png":
        header = content[12:16] + struct.pack(">II", 60_000, 60_000) + content[24:29]
        changed = content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]
    else:
        place = content.index(struct.pack(">BHH", 8, height, width))
        changed = content[:place] + struct.pack(">BHH", 8, 60_000, 60_000) + content[place + 5 :]
    assert len(changed) == len(content) != 0 and changed != content
    path.write_bytes(changed)
    with pytest.raises(OSError, match=rf"{path.name}: can no longer be decoded; check whether it was changed"):
        ImageBytes(index)[number]


def test_rotated_images_do_not_count_as_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slow inspection of a header is for images that have changed."""
    monkeypatch.setattr(encoded_images, "upright_size", lambda _: pytest.fail("inspected"))
    exif = Image.Exif()
    for orientation in range(1, 9):
        exif[ORIENTATION_TAG] = orientation
        Image.new("RGB", (40, 20 + orientation)).save(tmp_path / f"{orientation}.jpg", exif=exif)
    images = [(path, inspect_image(path)) for path in sorted(tmp_path.iterdir())]
    encoded = ImageBytes(ImageIndex.of(images))
    assert [len(encoded[number]) for number in range(8)] == [path.stat().st_size for path, _ in images]

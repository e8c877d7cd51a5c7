"""JPEGs accepted without decoding, which Pillow must be able to decode."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.data import images
from pipelines.data.images import inspect_image
from pipelines.data.intact import is_intact
from pipelines.data.plain_jpeg import PlainJpeg, plain_jpeg
from tests.pipelines.data_sets import picture


def jpeg(mode: str = "RGB", **save: Any) -> bytes:
    stream = io.BytesIO()
    picture().convert(mode).save(stream, "JPEG", **save)
    return stream.getvalue()


def with_exif() -> bytes:
    block = Image.Exif()
    block[0x0112] = 6
    return jpeg(exif=block.tobytes())


PLAIN = {
    "colour": jpeg(),
    "grey": jpeg("L"),
    "no subsampling": jpeg(subsampling=0),
    "half": jpeg(subsampling=1),
    "own tables": jpeg(optimize=True, quality=30),
    "restarts": jpeg(restart_marker_rows=1),
    "colour profile": jpeg(icc_profile=b"p" * 300),
    "comment": jpeg(comment=b"made by hand"),
    "adobe": jpeg(keep_rgb=True),
}


@pytest.mark.parametrize("name", PLAIN)
def test_baseline_jpegs_are_recognised(name: str) -> None:
    mode = "L" if name == "grey" else "RGB"
    assert plain_jpeg(PLAIN[name]) == PlainJpeg(mode, 40, 30, has_metadata=False)


@pytest.mark.parametrize("name", PLAIN)
def test_metadata_matches_decoded_image(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jpg").write_bytes(PLAIN[name])
    facts = inspect_image(tmp_path / "a.jpg")
    monkeypatch.setattr(images, "plain_jpeg", lambda _: None)
    assert inspect_image(tmp_path / "a.jpg") == facts


def test_recognised_jpeg_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow opens such a file only to read EXIF data."""

    def reject(*_: object, **__: object) -> None:
        raise AssertionError("decoded")

    (tmp_path / "turned.jpg").write_bytes(with_exif())
    (tmp_path / "plain.jpg").write_bytes(jpeg())
    monkeypatch.setattr("PIL.JpegImagePlugin.JpegImageFile.load", reject)
    turned = inspect_image(tmp_path / "turned.jpg")
    assert (turned.width, turned.height, turned.format.orientation, turned.format.intact) == (30, 40, 6, True)
    monkeypatch.setattr(Image, "open", reject)
    assert inspect_image(tmp_path / "plain.jpg").format.intact


def changed(content: bytes, find: bytes, at: int, value: int) -> bytes:
    """Replace one byte, `at` bytes after the first occurrence of `find`."""
    noisy = bytearray(content)
    noisy[content.index(find) + at] = value
    return bytes(noisy)


QUANTISER, FRAME, HUFFMAN, SCAN = b"\xff\xdb", b"\xff\xc0", b"\xff\xc4", b"\xff\xda"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xd8",
        jpeg()[:-1],
        jpeg()[:300],
        jpeg(progressive=True),
        jpeg("CMYK"),
        changed(jpeg(), QUANTISER, 4, 0x10),  # 16-bit values
        changed(jpeg(), QUANTISER, 4, 4),  # there are four tables
        changed(jpeg(), FRAME, 4, 12),  # bits
        changed(jpeg(), FRAME, 9, 2),  # components
        changed(jpeg(), FRAME, 11, 0x33),  # sampling
        changed(jpeg(), FRAME, 12, 3),  # a missing quantiser
        changed(jpeg(), FRAME, 1, 0xC9),  # arithmetic coding
        changed(jpeg(), FRAME, 6, 0).replace(b"\x00\x1e", b"\x00\x00", 1),  # no height
        changed(jpeg(), HUFFMAN, 5, 200),  # three codes of one bit
        changed(jpeg(), HUFFMAN, 4, 0x20),  # neither DC nor AC
        changed(jpeg(), HUFFMAN, 21, 16),  # a DC symbol of 16 bits
        changed(jpeg(), SCAN, 6, 0x22),  # missing tables
        changed(jpeg(), SCAN, 5, 9),  # a missing component
        changed(jpeg(), SCAN, 4, 1),  # not all components in one scan
        changed(jpeg(), b"\xff\xe0", 3, 1),  # a length of one byte
    ],
)
def test_other_jpegs_are_decoded(content: bytes) -> None:
    assert plain_jpeg(content) is None


@pytest.mark.parametrize("name", PLAIN)
def test_pillow_decodes_every_recognised_jpeg(name: str) -> None:
    """Change bytes of markers, tables and frame header; damaged pixel data does not stop a decoder."""
    rng, good = np.random.default_rng(sum(name.encode())), PLAIN[name]
    header = good.index(SCAN) + 14
    recognised = 0
    for _ in range(1500):
        noisy = bytearray(good)
        for position in rng.integers(2, header, rng.integers(1, 4)):
            flipped = noisy[position] ^ (1 << rng.integers(8))
            noisy[position] = rng.integers(256) if rng.random() < 0.5 else flipped
        content = bytes(noisy)
        found = plain_jpeg(content)
        if found is None or found.has_metadata or found.width * found.height > 10**6:
            continue
        recognised += 1
        with Image.open(io.BytesIO(content)) as image:
            assert (image.format, image.mode, *image.size) == ("JPEG", found.mode, found.width, found.height)
            image.load()
        assert is_intact(content, "jpeg", 1)
    assert recognised > 20

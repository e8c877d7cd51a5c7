"""Sizes from headers, compared with Pillow's."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.data.stored_size import stored_size

SIZE = (300, 17)


def encoded(kind: str, mode: str = "RGB", **settings: Any) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, kind, **settings)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("kind", "mode", "settings"),
    [
        ("JPEG", "RGB", {}),
        ("JPEG", "L", {"progressive": True}),
        ("JPEG", "CMYK", {}),
        ("JPEG", "RGB", {"comment": b"\xff\xc0" * 40, "icc_profile": b"\xff\xd8\xff\xc0" * 50}),
        ("PNG", "RGB", {}),
        ("PNG", "P", {}),
        ("BMP", "RGB", {}),
        ("BMP", "L", {}),
        ("WEBP", "RGB", {}),
        ("WEBP", "RGB", {"lossless": True}),
        ("WEBP", "RGBA", {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0"}),
    ],
)
def test_size_of_every_format(kind: str, mode: str, settings: dict[str, Any]) -> None:
    assert stored_size(encoded(kind, mode, **settings)) == SIZE


def test_bytes_between_segments_are_skipped_as_by_libjpeg() -> None:
    content = encoded("JPEG")
    padded = content[:20] + b"junk\xff\0\xff\xff\xff" + content[21:]
    assert Image.open(io.BytesIO(content)).size == stored_size(padded) == SIZE


def test_old_and_top_down_bitmaps() -> None:
    content = encoded("BMP")
    assert stored_size(content[:22] + (-SIZE[1]).to_bytes(4, "little", signed=True) + content[26:]) == SIZE
    core = b"\x0c\0\0\0" + SIZE[0].to_bytes(2, "little") + SIZE[1].to_bytes(2, "little")
    assert stored_size(content[:14] + core + content[22:]) == SIZE


@pytest.mark.parametrize("content", [b"", b"text", b"\xff\xd8", b"\xff\xd8\xff\xda\0\0", b"RIFF\0\0\0\0WEBPnone"])
def test_no_image_has_no_size(content: bytes) -> None:
    assert stored_size(content) is None


def test_truncated_headers_do_not_raise() -> None:
    for kind in ("JPEG", "PNG", "BMP", "WEBP"):
        content = encoded(kind)
        for length in range(700):
            stored_size(content[:length])

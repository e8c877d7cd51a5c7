"""Damaged image files: truncated, with flipped bits, a false size or the wrong suffix."""

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

Expected = Literal["used", "reported", "either"]
"""Expected outcome of a file: used, reported and skipped, or either (a decoder may tolerate the damage)."""
FORMATS = {"jpg": "JPEG", "png": "PNG", "bmp": "BMP", "webp": "WEBP", "tif": "TIFF"}
CUTS = 10
FLIPPED = 20


@dataclass(frozen=True)
class Case:
    """A file's name, content and expected outcome."""

    name: str
    content: bytes
    expected: Expected


def picture(width: int = 48, height: int = 40) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x * 5 % 256, y * 6 % 256, (x * y) % 256], -1).astype(np.uint8))


def encoded(kind: str = "JPEG", image: Image.Image | None = None, **save: Any) -> bytes:
    stream = io.BytesIO()
    (image or picture()).save(stream, kind, **save)
    return stream.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    """Return a PNG chunk with a valid checksum."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, *, bits: int = 8, colour: int = 2, rows: bytes = b"", before: bytes = b"") -> bytes:
    """Return a PNG whose header states this size and whose data are these (compressed) rows."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + before + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")


def jpeg_of_stated_size(width: int, height: int) -> bytes:
    """Return a JPEG of a small image whose frame header claims another size."""
    content = bytearray(encoded())
    frame = content.find(b"\xff\xc0")
    struct.pack_into(">HH", content, frame + 5, height, width)
    return bytes(content)


def jpeg_of_many_scans(scans: int) -> bytes:
    """Return a large progressive JPEG whose last scan is repeated, so that few bytes take minutes to decode."""
    content = encoded("JPEG", Image.new("L", (3000, 3000)), progressive=True)
    last = content.rfind(b"\xff\xda")
    return content[:-2] + content[last:-2] * scans + content[-2:]


def _cut() -> Iterator[Case]:
    for suffix, kind in FORMATS.items():
        whole = encoded(kind)
        for part in range(CUTS):
            size = len(whole) * part // CUTS
            yield Case(f"cut-{part}of{CUTS}.{suffix}", whole[:size], "reported" if part < 2 else "either")


def _flipped() -> Iterator[Case]:
    for suffix, kind in FORMATS.items():
        for seed in range(FLIPPED):
            random = np.random.default_rng([seed, len(kind)])
            content = bytearray(encoded(kind))
            for position in random.integers(0, len(content), 1 + seed):
                content[position] ^= 1 << int(random.integers(8))
            yield Case(f"flipped-{seed}.{suffix}", bytes(content), "either")


def _other_kinds() -> Iterator[Case]:
    yield Case("zero-bytes.jpg", b"", "reported")
    yield Case("zeros.png", bytes(5000), "reported")
    yield Case("text.jpg", b"this is no picture\n", "reported")
    yield Case("page.jpg", b"<html><body>404 Not Found</body></html>", "reported")
    yield Case("script.png", b"#!/bin/sh\nexit 1\n", "reported")
    yield Case("drawing.jpg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "reported")
    yield Case("animation.jpg", encoded("GIF"), "reported")
    yield Case("postscript.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(r) file\n", "reported")
    yield Case("pointer.jpg", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "reported")
    yield Case("png-inside.jpg", encoded("PNG"), "used")
    yield Case("jpeg-inside.png", encoded("JPEG"), "used")
    yield Case("webp-inside.bmp", encoded("WEBP"), "used")
    yield Case("upper.JPG", encoded("JPEG"), "used")
    yield Case("photo.heic", encoded("JPEG"), "reported")


def _sizes() -> Iterator[Case]:
    yield Case("one-pixel.png", encoded("PNG", picture(1, 1)), "reported")
    yield Case("thin.png", encoded("PNG", picture(2000, 3)), "reported")
    yield Case("stripe.png", encoded("PNG", picture(3000, 10)), "used")
    yield Case("claims-60000.png", png(60000, 60000, rows=bytes(1000)), "reported")
    yield Case("claims-2billion.png", png(2**31 - 1, 2**31 - 1, rows=bytes(1000)), "reported")
    yield Case("claims-0.png", png(0, 0), "reported")
    yield Case("claims-65500.jpg", jpeg_of_stated_size(65500, 65500), "reported")
    yield Case("claims-9000.jpg", jpeg_of_stated_size(9000, 9000), "either")
    yield Case("claims-0.jpg", jpeg_of_stated_size(0, 0), "reported")
    yield Case("bomb.png", png(20000, 20000, bits=1, colour=0, rows=bytes(20000 * 2501)), "reported")
    text = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(32 << 20), 1))
    yield Case("text-bomb.png", png(40, 40, rows=bytes(40 * 121), before=text), "either")
    yield Case("scans.jpg", jpeg_of_many_scans(50_000), "reported")


def _pixels() -> Iterator[Case]:
    for mode in ("1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I;16", "F", "LAB", "HSV"):
        converted = picture().convert("L").convert(mode) if mode in ("I;16", "F") else None
        image = converted or (picture().convert("RGB").convert(mode) if mode != "LAB" else Image.new("LAB", (40, 40)))
        for kind in ("TIFF", "PNG", "JPEG"):
            try:
                content = encoded(kind, image)
            except (OSError, KeyError):
                continue
            yield Case(f"mode-{mode.replace(';', '')}.{kind.lower()}", content, "either")
    exif = Image.Exif()
    for value in (0, 3, 6, 8, 9, 65535):
        exif[0x0112] = value
        yield Case(f"turned-{value}.jpg", encoded("JPEG", exif=exif), "used")
    yield Case("exif-noise.jpg", encoded("JPEG", exif=b"Exif\0\0" + b"\xff" * 200), "used")
    yield Case("exif-cut.jpg", encoded("JPEG", exif=b"Exif\0\0II*\0\x08"), "used")


def damaged_images() -> list[Case]:
    """Return all damaged images, with unique names; the result is deterministic."""
    return [*_cut(), *_flipped(), *_other_kinds(), *_sizes(), *_pixels()]

"""Image files: format detection by content, detection of damage, and DALI decodes every intact file."""

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from pipelines.data.images import (
    ImageFacts,
    UnusableImageError,
    decode_rgb,
    ignore_metadata_warnings,
    inspect_image,
)
from tests.pipelines.data_sets import picture


def exif(orientation: int) -> bytes:
    block = Image.Exif()
    block[0x0112] = orientation
    return block.tobytes()


def encoded(kind: str, mode: str = "RGB", **save: Any) -> bytes:
    stream = io.BytesIO()
    picture().convert(mode).save(stream, kind, **save)
    return stream.getvalue()


def sixteen_bit(kind: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.asarray(picture().convert("L")).astype(np.uint16) * 257).save(stream, kind)
    return stream.getvalue()


def big_endian_tiff() -> bytes:
    """Return the TIFF of `sixteen_bit` in the other byte order, which microscopes and scanners write."""
    grey = np.asarray(picture().convert("L")).astype(">u2") * 257
    stream = io.BytesIO()
    Image.frombytes("I;16B", (grey.shape[1], grey.shape[0]), grey.astype(">u2").tobytes()).save(stream, "TIFF")
    return stream.getvalue()


def inspect(content: bytes, folder: Path) -> ImageFacts:
    file = folder / "picture.dat"  # the suffix does not reveal the format
    file.write_bytes(content)
    with ignore_metadata_warnings():
        return inspect_image(file)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (encoded("JPEG"), ("jpeg", "RGB", 8)),
        (encoded("JPEG", progressive=True), ("jpeg", "RGB", 8)),
        (encoded("JPEG", "L"), ("jpeg", "L", 8)),
        (encoded("JPEG", "CMYK"), ("cmyk-jpeg", "CMYK", 8)),
        (encoded("MPO", save_all=True, append_images=[picture()]), ("jpeg", "RGB", 8)),
        (encoded("PNG"), ("png", "RGB", 8)),
        (encoded("PNG", "RGBA"), ("png", "RGBA", 8)),
        (encoded("PNG", "P"), ("png", "P", 8)),
        (encoded("PNG", "1"), ("png", "1", 1)),
        (sixteen_bit("PNG"), ("png", "I;16", 16)),
        (encoded("BMP"), ("bmp", "RGB", 8)),
        (encoded("WEBP"), ("webp", "RGB", 8)),
        (encoded("TIFF", compression="tiff_lzw"), ("tiff", "RGB", 8)),
        (sixteen_bit("TIFF"), ("tiff", "I;16", 16)),
        (big_endian_tiff(), ("tiff", "I;16B", 16)),
    ],
)
def test_recognises_formats(content: bytes, expected: tuple[str, str, int], tmp_path: Path) -> None:
    facts = inspect(content, tmp_path)
    assert (facts.width, facts.height) == (40, 30)
    assert (facts.format.kind, facts.format.mode, facts.format.bits) == expected
    assert facts.format.file_bytes == len(content) and facts.format.orientation == 1 and facts.format.intact


def test_byte_order_of_16_bits_does_not_matter() -> None:
    np.testing.assert_array_equal(decode_rgb(big_endian_tiff()), decode_rgb(sixteen_bit("TIFF")))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_sizes_are_after_exif_rotation(kind: str, orientation: int, tmp_path: Path) -> None:
    save: dict[str, Any] = {"tiffinfo": {0x0112: orientation}} if kind == "TIFF" else {"exif": exif(orientation)}
    content = encoded(kind, **save)
    facts = inspect(content, tmp_path)
    shown = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    assert (facts.width, facts.height) == shown.size == ((30, 40) if orientation >= 5 else (40, 30))
    assert facts.format.orientation == orientation and facts.format.intact


def png_of_size(width: int, height: int) -> bytes:
    """Return a PNG whose header states a size but that has one row of pixels."""

    def chunk(name: bytes, payload: bytes) -> bytes:
        return struct.pack(">I", len(payload)) + name + payload + struct.pack(">I", zlib.crc32(name + payload))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1 + 3 * min(width, 100)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"just text", "not an image"),
        (b"GIF89a" + bytes(50), "not an image"),
        (b"\xff\xd8\xff", "not an image"),
        (encoded("JPEG")[:-60], "cannot be decoded: image file is truncated"),
        (encoded("JPEG", progressive=True)[:-300], "cannot be decoded"),
        (encoded("PNG")[:-40], "cannot be decoded"),
        (encoded("WEBP")[:-40], "not an image|cannot be decoded"),
        (encoded("BMP")[:-40], "cannot be decoded"),
        (encoded("TIFF")[:-2000], "cannot be decoded|not an image"),
        (png_of_size(9, 400), "9 x 400 px, smaller than 10"),
        (png_of_size(10_000, 10_000), "10000 x 10000 px, more than 89 megapixels"),
        (png_of_size(60_000, 60_000), "decompression bomb"),
    ],
)
def test_unusable_image_has_reason(content: bytes, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UnusableImageError, match=reason) as caught:
        inspect(content, tmp_path)
    assert "\n" not in str(caught.value)


def test_png_with_valid_checksums_but_damaged_pixels(tmp_path: Path) -> None:
    """If it counted as usable, it would end the training that reads it."""
    rows = b"".join(b"\x09" + bytes(3 * 16) for _ in range(16))  # there are filters 0 to 4
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 16, 16, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    ]
    with pytest.raises(UnusableImageError, match="cannot be decoded: unrecognized data stream"):
        inspect(b"\x89PNG\r\n\x1a\n" + b"".join(parts), tmp_path)


def test_non_regular_files_raise(tmp_path: Path) -> None:
    with pytest.raises(UnusableImageError, match="not a regular file"):
        inspect_image(tmp_path)
    os.mkfifo(tmp_path / "pipe.jpg")  # a plain read would block, as nobody writes to it
    with pytest.raises(UnusableImageError, match="not a regular file"):
        inspect_image(tmp_path / "pipe.jpg")
    with pytest.raises(UnusableImageError, match="cannot be read: No such file"):
        inspect_image(tmp_path / "none.jpg")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    with pytest.raises(UnusableImageError, match="cannot be read: Too many levels"):
        inspect_image(tmp_path / "loop.jpg")


def test_decodable_damage_is_not_intact(tmp_path: Path) -> None:
    jpeg, png = encoded("JPEG"), bytearray(encoded("PNG", exif=exif(6)))
    noise_between_segments = jpeg[:20] + b"\x00\x00" + jpeg[20:]
    assert not inspect(noise_between_segments, tmp_path).format.intact
    png[-1] ^= 1  # the checksum of the end chunk
    assert not inspect(bytes(png), tmp_path).format.intact
    broken_exif = encoded("JPEG", exif=exif(6)).replace(b"MM\0*", b"MM\0+")
    assert not inspect(broken_exif, tmp_path).format.intact


Decode = Callable[[bytes], np.ndarray]


@pytest.fixture(scope="module")
def dali_decode() -> Decode:
    """Decode a file with DALI's CPU decoder, rotated according to EXIF."""
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1)
    def decoder() -> Any:
        content = fn.external_source(name="content", no_copy=False)
        return fn.decoders.image(content, output_type=types.RGB, adjust_orientation=True)

    pipeline = decoder()
    pipeline.build()

    def decode(content: bytes) -> np.ndarray:
        pipeline.feed_input("content", [np.frombuffer(content, np.uint8)])
        return np.array(pipeline.run()[0][0])

    return decode


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """Return the content truncated, or with a few bits flipped or bytes replaced."""
    kind = rng.integers(3)
    noisy = bytearray(content)
    if kind == 0:
        return content[: rng.integers(1, len(content))]
    if kind == 1:
        for position in rng.integers(len(content), size=rng.choice([1, 2, 8])):
            noisy[position] ^= 1 << rng.integers(8)
        return bytes(noisy)
    start = rng.integers(len(content))
    noisy[start : start + rng.integers(1, 40)] = rng.bytes(rng.integers(40))
    return bytes(noisy)


@pytest.mark.parametrize("seed", range(4))
def test_dali_decodes_every_file_considered_intact(seed: int, tmp_path: Path, dali_decode: Decode) -> None:
    rng = np.random.default_rng(seed)
    good = [encoded(kind, mode) for kind, mode in (("JPEG", "RGB"), ("JPEG", "L"), ("PNG", "RGB"), ("WEBP", "RGB"))]
    good += [encoded(kind, exif=exif(6)) for kind in ("JPEG", "PNG", "WEBP")]
    checked = 0
    for _ in range(300):
        content = damaged(good[rng.integers(len(good))], rng)
        try:
            facts = inspect(content, tmp_path)
        except UnusableImageError:
            continue
        if facts.format.intact and facts.format.mode in ("RGB", "L") and facts.format.bits == 8:
            assert dali_decode(content).shape == (facts.height, facts.width, 3)
            checked += 1
    assert checked > 20

"""Inspection of image files: format and size from the content, and whether the pixels can be decoded."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from PIL import Image, ImageOps

from kernels.host.files import NotReadableError, read_regular
from pipelines.data.intact import ORIENTATION_TAG, is_intact
from pipelines.data.plain_jpeg import PlainJpeg, plain_jpeg
from pipelines.data.problems import Severity

ImageKind = Literal["jpeg", "cmyk-jpeg", "png", "bmp", "webp", "tiff"]

NO_IMAGE = "not an image (JPEG, PNG, BMP, WebP or TIFF by its content)"
MIN_SIDE_PX = 10
"""Images with a smaller side are skipped, as in YOLOv5."""
MAX_PIXELS = 1024**3 // 4 // 3
"""Pillow's own limit (89 Mpx), above which it suspects a decompression bomb."""
MAX_FILE_BYTES = 1 << 30
USUAL_SCANS, MAX_SCANNED_PIXELS = 20, 1_000_000_000
"""Limit on scans times megapixels: progressive JPEGs have about ten scans, each over all pixels."""

_KINDS: dict[str, ImageKind] = {
    "JPEG": "jpeg",
    "MPO": "jpeg",  # what many phones and stereo cameras write: JPEGs one after the other, opened as JPEG
    "PNG": "png",
    "BMP": "bmp",
    "WEBP": "webp",
    "TIFF": "tiff",
}
_PILLOW_FORMATS = [name for name in _KINDS if name != "MPO"]
_SAME_SHAPE = 0.02
"""Largest relative difference of the aspect ratios of an image and its smaller copy."""
_SIMPLE_MODES = ("RGB", "L")
_MODES = frozenset("1 L LA La P PA RGB RGBA RGBa RGBX CMYK YCbCr LAB I;16 I;16B".split())
_RANGELESS_MODES = ("I", "F")
_START_OF_SCAN = b"\xff\xda"
_PNG_DEPTH_OFFSET = 24
_TIFF_BITS = 258


@dataclass(frozen=True)
class ImageFormat:
    """The format of an image, determined from its content.

    Attributes:
        kind: "jpeg" for grey or YCbCr JPEG, "cmyk-jpeg" for CMYK or YCCK JPEG; otherwise the name of the container.
        mode: Pillow's mode of the stored pixels: "RGB", "L", "CMYK", "P", "RGBA", "I;16" (16-bit grey) ...
        bits: bits per channel as stored: 8; for PNG also 1, 2, 4 and 16; for TIFF as given in the file.
        orientation: EXIF orientation 1 ... 8, 1 if there is none; 5 ... 8 swap width and height.
        file_bytes: size of the file.
        intact: False if Pillow decodes it in spite of damage that stricter decoders reject; see
            `pipelines.data.intact`.
    """

    kind: ImageKind
    mode: str
    bits: int
    orientation: int
    file_bytes: int
    intact: bool


@dataclass(frozen=True)
class ImageFacts:
    """Size in px after EXIF rotation, and format, of a decodable image."""

    width: int
    height: int
    format: ImageFormat


class UnusableImageError(Exception):
    """The image must be skipped; the message says why."""


@contextmanager
def ignore_metadata_warnings() -> Iterator[None]:
    """Suppress Pillow's warnings about damaged metadata around calls of `inspect_image`.

    Warning filters are global to the process, so enter this once, not in each thread.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\..*")
        yield


def inspect_image(path: Path | str) -> ImageFacts:
    """Inspect an image and check that it can be decoded.

    The image is decoded (a JPEG at an eighth of its size, which still reads all data), except for JPEGs whose structure
    is sufficient, see `pipelines.data.plain_jpeg`.

    Raises:
        UnusableImageError: it cannot be read or decoded, is too small or too large, or has an unsupported format.
    """
    content = read_image_file(path)
    plain = plain_jpeg(content)
    if plain is not None and not plain.has_metadata and _is_usual_size(plain.width, plain.height):
        form = ImageFormat("jpeg", plain.mode, 8, 1, len(content), True)
        return ImageFacts(plain.width, plain.height, form)
    # Pillow's decoders may raise any exception for damaged files (struct.error, SyntaxError, EOFError, IndexError ...).
    try:
        with Image.open(io.BytesIO(content), formats=_PILLOW_FORMATS) as image:
            return _inspect(image, content, plain)
    except UnusableImageError:
        raise
    except Image.UnidentifiedImageError:
        raise UnusableImageError(NO_IMAGE) from None
    except Image.DecompressionBombError:
        raise UnusableImageError(f"more than {MAX_PIXELS / 1e6:.0f} megapixels, perhaps a decompression bomb") from None
    except MemoryError:
        raise UnusableImageError("too large for the free memory") from None
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnusableImageError(f"cannot be decoded: {reason}") from None


def _unsupported_reason(mode: str) -> str:
    return f"pixels of type {mode!r}; 8-bit and 16-bit images are supported"


def upright_size(file: Path | BinaryIO) -> tuple[int, int] | None:
    """Return width and height in px after EXIF rotation, from the header alone; None for a file that is no image.

    For many files, see `ignore_metadata_warnings`.
    """
    try:
        with Image.open(file, formats=_PILLOW_FORMATS) as image:
            width, height = image.size
            swaps_sides = image.format != "TIFF" and _orientation(image) >= 5
    except Exception:  # Pillow's readers may raise any exception for damaged files
        return None
    return (height, width) if swaps_sides else (width, height)


def size_mismatch(annotated: tuple[int, int], actual: tuple[int, int]) -> tuple[Severity, str]:
    """Return severity and text of the problem if an image has another size than its annotations say; "" if it has not.

    With the same aspect ratio, boxes can be scaled, so that is only a warning.
    """
    if annotated == actual:
        return "warning", ""
    text = f"{actual[0]} x {actual[1]} px, the annotations say {annotated[0]} x {annotated[1]}"
    if abs(annotated[0] / annotated[1] * actual[1] / actual[0] - 1) < _SAME_SHAPE:
        return "warning", f"{text}; boxes scaled"
    return "error", f"{text}; image skipped"


def decode_rgb(content: bytes) -> np.ndarray:
    """Decode any image that Pillow supports to (h, w, 3) uint8 RGB, see `decode_picture`."""
    return np.asarray(decode_picture(content))


def decode_picture(content: bytes) -> Image.Image:
    """Decode any image that Pillow supports to an RGB image without metadata, with the EXIF orientation applied.

    16-bit grey keeps its upper 8 bits; alpha is dropped; palettes and CMYK are converted.

    Raises:
        Exception: any exception of Pillow for damaged content.
    """
    with Image.open(io.BytesIO(content), formats=_PILLOW_FORMATS) as image:
        return rgb_picture(image)


def rgb_picture(image: Image.Image) -> Image.Image:
    """Convert an opened image to a new RGB image, see `decode_picture`.

    Raises:
        UnusableImageError: its pixels are 32-bit numbers, whose range is unknown.
    """
    if image.mode in _RANGELESS_MODES:
        raise UnusableImageError(_unsupported_reason(image.mode))
    image.load()  # a TIFF is rotated here
    upright = image if _orientation(image) == 1 else ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):
        grey = np.clip(np.asarray(upright).astype(np.int64) >> 8, 0, 255).astype(np.uint8)
        return Image.fromarray(np.repeat(grey[..., None], 3, axis=2))
    picture = upright.convert("RGB")
    picture.info = {}  # Pillow would save it in the next file
    return picture


def read_image_file(path: Path | str) -> bytes:
    """Return the content of an image file.

    Raises:
        UnusableImageError: the file cannot be read, is empty, or is not a regular file.
    """
    try:
        content = read_regular(path, max_bytes=MAX_FILE_BYTES)
    except NotReadableError as error:
        raise UnusableImageError(str(error)) from None
    except OSError as error:
        raise UnusableImageError(f"cannot be read: {error.strerror or error}") from None
    if not content:
        raise UnusableImageError("empty file")
    return content


def _is_usual_size(width: int, height: int) -> bool:
    return min(width, height) >= MIN_SIDE_PX and width * height <= MAX_PIXELS


def _inspect(image: Image.Image, content: bytes, plain: PlainJpeg | None) -> ImageFacts:
    kind, mode, (width, height) = _KINDS[image.format or ""], image.mode, image.size
    if width * height > MAX_PIXELS:
        raise UnusableImageError(f"{width} x {height} px, more than {MAX_PIXELS / 1e6:.0f} megapixels")
    if min(width, height) < MIN_SIDE_PX:
        raise UnusableImageError(f"{width} x {height} px, smaller than {MIN_SIDE_PX} px")
    if mode not in _MODES:
        raise UnusableImageError(_unsupported_reason(mode))
    _reject_many_scans(kind, content, width * height)
    bits = _bits_per_channel(image, kind, content)
    if kind == "jpeg":
        image.draft("L" if mode in ("L", "RGB") else mode, (1, 1))
        kind = "cmyk-jpeg" if mode == "CMYK" else kind
    if kind == "png":  # its EXIF chunk may follow the pixels, so that asking for it would decode them and hide damage
        image.load()
    orientation = _orientation(image)
    if plain is None and kind != "png":
        image.load()
    if kind != "tiff" and orientation >= 5:  # Pillow has already rotated a TIFF
        width, height = height, width
    intact = is_intact(content, kind, orientation)
    if not intact or mode not in _SIMPLE_MODES:
        decode_rgb(content)  # at full size, as in training: damage may not show at an eighth
    return ImageFacts(width, height, ImageFormat(kind, mode, bits, orientation, len(content), intact))


def _reject_many_scans(kind: ImageKind, content: bytes, pixels: int) -> None:
    """Reject a progressive JPEG whose number of scans would make decoding take minutes."""
    scans = content.count(_START_OF_SCAN) if kind == "jpeg" else 0
    if scans > USUAL_SCANS and scans * pixels > MAX_SCANNED_PIXELS:
        raise UnusableImageError(f"{scans} scans of {pixels / 1e6:.0f} megapixels, perhaps a decompression bomb")


def _bits_per_channel(image: Image.Image, kind: ImageKind, content: bytes) -> int:
    if kind == "png":
        return content[_PNG_DEPTH_OFFSET]
    if kind == "tiff":
        bits = image.tag_v2.get(_TIFF_BITS, (1,))  # type: ignore[attr-defined]
        return int(max(bits)) if isinstance(bits, tuple) else int(bits)
    return 8


def _orientation(image: Image.Image) -> int:
    # Damaged metadata: use the image as stored, as image viewers do.
    try:
        value = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1

"""Encoded images by index, from files or memory; images that DALI cannot decode are decoded by Pillow."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from kernels.host.paths import printable
from pipelines.augmentation.mosaic import Size
from pipelines.augmentation.rendering import TileRender
from pipelines.data.images import UnusableImageError, decode_picture, read_image_file, upright_size
from pipelines.data.index import ImageFormat, ImageIndex
from pipelines.data.stored_size import stored_size
from pipelines.pixels.backend import Backend
from pipelines.pixels.decoding import dali_can_decode

_DALI_DECODES = {"jpeg": ("RGB", "L"), "png": ("RGB", "L"), "bmp": ("RGB",), "webp": ("RGB",)}


def needs_host_decoding(form: ImageFormat) -> bool:
    """Return whether Pillow must decode it (CMYK, palettes, alpha, 16 bits, damage), as DALI would differ or fail."""
    is_rotated = form.orientation != 1 and form.kind != "jpeg"
    return is_rotated or not form.intact or form.bits != 8 or form.mode not in _DALI_DECODES.get(form.kind, ())


def decode_on_host(path: Path, image_wh: Size | None = None) -> np.ndarray:
    """Decode an image file to (h, w, 3) uint8 RGB; arguments and errors as in `picture_on_host`."""
    return np.asarray(picture_on_host(path, image_wh))


def picture_on_host(path: Path, image_wh: Size | None = None) -> Image.Image:
    """Decode an image file with Pillow to RGB, see `pipelines.data.images.decode_picture`.

    Args:
        path: the file.
        image_wh: width and height in px when it was scanned; None does not compare them.
    Raises:
        OSError: the file can no longer be decoded, or has another size.
    """
    try:
        picture = decode_picture(read_image_file(path))
    except Exception as error:  # Pillow's decoders may raise any exception
        text = f"{printable(path)}: can no longer be decoded ({_reason(error)}); check whether it was changed"
        raise OSError(text) from error
    if image_wh is not None:
        _require_size(path, picture.size, image_wh)
    return picture


def _require_size(path: Path, size: Size, expected: Size) -> None:
    """Reject an image of another size than when it was scanned: its boxes and crops would be wrong."""
    if size != expected:
        width, height = expected
        raise OSError(f"{printable(path)}: is no longer {width} x {height} px; check whether it was changed")


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # its text is the address of an object
        return "not an image"
    return " ".join(str(error).split()) or type(error).__name__


def as_ppm(pixels: np.ndarray) -> np.ndarray:
    """Encode pixels as an uncompressed image file for DALI."""
    header = b"P6\n%d %d\n255\n" % (pixels.shape[1], pixels.shape[0])
    return np.concatenate((np.frombuffer(header, np.uint8), np.ascontiguousarray(pixels).reshape(-1)))


class ImageBytes:
    """Encoded images of an index, in formats that DALI decodes.

    Concurrent reads are allowed, but not while `decode_rejected_on_host` is running.
    """

    decoded = False

    def __init__(self, index: ImageIndex) -> None:
        self._paths, self._sizes = index.paths, index.sizes_wh
        self._file_bytes = index.formats.file_bytes
        self._on_host = index.formats.where(needs_host_decoding)
        self._swaps_sides = index.formats.where(lambda form: form.orientation >= 5)

    def __getitem__(self, number: int) -> np.ndarray:
        """Return the encoded image, (bytes,) uint8."""
        path = self._paths[number]
        if self._on_host[number]:
            return as_ppm(decode_on_host(path, self._sizes[number]))
        try:
            content = read_image_file(path)
        except UnusableImageError as error:
            reason = str(error).removeprefix("cannot be read: ")
            raise OSError(
                f"{printable(path)}: can no longer be read ({reason}); check whether it was moved or changed"
            ) from error
        expected = self._sizes[number]
        stored = expected[::-1] if self._swaps_sides[number] else expected
        if len(content) != self._file_bytes[number] or stored_size(content) != stored:
            found = upright_size(io.BytesIO(content))
            if found is None:  # DALI would try for minutes with an image that claims gigapixels
                raise OSError(f"{printable(path)}: can no longer be decoded; check whether it was changed")
            _require_size(path, found, expected)
        return np.frombuffer(content, np.uint8)

    def tile(self, tile: TileRender) -> np.ndarray:
        """Return DALI's input for a tile: its whole encoded image, (bytes,) uint8."""
        return self[tile.source]

    def decode_rejected_on_host(self, numbers: list[int], backend: Backend) -> list[int]:
        """Test these images; return those that DALI cannot decode, and decode them by Pillow from now on."""
        rejected = [
            number
            for number in numbers
            if not self._on_host[number] and not dali_can_decode(self[number], self._sizes[number], backend)
        ]
        for number in rejected:
            self._on_host[number] = True
        return rejected

    def explain_failure(self, numbers: list[int]) -> str:
        """Return the names of images that cannot be decoded, for an error message."""
        bad = []
        for number in dict.fromkeys(numbers):
            try:
                Image.open(io.BytesIO(read_image_file(self._paths[number]))).load()
            except Exception as error:  # Pillow's decoders may raise any exception
                bad.append(f"{self._paths[number]} ({_reason(error)})")
        return "; ".join(bad)

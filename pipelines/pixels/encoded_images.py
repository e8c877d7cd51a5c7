"""Encoded images by number: read from their files, or kept in memory; what DALI cannot decode is decoded here."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from kernels.host.paths import printable
from pipelines.augmentation.rendering import TileRender
from pipelines.data.images import UnusableImageError, decode_rgb, read_image_file
from pipelines.data.index import ImageFormat, ImageIndex
from pipelines.pixels.backend import Backend
from pipelines.pixels.decoding import is_decoded_by_dali

_DALI_DECODES = {"jpeg": ("RGB", "L"), "png": ("RGB", "L"), "bmp": ("RGB",), "webp": ("RGB",)}


def needs_host_decoding(found: ImageFormat) -> bool:
    """Return whether DALI's decoder refuses or shows otherwise than Pillow: inks, palettes, alpha, 16 bits, damage."""
    turned = found.orientation != 1 and found.kind != "jpeg"
    return turned or not found.intact or found.bits != 8 or found.mode not in _DALI_DECODES.get(found.kind, ())


def decode_on_host(path: Path) -> np.ndarray:
    """Return (h, w, 3) uint8 RGB, upright, of any image that Pillow reads; see `pipelines.data.images.decode_rgb`.

    Raises:
        OSError: it could be decoded when the data set was indexed, and cannot any more.
    """
    try:
        return decode_rgb(read_image_file(path))
    except Exception as error:  # Pillow lets through whatever its decoders raise
        text = f"{printable(path)}: cannot be decoded any more ({_reason(error)}); was it changed during the run?"
        raise OSError(text) from error


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # its text is the address of an object
        return "not an image"
    return " ".join(str(error).split()) or type(error).__name__


def as_ppm(pixels: np.ndarray) -> np.ndarray:
    """Return an uncompressed image file, so that decoded pixels go through DALI as encoded ones do."""
    header = b"P6\n%d %d\n255\n" % (pixels.shape[1], pixels.shape[0])
    return np.concatenate((np.frombuffer(header, np.uint8), np.ascontiguousarray(pixels).reshape(-1)))


class ImageBytes:
    """Bytes of the images of an index, in a form that DALI decodes. Several threads may read at once, but none while
    `decode_refused_on_host` runs."""

    decoded = False

    def __init__(self, index: ImageIndex) -> None:
        self._paths, self._sizes = index.paths, index.sizes_wh
        self._on_host = index.formats.where(needs_host_decoding)

    def __getitem__(self, number: int) -> np.ndarray:
        """Return (bytes,) uint8."""
        path = self._paths[number]
        if self._on_host[number]:
            return as_ppm(decode_on_host(path))
        try:
            return np.frombuffer(read_image_file(path), np.uint8)
        except UnusableImageError as error:
            reason = str(error).removeprefix("cannot be read: ")
            raise OSError(
                f"{printable(path)}: cannot be read any more ({reason}); was it moved or changed during the run?"
            ) from error

    def tile(self, tile: TileRender) -> np.ndarray:
        """Return DALI's input for a tile: (bytes,) uint8 of its whole image."""
        return self[tile.source]

    def decode_refused_on_host(self, numbers: list[int], backend: Backend) -> list[int]:
        """Try each of these images; those that DALI refuses are decoded by Pillow from now on, and returned."""
        refused = [
            number
            for number in numbers
            if not self._on_host[number] and not is_decoded_by_dali(self[number], self._sizes[number], backend)
        ]
        for number in refused:
            self._on_host[number] = True
        return refused

    def explain_failure(self, numbers: list[int]) -> str:
        """Name the images that cannot be decoded, for the message after DALI gave up on a batch."""
        bad = []
        for number in dict.fromkeys(numbers):
            try:
                Image.open(io.BytesIO(self[number].tobytes())).load()
            except Exception as error:  # Pillow lets through whatever its decoders raise
                bad.append(f"{self._paths[number]} ({_reason(error)})")
        return "; ".join(bad)

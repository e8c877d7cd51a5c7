"""Encoded images by number: read from their files, or kept in memory; what DALI cannot decode is decoded here."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from pipelines.decoding import Device, is_decoded_by_dali
from pipelines.index import ImageFormat, ImageIndex
from pipelines.rendering import TileRender

_DALI_DECODES = {"jpeg": ("RGB", "L"), "png": ("RGB", "L"), "bmp": ("RGB",), "webp": ("RGB",)}


def needs_host_decoding(found: ImageFormat) -> bool:
    """True for what DALI's decoder refuses or shows otherwise than Pillow: inks, palettes, alpha, 16 bits, damage."""
    turned = found.orientation != 1 and found.kind != "jpeg"
    return turned or not found.intact or found.bits != 8 or found.mode not in _DALI_DECODES.get(found.kind, ())


def decode_on_host(path: Path) -> np.ndarray:
    """(h, w, 3) uint8 RGB, upright, of any image that Pillow reads.

    16-bit grey keeps its upper 8 bits; alpha is dropped; palettes and inks are converted.
    """
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I"):
            grey = np.clip(np.asarray(upright).astype(np.int64) >> 8, 0, 255).astype(np.uint8)
            return np.repeat(grey[..., None], 3, axis=2)
        return np.asarray(upright.convert("RGB"))


def as_ppm(pixels: np.ndarray) -> np.ndarray:
    """Bytes of an uncompressed image file, so that decoded pixels take the same way through DALI as encoded ones."""
    header = b"P6\n%d %d\n255\n" % (pixels.shape[1], pixels.shape[0])
    return np.concatenate((np.frombuffer(header, np.uint8), np.ascontiguousarray(pixels).reshape(-1)))


class ImageBytes:
    """Bytes of the images of an index, in a form that DALI decodes; safe to use from one thread."""

    decoded = False

    def __init__(self, index: ImageIndex) -> None:
        self._paths = index.paths
        self._on_host = [needs_host_decoding(found) for found in index.formats]

    def __getitem__(self, number: int) -> np.ndarray:
        """(bytes,) uint8."""
        path = self._paths[number]
        if self._on_host[number]:
            return as_ppm(decode_on_host(path))
        try:
            return np.fromfile(path, np.uint8)
        except OSError as error:
            raise OSError(
                f"{path}: cannot be read any more ({error.strerror}); was it moved during the run?"
            ) from error

    def tile(self, tile: TileRender) -> np.ndarray:
        """What DALI needs for a tile: (bytes,) uint8 of its whole image."""
        return self[tile.source]

    def decode_refused_on_host(self, numbers: list[int], device: Device) -> list[int]:
        """Tries each of these images; those that DALI refuses are decoded by Pillow from now on, and returned."""
        refused = [n for n in numbers if not self._on_host[n] and not is_decoded_by_dali(self[n], device)]
        for number in refused:
            self._on_host[number] = True
        return refused

    def explain_failure(self, numbers: list[int]) -> str:
        """Which of these images cannot be decoded, for the message after DALI gave up on a batch."""
        bad = []
        for number in dict.fromkeys(numbers):
            try:
                Image.open(io.BytesIO(self[number].tobytes())).load()
            except (OSError, ValueError, SyntaxError) as error:
                bad.append(f"{self._paths[number]} ({error})")
        return "; ".join(bad)

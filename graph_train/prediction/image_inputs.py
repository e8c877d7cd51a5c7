"""Conversion of the images that programs pass to a detector into RGB arrays."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from kernels.host.paths import printable
from pipelines.data.images import (
    MAX_PIXELS,
    MIN_SIDE_PX,
    NO_IMAGE,
    UnusableImageError,
    decode_rgb,
    read_image_file,
    rgb_picture,
)
from pipelines.data.live import shown_address

Array = npt.NDArray[Any]
FileOrImage: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image"
_EXPECTED = "expected a path, the bytes of an image file, a PIL image, or an array (h, w, 3) uint8 RGB"


@dataclass(frozen=True)
class OpenedImage:
    """Pixels (h, w, 3) uint8 RGB, and the file they were read from, if any."""

    pixels: Array
    path: Path | None


def is_batch(images: Any) -> bool:
    """Return whether `images` is a list of images rather than one."""
    return isinstance(images, list | tuple) or (isinstance(images, np.ndarray) and images.ndim == 4)


def open_image(image: Any, number: int | None = None) -> OpenedImage:
    """Decode or convert an image.

    Args:
        image: a `FileOrImage` or an array (h, w, 3) uint8 RGB.
        number: its index in a list, for error messages.
    Raises:
        ValueError: `image` has an unsupported type, or cannot be decoded.
        OSError: there is no such file.
    """
    where = "image" if number is None else f"image {number}"
    if isinstance(image, str | os.PathLike):
        path = Path(os.fsdecode(image))
        if not path.exists() and "://" in os.fsdecode(image):
            url = shown_address(os.fsdecode(image))
            raise ValueError(f"{where}: {url} is a URL; use predict(source=...), or give the image's bytes")
        if not path.exists():
            raise FileNotFoundError(f"{printable(path)}: no such file")
        return OpenedImage(_decoded(lambda: decode_rgb(read_image_file(path)), printable(path)), path)
    if isinstance(image, bytes | bytearray | memoryview):
        pixels = _decoded(lambda: decode_rgb(bytes(image)), where)
    elif isinstance(image, Image.Image):
        pixels = _decoded(lambda: np.asarray(rgb_picture(image)), where)
    elif isinstance(image, np.ndarray):
        pixels = _checked_array(image, where)
    else:
        raise ValueError(f"{where}: type {type(image).__name__}; {_EXPECTED}")
    return OpenedImage(_checked_size(pixels, where), None)


def _decoded(decode: Any, where: str) -> Array:
    # Pillow's decoders may raise any exception.
    try:
        pixels: Array = decode()
    except UnusableImageError as error:
        raise ValueError(f"{where}: {error}") from None
    except Image.UnidentifiedImageError:
        raise ValueError(f"{where}: {NO_IMAGE}") from None
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{where}: cannot be decoded as an image ({reason})") from None
    return _checked_size(pixels, where)


def _checked_array(image: Array, where: str) -> Array:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        hint = "; multiply by 255 and round" if image.dtype.kind == "f" else ""
        raise ValueError(f"{where}: array {image.shape} of {image.dtype}; expected (h, w, 3) uint8 RGB{hint}")
    return np.ascontiguousarray(_checked_size(image, where))


def _checked_size(pixels: Array, where: str) -> Array:
    height, width = pixels.shape[:2]
    if min(height, width) < MIN_SIDE_PX or height * width > MAX_PIXELS:
        raise ValueError(
            f"{where}: {width} x {height} px; sides of at least {MIN_SIDE_PX} px and at most "
            f"{MAX_PIXELS / 1e6:.0f} megapixels are supported"
        )
    return pixels

"""The image cache (`--cache`): decoded or encoded images in memory, or decoded images on disk."""

import hashlib
import logging
import os
import shutil
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, get_args

import numpy as np
from tqdm import tqdm

from kernels.host.cache_folder import file_stamp, make_private_folder, user_cache_folder
from kernels.host.files import replacing
from kernels.host.free_memory import free_memory
from kernels.host.paths import printable
from pipelines.augmentation.rendering import TileRender
from pipelines.data.index import ImageIndex
from pipelines.pixels.backend import Backend
from pipelines.pixels.encoded_images import ImageBytes, decode_on_host, needs_host_decoding

CacheKind = Literal["ram", "disk"]
_CHECKSUM_BYTES = 4
_log = logging.getLogger("graph_train")
MEMORY_SHARE = 0.8
"""Fraction of the free memory, or free disk space, that a cache may use."""


@dataclass(frozen=True)
class CacheNeed:
    """Size of the cache of a data set in bytes.

    Attributes:
        decoded: all images as pixels; also the size of a disk cache.
        encoded: all images as files, except those that must be decoded on the host.
    """

    decoded: int
    encoded: int


def cache_need(index: ImageIndex) -> CacheNeed:
    """Return the memory and disk space that `--cache` needs for these images."""
    pixels = index.sizes.astype(np.int64).prod(axis=1) * 3
    on_host = index.formats.where(needs_host_decoding)
    return CacheNeed(int(pixels.sum()), int(np.where(on_host, pixels, index.formats.file_bytes).sum()))


def open_images(
    index: ImageIndex,
    cache: CacheKind | None = None,
    *,
    folder: Path | None = None,
    workers: int = 1,
    progress: str | None = None,
    memory: Callable[[], int] = free_memory,
) -> "ImageStore":
    """Open the images of an index, cached or not.

    Args:
        index: the images.
        cache: None reads and decodes images every time; "ram" keeps them in memory, decoded if that fits into 80 % of
            the free memory and encoded otherwise; "disk" keeps them decoded in files.
        folder: folder of the disk cache, by default in the user's cache folder.
        workers: number of threads that fill the cache.
        progress: name of the progress bar; None shows none.
        memory: returns the free memory in bytes.
    Raises:
        ValueError: the kind of cache is unknown, or the cache does not fit.
        OSError: an image cannot be read.
    """
    plain = ImageBytes(index)
    if cache is None:
        return plain
    if cache not in get_args(CacheKind):
        raise ValueError(f"cache {cache!r}: must be {' or '.join(get_args(CacheKind))}")
    if cache == "disk":
        files = _CacheFiles(index, folder or user_cache_folder() / "images")
        return FileImages(_filled(files.opened, len(index), workers, progress), files)
    if _fits_decoded(index, memory()):
        load = lambda number: decode_on_host(index.paths[number], index.sizes_wh[number])  # noqa: E731
    else:
        return EncodedImages(_filled(plain.__getitem__, len(index), workers, progress), plain)
    return DecodedImages(_filled(load, len(index), workers, progress))


def _filled(load: Callable[[int], np.ndarray], count: int, workers: int, progress: str | None) -> list[np.ndarray]:
    with ThreadPoolExecutor(workers) as pool:
        return list(tqdm(pool.map(load, range(count)), total=count, desc=progress, disable=progress is None or None))


class EncodedImages:
    """Encoded images in memory, with the interface of `ImageBytes`."""

    decoded = False

    def __init__(self, images: list[np.ndarray], files: ImageBytes) -> None:
        self._images, self._files = images, files

    def tile(self, tile: TileRender) -> np.ndarray:
        """Return the whole encoded image of a tile, (bytes,) uint8, which must not be modified."""
        return self._images[tile.source]

    def decode_rejected_on_host(self, numbers: list[int], backend: Backend) -> list[int]:
        """See `ImageBytes.decode_rejected_on_host`."""
        rejected = self._files.decode_rejected_on_host(numbers, backend)
        for number in rejected:
            self._images[number] = self._files[number]
        return rejected

    def explain_failure(self, numbers: list[int]) -> str:
        """See `ImageBytes.explain_failure`."""
        return self._files.explain_failure(numbers)


class DecodedImages:
    """Decoded images in memory."""

    decoded = True

    def __init__(self, images: list[np.ndarray]) -> None:
        self._images = images

    def tile(self, tile: TileRender) -> np.ndarray:
        """Return the part of an image that a tile needs, (h, w, 3) uint8 RGB, as a view."""
        return _cropped(self._images[tile.source], tile)

    def decode_rejected_on_host(self, numbers: list[int], backend: Backend) -> list[int]:
        """Return [], because all images are decoded already."""
        del numbers, backend
        return []

    def explain_failure(self, numbers: list[int]) -> str:
        """Return "", because all images are decoded already."""
        del numbers
        return ""


def _cropped(pixels: np.ndarray, tile: TileRender) -> np.ndarray:
    (top, left), (height, width) = tile.crop_start, tile.crop_shape
    return pixels[top : top + height, left : left + width]


class FileImages(DecodedImages):
    """Decoded images in memory-mapped files, whose checksums are verified when they are first used.

    Verifying all files before the first batch would delay the start of a run on a large data set by minutes.
    """

    def __init__(self, contents: list[np.ndarray], files: "_CacheFiles") -> None:
        super().__init__(contents)
        self._files = files

    def tile(self, tile: TileRender) -> np.ndarray:
        """See `DecodedImages.tile`.

        Raises:
            OSError: the cache file is damaged, and the image cannot be decoded or the file not be written.
        """
        content = self._images[tile.source] = self._files.verified(tile.source, self._images[tile.source])
        return _cropped(self._files.pixels(tile.source, content), tile)


class ImageStore(Protocol):
    """Interface of image stores, which provide DALI's input."""

    @property
    def decoded(self) -> bool:
        """Whether `tile` returns the pixels of a crop; otherwise it returns the whole encoded image."""

    def tile(self, tile: TileRender) -> np.ndarray:
        """Return DALI's input for a tile."""

    def explain_failure(self, numbers: list[int]) -> str:
        """Return the names of images that cannot be decoded, with reasons; "" if all can."""

    def decode_rejected_on_host(self, numbers: list[int], backend: Backend) -> list[int]:
        """Return the images that DALI cannot decode; they are decoded by Pillow from now on."""


def _fits_decoded(index: ImageIndex, free: int) -> bool:
    """Return whether the decoded images fit into memory; raise ValueError if not even the encoded ones fit."""
    need, budget = cache_need(index), int(free * MEMORY_SHARE)
    if need.decoded <= budget:
        return True
    if need.encoded <= budget:
        return False
    raise ValueError(
        f"cache ram: {len(index)} images take {_gb(need.decoded)} decoded and {_gb(need.encoded)} encoded, but only"
        f" {_gb(budget)} may be used ({MEMORY_SHARE:.0%} of {_gb(free)} free); use --cache disk or none"
    )


class _CacheFiles:
    """The files of a disk cache: the pixels of an image, followed by their CRC-32.

    Raises:
        ValueError: the cache does not fit on the disk.
        OSError: the folder cannot be created.
    """

    def __init__(self, index: ImageIndex, folder: Path) -> None:
        make_private_folder(folder)
        self._index, self._folder = index, folder
        self._unverified = {number for number in range(len(index)) if self._is_complete(number)}
        missing = [number for number in range(len(index)) if number not in self._unverified]
        need = int((index.sizes[missing].astype(np.int64).prod(axis=1) * 3).sum())
        free = shutil.disk_usage(folder).free
        if need > free * MEMORY_SHARE:
            raise ValueError(
                f"cache disk: {len(missing)} images take {_gb(need)} in {printable(folder)}, but only "
                f"{_gb(int(free * MEMORY_SHARE))} may be used ({MEMORY_SHARE:.0%} of {_gb(free)} free); free some "
                "space, or use --cache ram or none"
            )

    def opened(self, number: int) -> np.ndarray:
        """Return the memory-mapped content of an image's file, which is created if it is not complete.

        Raises:
            OSError: the image cannot be decoded, or the file not be written.
        """
        file = self._file(number)
        return np.memmap(file, np.uint8, "r") if number in self._unverified else self._written(number, file)

    def verified(self, number: int, content: np.ndarray) -> np.ndarray:
        """Return the content of an image's file, or of a new one if the checksum differs.

        Raises:
            OSError: the image cannot be decoded, or the file not be written.
        """
        if number not in self._unverified:
            return content
        if _checksum(content[:-_CHECKSUM_BYTES]) != content[-_CHECKSUM_BYTES:].tobytes():
            _log.warning("%s: damaged in the image cache; decoding it again", printable(self._index.paths[number]))
            content = self._written(number, self._file(number))
        self._unverified.discard(number)
        return content

    def pixels(self, number: int, content: np.ndarray) -> np.ndarray:
        """Return the image in the content of its file, (h, w, 3) uint8 RGB."""
        width, height = self._index.sizes_wh[number]
        return content[:-_CHECKSUM_BYTES].reshape(height, width, 3)

    def _written(self, number: int, file: Path) -> np.ndarray:
        pixels = decode_on_host(self._index.paths[number], self._index.sizes_wh[number])
        content = np.append(pixels, np.frombuffer(_checksum(pixels), np.uint8))
        with replacing(file, durable=False) as temporary:
            content.tofile(temporary)
        return np.memmap(file, np.uint8, "r")

    def _is_complete(self, number: int) -> bool:
        """Return whether a file is complete; it may be truncated after a full disk or a power loss."""
        width, height = self._index.sizes_wh[number]
        try:
            return self._file(number).stat().st_size == width * height * 3 + _CHECKSUM_BYTES
        except FileNotFoundError:
            return False

    def _file(self, number: int) -> Path:
        """Return the file of an image, whose name depends on the image's path and `file_stamp`."""
        path = self._index.paths[number]
        key = b"2\0%s\0%s" % (os.fsencode(path.absolute()), file_stamp(path))
        return self._folder / f"{hashlib.sha256(key).hexdigest()[:32]}.rgb"


def _checksum(pixels: np.ndarray) -> bytes:
    return zlib.crc32(np.ascontiguousarray(pixels).data).to_bytes(_CHECKSUM_BYTES, "little")


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f} GB"

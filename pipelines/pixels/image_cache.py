"""The image cache (`--cache`): decoded or encoded images in memory, or decoded images on disk."""

import hashlib
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeVar, get_args

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

T = TypeVar("T")
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
        _for_all(files.complete, len(index), workers, progress)
        return FileImages(files)
    if _fits_decoded(index, memory()):
        load = lambda number: decode_on_host(index.paths[number], index.sizes_wh[number])  # noqa: E731
    else:
        return EncodedImages(_for_all(plain.__getitem__, len(index), workers, progress), plain)
    return DecodedImages(_for_all(load, len(index), workers, progress))


def _for_all(work: Callable[[int], T], count: int, workers: int, progress: str | None) -> list[T]:
    """Return the results of `work` for the numbers of all images, computed by several threads."""
    with ThreadPoolExecutor(workers) as pool:
        return list(tqdm(pool.map(work, range(count)), total=count, desc=progress, disable=progress is None or None))


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

    def __init__(self, images: Sequence[np.ndarray]) -> None:
        self._images = images

    def tile(self, tile: TileRender) -> np.ndarray:
        """Return the part of an image that a tile needs, (h, w, 3) uint8 RGB, as a view."""
        (top, left), (height, width) = tile.crop_start, tile.crop_shape
        return self._images[tile.source][top : top + height, left : left + width]

    def decode_rejected_on_host(self, numbers: list[int], backend: Backend) -> list[int]:
        """Return [], because all images are decoded already."""
        del numbers, backend
        return []

    def explain_failure(self, numbers: list[int]) -> str:
        """Return "", because all images are decoded already."""
        del numbers
        return ""


class FileImages(DecodedImages):
    """Decoded images in files, of which only the needed rows are read.

    The files are not mapped into memory: each mapping would need an open file, and a file that is truncated by another
    program would end the process by SIGBUS. Checksums are verified when a file is first used, because verifying all
    files before the first batch would delay the start of a run on a large data set by minutes.
    """

    def __init__(self, files: "_CacheFiles") -> None:
        super().__init__(())
        self._files = files

    def tile(self, tile: TileRender) -> np.ndarray:
        """See `DecodedImages.tile`.

        Raises:
            OSError: the cache file is damaged or missing, and the image cannot be decoded or the file cannot be
                written.
        """
        (top, left), (height, width) = tile.crop_start, tile.crop_shape
        return self._files.rows(tile.source, top, height)[:, left : left + width]


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
        # Fixed now: an image that is modified later must not be looked for under another name.
        self._names = [self._name(number) for number in range(len(index))]
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

    def complete(self, number: int) -> None:
        """Create an image's file unless it is complete.

        Raises:
            OSError: the image cannot be decoded, or the file cannot be written.
        """
        if number not in self._unverified:
            self._written(number)

    def rows(self, number: int, top: int, count: int) -> np.ndarray:
        """Return rows of an image, (count, w, 3) uint8 RGB; a damaged or missing file is written again.

        Raises:
            OSError: the image cannot be decoded, or the file cannot be written.
        """
        width, height = self._index.sizes_wh[number]
        row_bytes = width * 3
        if number not in self._unverified:
            content = self._read(number, top * row_bytes, count * row_bytes)
        else:
            content = self._verified(number, height * row_bytes)
            content = content and content[top * row_bytes : (top + count) * row_bytes]
            self._unverified.discard(number)
        if content is None:
            _log.warning("%s: damaged in the image cache; decoding it again", printable(self._index.paths[number]))
            return self._written(number)[top : top + count]
        return np.frombuffer(content, np.uint8).reshape(count, width, 3)

    def _verified(self, number: int, size: int) -> bytes | None:
        """Return the pixels in an image's file; None if its checksum differs."""
        content = self._read(number, 0, size + _CHECKSUM_BYTES)
        if content is None or _checksum(content[:size]) != content[size:]:
            return None
        return content[:size]

    def _read(self, number: int, start: int, size: int) -> bytes | None:
        """Return a part of an image's file; None if the file is shorter, or cannot be read."""
        try:
            descriptor = os.open(self._file(number), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            content = os.pread(descriptor, size, start)
        except OSError:
            return None
        finally:
            os.close(descriptor)
        return content if len(content) == size else None

    def _written(self, number: int) -> np.ndarray:
        """Decode an image, (h, w, 3) uint8 RGB, and write its file."""
        pixels = decode_on_host(self._index.paths[number], self._index.sizes_wh[number])
        make_private_folder(self._folder)
        with replacing(self._file(number), durable=False) as temporary, temporary.open("wb") as file:
            pixels = np.ascontiguousarray(pixels)
            file.write(pixels.data)
            file.write(_checksum(pixels.data))
        return pixels

    def _is_complete(self, number: int) -> bool:
        """Return whether a file is complete; it may be truncated after a full disk or a power loss."""
        width, height = self._index.sizes_wh[number]
        try:
            return self._file(number).stat().st_size == width * height * 3 + _CHECKSUM_BYTES
        except FileNotFoundError:
            return False

    def _file(self, number: int) -> Path:
        return self._folder / self._names[number]

    def _name(self, number: int) -> str:
        """Return the name of an image's file, which depends on the image's path and `file_stamp`."""
        path = self._index.paths[number]
        key = b"2\0%s\0%s" % (os.fsencode(path.absolute()), file_stamp(path))
        return f"{hashlib.sha256(key).hexdigest()[:32]}.rgb"


def _checksum(pixels: bytes | memoryview) -> bytes:
    return zlib.crc32(pixels).to_bytes(_CHECKSUM_BYTES, "little")


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f} GB"

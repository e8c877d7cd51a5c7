"""URLs in `--source`: download of images and videos, and recognition of cameras and streams."""

import re
import urllib.parse
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from pipelines.data.fetching import ATTEMPTS, FetchError, fetch, media_type
from pipelines.data.images import MAX_FILE_BYTES
from pipelines.data.listing import IMAGE_SUFFIXES, UNSUPPORTED_SUFFIXES
from pipelines.data.live import STREAM_PORTS, shown_address
from pipelines.data.video import VIDEO_SUFFIXES

_FETCHED = ("http", "https")
_STREAM_SUFFIXES = frozenset({".m3u8", ".mjpeg", ".mjpg", ".mpd"})
_STREAM_TYPES = frozenset(
    {"multipart/x-mixed-replace", "application/vnd.apple.mpegurl", "application/x-mpegurl", "application/dash+xml"}
)
"""Media types of cameras and playlists."""
_PAGES_OF_VIDEOS = frozenset({"youtube.com", "m.youtube.com", "youtu.be"})
_ANY_IMAGE, _ANY_VIDEO = ".jpg", ".mp4"
"""Suffixes of files whose URL has none; decoding depends on the content."""
_PARALLEL_DOWNLOADS = 8
_MAX_NAME_LENGTH = 100


def is_address(entry: str) -> bool:
    """Return whether `entry` is a camera number or a URL with a supported scheme."""
    return (entry.isascii() and entry.isdecimal()) or _scheme(entry) in STREAM_PORTS


def has_scheme(entry: str) -> bool:
    """Return whether `entry` is a URL with any scheme."""
    return bool(_scheme(entry))


def _scheme(entry: str) -> str:
    found = re.match(r"([a-zA-Z][a-zA-Z0-9+.-]*)://", entry)
    return found[1].lower() if found else ""


def fetch_addresses(addresses: Sequence[str], folder: Path) -> list[Path | FetchError | None]:
    """Download images and videos in parallel.

    Returns:
        For each URL, the downloaded file, the error, or None for a camera or stream.
    Raises:
        OSError: the folder cannot be written.
    """

    def fetched(number: int) -> Path | FetchError | None:
        try:
            return _fetch_address(addresses[number], folder / str(number))
        except FetchError as error:
            return FetchError(f"{shown_address(addresses[number])}: {error}")

    with ThreadPoolExecutor(_PARALLEL_DOWNLOADS, thread_name_prefix="fetch") as pool:
        return list(pool.map(fetched, range(len(addresses))))


def _fetch_address(address: str, stem: Path) -> Path | None:
    if _scheme(address) not in _FETCHED:
        return None
    suffix = _file_suffix(address)
    if suffix is None:
        return None
    is_video = suffix in VIDEO_SUFFIXES
    file = stem.with_suffix(suffix)
    # The size of an image is limited as for local files, that of a video only by the disk.
    limit = {} if is_video else {"max_bytes": MAX_FILE_BYTES}
    fetch(address, file, attempts=ATTEMPTS, progress=is_video, **limit)
    return file


def _file_suffix(address: str) -> str | None:
    """Return the suffix for the file behind a URL; None for a stream.

    Raises:
        FetchError: the URL cannot be opened, or is neither an image nor a video.
    """
    suffix = _path_of(address).suffix.lower()
    if suffix in IMAGE_SUFFIXES | VIDEO_SUFFIXES | UNSUPPORTED_SUFFIXES:
        return suffix
    if suffix in _STREAM_SUFFIXES:
        return None
    if (urllib.parse.urlsplit(address).hostname or "").removeprefix("www.") in _PAGES_OF_VIDEOS:
        raise FetchError("video pages are not supported; download the video and give its path")
    kind, has_length = media_type(address)
    if kind in _STREAM_TYPES or (kind.startswith("video/") and not has_length):
        return None
    if kind.startswith(("image/", "video/")):
        return _ANY_IMAGE if kind.startswith("image/") else _ANY_VIDEO
    raise FetchError(f"content type {kind or 'missing'}; expected an image or a video")


def result_name(address: str, file: Path | None) -> Path:
    """Return the name for the results of a URL, made from the last part of its path or from its host.

    Args:
        address: the URL or camera number.
        file: the downloaded file; None for a camera or stream.
    """
    if file is None and _scheme(address) == "":
        return Path(f"camera{address}{_ANY_VIDEO}")
    path = _path_of(address)
    known = file is not None and path.suffix.lower() == file.suffix
    name = (path.stem if known else path.name) or urllib.parse.urlsplit(address).hostname or "stream"
    stem = re.sub(r"[^\w-]+", "_", name).strip("_")[:_MAX_NAME_LENGTH] or "stream"
    return Path(stem + (_ANY_VIDEO if file is None else file.suffix))


def _path_of(address: str) -> PurePosixPath:
    try:
        return PurePosixPath(urllib.parse.unquote(urllib.parse.urlsplit(address).path))
    except ValueError as error:
        raise FetchError(f"invalid URL: {error}") from None

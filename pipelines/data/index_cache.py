"""Cache of scan results in the user's cache folder, keyed by everything the result depends on."""

import hashlib
import io
import json
import logging
import os
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path

import numpy as np
import PIL

from kernels.host.cache_folder import file_stamp, make_private_folder, user_cache_folder
from kernels.host.files import read_regular, write_atomically
from kernels.host.paths import printable
from pipelines.data.columns import ImageFormats, Polygons, RowGroups
from pipelines.data.images import ImageFormat
from pipelines.data.listing import Listing
from pipelines.data.problems import Problem
from pipelines.data.scanned import ScanTable

FORMAT_VERSION = 7
MAX_FILES = 64
"""Maximum number of cache files; the oldest ones are removed."""

_DIGEST_BYTES = 32
_MAX_FILE_BYTES = 1 << 34
_log = logging.getLogger("graph_train")


def cached_scan(
    listing: Listing, num_classes: int | None, folder: Path | None, scan: Callable[[], ScanTable]
) -> ScanTable:
    """Return the scan of `listing`, from the cache if it is valid.

    A damaged cache file is replaced. A cache that cannot be written only causes a warning. Empty listings are not
    cached.
    """
    try:
        folder = user_cache_folder() / "index" if folder is None else folder
    except OSError as error:
        _log.warning("the index of the data set is not cached: %s", error)
        return scan()
    key = _key(listing, num_classes)
    file = folder / f"{key}.npz"
    try:
        scanned = _decode(read_regular(file, max_bytes=_MAX_FILE_BYTES), key)
        if len(scanned) != len(listing):
            raise ValueError(f"{len(scanned)} results for {len(listing)} images")
        return scanned
    except (FileNotFoundError, NotADirectoryError):  # the second is reported when the index is written
        pass
    except Exception as error:  # NumPy, zipfile and json may raise any exception for damaged content
        reason = " ".join(str(error).split()) or type(error).__name__
        _log.warning("%s: damaged cache (%s); scanning the data set again", printable(file), reason)
    scanned = scan()
    if len(scanned):
        try:
            _store(file, _encode(scanned, key))
        except OSError as error:
            _log.warning("%s: the index of the data set is not cached: %s", printable(folder), error.strerror or error)
    return scanned


def _key(listing: Listing, num_classes: int | None) -> str:
    digest = hashlib.sha256(f"{FORMAT_VERSION} {PIL.__version__} {num_classes} {listing.class_names}".encode())
    for files in (listing.images, listing.labels):
        # Names contain no NUL bytes, and the number of files separates names from timestamps.
        names = "\0".join(name if name.startswith("/") else os.path.abspath(name) for name in files)
        digest.update(b"%d " % len(files) + os.fsencode(names))
        digest.update(b"\n".join(map(file_stamp, files)))
    return digest.hexdigest()[:40]


def _encode(scanned: ScanTable, key: str) -> bytes:
    described = {
        "key": key,
        "formats": [astuple(form) for form in scanned.formats.distinct],
        "problems": {
            str(number): [[str(p.file), p.line, p.severity, p.text, p.code] for p in problems]
            for number, problems in scanned.problems.items()
        },
    }
    arrays = {
        "described": np.frombuffer(json.dumps(described).encode("ascii"), np.uint8),
        "decodable": scanned.decodable,
        "sizes": scanned.sizes,
        "formats": scanned.formats.codes,
        "file_bytes": scanned.formats.file_bytes,
        "labels_usable": scanned.labels_usable,
        "rows": scanned.labels.rows,
        "row_counts": scanned.labels.counts,
        "points": scanned.segments.points.rows,
        "point_counts": scanned.segments.points.counts,
        "polygon_counts": scanned.segments.counts,
    }
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    content = stream.getvalue()
    return content + hashlib.sha256(content).digest()


def _decode(content: bytes, key: str) -> ScanTable:
    content, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != digest:
        raise ValueError("its checksum is wrong")
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    described = json.loads(arrays["described"].tobytes())
    if described["key"] != key:
        raise ValueError("it belongs to other files")
    table = ScanTable(
        decodable=arrays["decodable"],
        sizes=arrays["sizes"],
        formats=ImageFormats(
            (ImageFormat(*form) for form in described["formats"]), arrays["formats"], arrays["file_bytes"]
        ),
        labels_usable=arrays["labels_usable"],
        labels=RowGroups(arrays["rows"], arrays["row_counts"]),
        segments=Polygons(RowGroups(arrays["points"], arrays["point_counts"]), arrays["polygon_counts"]),
        problems={
            int(number): tuple(Problem(Path(file), *rest) for file, *rest in found)
            for number, found in described["problems"].items()
        },
    )
    if not _is_consistent(table):
        raise ValueError("its arrays are inconsistent")
    return table


def _is_consistent(table: ScanTable) -> bool:
    """Return whether every column has an entry of the right kind for each image."""
    count, formats, groups = len(table), table.formats, (table.labels, table.segments, table.segments.points)
    return (
        all(flags.dtype == bool and flags.shape == (count,) for flags in (table.decodable, table.labels_usable))
        and (table.sizes.dtype, table.sizes.shape) == (np.int32, (count, 2))
        and formats.codes.shape == formats.file_bytes.shape == (count,)
        and bool(np.all((formats.codes >= 0) & (formats.codes < len(formats.distinct))))
        and len(table.labels) == len(table.segments) == count
        and all(bool(np.all(group.counts >= 0)) for group in groups)
        and (table.labels.rows.shape[1:], table.segments.points.rows.shape[1:]) == ((5,), (2,))
        and set(table.problems) <= set(range(count))
    )


def _store(file: Path, content: bytes) -> None:
    """Write the file atomically."""
    make_private_folder(file.parent)
    write_atomically(file, content)
    by_age = sorted(file.parent.glob("*.npz"), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in by_age[MAX_FILES:]:
        old.unlink(missing_ok=True)

"""Keeps the result of a scan in the user's cache folder, under a name made of everything the result depends on."""

import hashlib
import io
import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from kernels.host.files import write_atomically
from pipelines.data.cache_folder import file_stamp, make_private_folder, user_cache_folder
from pipelines.data.images import ImageFacts, ImageFormat
from pipelines.data.labels import LabelRows
from pipelines.data.listing import Listing
from pipelines.data.problems import Problem, printable
from pipelines.data.scan import ScannedImage

FORMAT_VERSION = 5
MAX_FILES = 64
"""The oldest cache files beyond these are removed."""

_DIGEST_BYTES = 32
_log = logging.getLogger("graph_train")


def cached_scan(
    listing: Listing, num_classes: int | None, folder: Path | None, scan: Callable[[], list[ScannedImage]]
) -> list[ScannedImage]:
    """The scan of `listing`, from the cache if nothing it depends on has changed.

    A damaged cache file is made anew; a folder that cannot be written costs a warning, the scan is then repeated at
    the next start. An empty listing is not kept.
    """
    folder = user_cache_folder() / "index" if folder is None else folder
    key = _key(listing, num_classes)
    file = folder / f"{key}.npz"
    try:
        scanned = _decode(file.read_bytes(), key)
        if len(scanned) != len(listing.items):
            raise ValueError(f"{len(scanned)} results for {len(listing.items)} images")
        return scanned
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        _log.warning("%s: damaged cache (%s); the data set is scanned again", printable(file), error)
    scanned = scan()
    if scanned:
        try:
            _store(file, _encode(scanned, key))
        except OSError as error:
            _log.warning("%s: the index is not kept for the next start: %s", printable(folder), error)
    return scanned


def _key(listing: Listing, num_classes: int | None) -> str:
    digest = hashlib.sha256(f"{FORMAT_VERSION} {PIL.__version__} {num_classes} {listing.class_names}".encode())
    for item in listing.items:
        for file in (item.image, item.label):
            name = os.fsencode(os.path.abspath(file))
            digest.update(b"%d %s %s\n" % (len(name), name, file_stamp(file)))
    return digest.hexdigest()[:40]


def _encode(scanned: Sequence[ScannedImage], key: str) -> bytes:
    rows = [found.labels.boxes for found in scanned]
    polygons = [polygon for found in scanned for polygon in found.labels.segments]
    described = {
        "key": key,
        "facts": [_facts_as_list(found.facts) for found in scanned],
        "usable": [found.labels.usable for found in scanned],
        "problems": {
            str(n): [[str(p.file), p.line, p.severity, p.text, p.code] for p in found.problems]
            for n, found in enumerate(scanned)
            if found.problems
        },
    }
    arrays = {
        "described": np.frombuffer(json.dumps(described).encode("ascii"), np.uint8),
        "rows": np.concatenate(rows),
        "row_counts": np.array([len(boxes) for boxes in rows], np.int64),
        "points": np.concatenate([np.zeros((0, 2), np.float32), *polygons]),
        "point_counts": np.array([len(polygon) for polygon in polygons], np.int64),
        "polygon_counts": np.array([len(found.labels.segments) for found in scanned], np.int64),
    }
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    content = stream.getvalue()
    return content + hashlib.sha256(content).digest()


def _facts_as_list(facts: ImageFacts | None) -> list[Any] | None:
    if facts is None:
        return None
    form = facts.format
    return [facts.width, facts.height, form.kind, form.mode, form.bits, form.orientation, form.file_bytes, form.intact]


def _decode(content: bytes, key: str) -> list[ScannedImage]:
    content, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != digest:
        raise ValueError("its checksum is wrong")
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    described = json.loads(arrays["described"].tobytes())
    if described["key"] != key:
        raise ValueError("it belongs to other files")
    rows = _cut(arrays["rows"], arrays["row_counts"])
    polygons = iter(_cut(arrays["points"], arrays["point_counts"]))
    scanned = []
    for n, (facts, usable) in enumerate(zip(described["facts"], described["usable"], strict=True)):
        segments = tuple(next(polygons) for _ in range(int(arrays["polygon_counts"][n])))
        found = described["problems"].get(str(n), [])
        problems = tuple(Problem(Path(file), *rest) for file, *rest in found)
        labels = LabelRows(rows[n], segments, usable=usable)
        scanned.append(ScannedImage(_facts_from_list(facts), labels, problems))
    return scanned


def _facts_from_list(values: list[Any] | None) -> ImageFacts | None:
    if values is None:
        return None
    width, height, *form = values
    return ImageFacts(width, height, ImageFormat(*form))


def _cut(values: np.ndarray, counts: np.ndarray) -> list[np.ndarray]:
    if counts.sum() != len(values):
        raise ValueError("its parts do not fit together")
    return np.split(values, np.cumsum(counts)[:-1]) if len(counts) else []


def _store(file: Path, content: bytes) -> None:
    """Writes the file as a whole, so that another process sees it complete or not at all."""
    make_private_folder(file.parent)
    write_atomically(file, content)
    by_age = sorted(file.parent.glob("*.npz"), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in by_age[MAX_FILES:]:
        old.unlink(missing_ok=True)

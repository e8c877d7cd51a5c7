"""Published pre-trained weights: known by name, size and SHA-256, downloaded into the user's cache on request.

They are listed in `published_weights.json`. Imports nothing heavy, so that a missing file is reported at once.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from kernels.host.cache_folder import make_private_folder, user_cache_folder
from kernels.host.paths import printable, why_missing
from pipelines.data.fetching import ALLOW_DOWNLOAD, FetchError, WrongContentError, fetch_verified

_TABLE = Path(__file__).with_suffix(".json")
_PUBLISHED_FAMILY = re.compile(r"yolo(v?\d|-)", re.IGNORECASE)
"""Names such as `yolov5s-seg.pt` and `yolov8n.pt`: published by Ultralytics, but of other tasks or families."""


@dataclass(frozen=True)
class PublishedFile:
    """A downloadable weight file."""

    release: str
    licence: str
    url: str
    bytes: int
    sha256: str


@cache
def published_files() -> Mapping[str, PublishedFile]:
    """Return the published files by name."""
    table = json.loads(_TABLE.read_text())
    return {
        name: PublishedFile(table["release"], table["licence"], table["url"].format(file=name), **facts)
        for name, facts in table["files"].items()
    }


def located_weights(weights: str | Path, *, allow_download: bool) -> Path:
    """Return the local path of a weight file; download a published one if it is missing.

    Args:
        weights: a path. A bare name in `published_files()` is also looked up in the user's cache.
        allow_download: whether to download a missing published file.
    Raises:
        FileNotFoundError: no such file; for a published file, names its source and licence.
        ValueError: the download failed, or is not the published file.
        OSError: the cache cannot be written.
    """
    path = Path(weights)
    if path.exists():
        return path
    published = published_files().get(path.name)
    if published is None or path.parent != Path():
        raise FileNotFoundError(_absent(os.fspath(weights)))
    cached = user_cache_folder() / "weights" / published.release.replace(" ", "-").lower() / path.name
    if cached.is_file() and _is_intact(cached, published):
        return cached
    if not allow_download:
        raise FileNotFoundError(
            f"{path.name}: no such file; use {ALLOW_DOWNLOAD} to download the weights of {published.release} "
            f"({published.bytes / 1e6:.1f} MB, licence {published.licence} or Ultralytics Enterprise) from "
            f"{published.url}"
        )
    make_private_folder(cached.parent)
    _fetch_into_cache(published, cached)
    return cached


def _absent(weights: str) -> str:
    """Return the message for a missing weight file, with a hint where another spelling is meant."""
    name = Path(weights).name
    known = next((known for known in (name, f"{name}.pt") if known in published_files()), "")
    if "://" in weights:
        remedy = f"use --weights {known} with {ALLOW_DOWNLOAD}" if known else "download the file and give its path"
        return f"{printable(weights)}: weights are not loaded from URLs; {remedy}"
    hint = ""
    if known:
        hint = f"; did you mean {known}, the published weights?"
    elif _PUBLISHED_FAMILY.match(name):
        hint = f"; published weights that can be loaded are {', '.join(published_files())}"
    return f"{printable(weights)}: {why_missing(weights, 'weight file')}{hint}"


def _is_intact(file: Path, published: PublishedFile) -> bool:
    # Imported here because it takes a third of a second.
    import pooch

    return file.stat().st_size == published.bytes and pooch.file_hash(str(file)) == published.sha256


def _fetch_into_cache(published: PublishedFile, target: Path) -> None:
    try:
        fetch_verified(
            published.url, target, sha256=published.sha256, size=published.bytes, note=f"licence {published.licence}"
        )
    except FetchError as error:
        raise ValueError(f"{published.url} {error}") from None
    except WrongContentError:
        raise ValueError(
            f"{published.url} has a different SHA-256 than the published {published.release}; it is not used"
        ) from None

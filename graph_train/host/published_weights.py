"""Weights that others publish: known by name, size and SHA-256, fetched into the user's cache when asked for.

The table is `published_weights.json`. Nothing heavy is imported here: a missing file is told at once.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from kernels.host.cache_folder import make_private_folder, user_cache_folder
from kernels.host.paths import missing, printable
from pipelines.data.fetching import ALLOW_DOWNLOAD, FetchError, WrongContentError, fetch_verified

_TABLE = Path(__file__).with_suffix(".json")


@dataclass(frozen=True)
class PublishedFile:
    """A weight file that can be fetched."""

    release: str
    licence: str
    url: str
    bytes: int
    sha256: str


@cache
def published_files() -> Mapping[str, PublishedFile]:
    """Return the source of each published file by name."""
    table = json.loads(_TABLE.read_text())
    return {
        name: PublishedFile(table["release"], table["licence"], table["url"].format(file=name), **facts)
        for name, facts in table["files"].items()
    }


def located_weights(weights: str | Path, *, allow_download: bool) -> Path:
    """Return the weight file behind a path, or behind the name of a published one that is not there.

    Args:
        weights: a path; a bare name of `published_files()` is looked for in the user's cache too.
        allow_download: fetch it if it is nowhere.
    Raises:
        FileNotFoundError: no such file; of a published one with where it comes from and under which licence.
        ValueError: it cannot be fetched, or is not the published file.
        OSError: the cache cannot be written.
    """
    path = Path(weights)
    if path.exists():
        return path
    published = published_files().get(path.name)
    if published is None or path.parent != Path():
        raise FileNotFoundError(f"{printable(path)}: {missing(path, 'weight file')}{_meant(path)}")
    cached = user_cache_folder() / "weights" / published.release.replace(" ", "-").lower() / path.name
    if cached.is_file() and _is_sound(cached, published):
        return cached
    if not allow_download:
        raise FileNotFoundError(
            f"{path.name}: no such file here; {ALLOW_DOWNLOAD} fetches the weights of {published.release} "
            f"({published.bytes / 1e6:.1f} MB, licence {published.licence} or an enterprise one of Ultralytics) from "
            f"{published.url}"
        )
    make_private_folder(cached.parent)
    _fetch_into_cache(published, cached)
    return cached


def _meant(path: Path) -> str:
    """Return a hint at the published file whose name was given without its suffix."""
    name = f"{path}.pt"
    return f"; did you mean {name}?" if name in published_files() else ""


def _is_sound(file: Path, published: PublishedFile) -> bool:
    # Imported where it is needed: it takes a third of a second.
    import pooch

    return file.stat().st_size == published.bytes and pooch.file_hash(str(file)) == published.sha256


def _fetch_into_cache(published: PublishedFile, target: Path) -> None:
    try:
        fetch_verified(
            published.url, target, sha256=published.sha256, size=published.bytes, terms=f"licence {published.licence}"
        )
    except FetchError as error:
        raise ValueError(f"{published.url} {error}") from None
    except WrongContentError:
        raise ValueError(
            f"{published.url} has another SHA-256 than {published.release} was published with: it is not used"
        ) from None

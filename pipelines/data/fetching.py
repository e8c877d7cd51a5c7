"""Streams a file from an http address to the disk: bounded, watched, and continued after a break."""

import fcntl
import http.client
import logging
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from kernels.host.paths import printable

ALLOW_DOWNLOAD = "--allow-download"
"""The flag without which no command fetches anything."""
MAX_BYTES = 1 << 40
ATTEMPTS = 5
"""How often a broken connection is taken up again, as long as something new arrives."""
_TIMEOUT_SECONDS = 30.0
_PATIENCE_SECONDS, _SLOWEST_BYTES_PER_SECOND = 30.0, 1000
_CHUNK_BYTES = 1 << 20
_log = logging.getLogger("graph_train")
_PARTIAL, _RANGE_NOT_SATISFIABLE = 206, 416


class FetchError(ValueError):
    """An address that gives nothing, or not all; the text is the rest of a sentence that begins with the address."""


class WrongContentError(ValueError):
    """A file with another SHA-256 than it must have; the text is the one that it has."""


class _HttpOnly(urllib.request.HTTPRedirectHandler):
    """A handler that follows redirections to http and https only."""

    def redirect_request(  # noqa: PLR0917 - the base class's arguments
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if not newurl.startswith(("http://", "https://")):
            raise urllib.error.URLError(f"it leads to {printable(newurl[:80])}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def name_of(url: str) -> str:
    """Return the last part of an address, fit for a terminal."""
    return printable(url.rpartition("?")[0].rpartition("/")[2] or url.rpartition("/")[2] or "archive")


def fetch_verified(url: str, target: Path, *, sha256: str, size: int | None = None, terms: str = "") -> None:
    """Fetch a file and verify it, unless it is there; it has its name only when it is whole and right.

    What arrived before a break stays beside it as `<name>.part`, and the next call goes on behind it. Of several
    processes that want the same file one fetches it, the others wait.

    Args:
        url: http or https.
        target: in a folder that exists.
        sha256: 64 hexadecimal digits.
        size: bytes that there must be, where known.
        terms: under which licence it comes, for the log.
    Raises:
        FetchError: as `fetch`, with what is kept.
        WrongContentError: it is not what was expected; nothing of it is kept.
        OSError: the file cannot be written.
    """
    # Imported where it is needed: it takes a third of a second, and most commands fetch nothing.
    import pooch

    pooch.get_logger().setLevel(logging.ERROR)
    partial = target.with_name(f"{target.name}.part")

    def download(url: str, output_file: str, _: pooch.Pooch) -> None:
        _log.info("Fetching %s%s", url, f" ({terms})" if terms else "")
        fetch(url, partial, size=size, attempts=ATTEMPTS)
        os.replace(partial, output_file)

    with target.with_name(f"{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            pooch.retrieve(url, f"sha256:{sha256}", target.name, target.parent, downloader=download)
        except FetchError as error:
            arrived = partial.stat().st_size if partial.exists() else 0
            of = f"{arrived} of {size}" if size else str(arrived)
            kept = f" ({of} bytes are kept: run it again to go on)" if arrived else ""
            if not arrived:
                partial.unlink(missing_ok=True)
            raise FetchError(f"{error}{kept}") from None
        except ValueError as error:
            found = re.findall(r"\b[0-9a-f]{64}\b", str(error))
            raise WrongContentError(found[-1] if found else "unknown") from None


def fetch(url: str, file: Path, *, size: int | None = None, attempts: int = 1) -> None:
    """Write what an address gives into a file, going on behind what the file has already.

    Args:
        url: http or https.
        file: in a folder that exists; after an error it keeps what arrived.
        size: bytes that there must be, where known.
        attempts: how often a broken connection is taken up again, as long as something new arrives.
    Raises:
        FetchError: refused, broken off, too slow, too large, or of another size.
        OSError: the file cannot be written.
    """
    for left in reversed(range(attempts)):
        before = file.stat().st_size if file.exists() else 0
        try:
            _fetch_once(url, file, before, size)
        except urllib.error.HTTPError as error:
            if error.code != _RANGE_NOT_SATISFIABLE or not before:
                raise FetchError(f"cannot be fetched: {printable(str(error.reason))}") from None
            file.unlink()  # longer than what the address has now
        except (http.client.HTTPException, urllib.error.URLError, TimeoutError, ConnectionError) as error:
            if left and file.exists() and file.stat().st_size > before:
                continue
            reason = " ".join(str(getattr(error, "reason", "") or error).split()) or type(error).__name__
            raise FetchError(f"cannot be fetched: {printable(reason)}") from None
        else:
            return
    raise FetchError("cannot be fetched: the file there is shorter than what arrived before; try again")


def _fetch_once(url: str, file: Path, start: int, size: int | None) -> None:
    headers = {"User-Agent": "graph-train"} | ({"Range": f"bytes={start}-"} if start else {})
    opener = urllib.request.build_opener(_HttpOnly)
    with opener.open(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_SECONDS) as answer:
        # A server that knows no ranges sends all of it again.
        start = start if answer.status == _PARTIAL else 0
        stated = answer.headers.get("Content-Length", "")
        expected = start + int(stated) if stated.isascii() and stated.isdigit() else None
        if size is not None and expected not in (None, size):
            raise FetchError(f"has {expected} bytes, {size} were expected: it is not used")
        with file.open("ab" if start else "wb") as out:
            _copy(answer, out, url, start, expected if size is None else size)


def _copy(answer: Any, out: IO[bytes], url: str, start: int, expected: int | None) -> None:
    total, began = start, time.monotonic()
    free = shutil.disk_usage(Path(out.name).parent).free
    limit = start + min(MAX_BYTES, free)
    with tqdm(total=expected, initial=start, desc=name_of(url), unit="B", unit_scale=True) as bar:
        while True:
            if max(total, expected or 0) > limit:
                raise FetchError(f"is larger than the {free / 1e9:.1f} GB that are free in {Path(out.name).parent}")
            chunk = answer.read1(_CHUNK_BYTES)
            if not chunk:
                break
            total += len(chunk)
            waited = time.monotonic() - began
            if waited > _PATIENCE_SECONDS and total - start < waited * _SLOWEST_BYTES_PER_SECOND:
                raise FetchError(f"sends only {(total - start) / waited:.0f} bytes a second")
            out.write(chunk)
            bar.update(len(chunk))
    if expected is not None and total != expected:
        raise ConnectionError(f"the connection ended after {total} of {expected} bytes")

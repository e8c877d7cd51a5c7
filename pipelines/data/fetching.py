"""Streams a file from an http address to the disk: bounded, watched, and continued after a break."""

import http.client
import shutil
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from pipelines.data.problems import printable

ALLOW_DOWNLOAD = "--allow-download"
"""The flag without which no command fetches anything."""
MAX_BYTES = 1 << 40
_TIMEOUT_SECONDS = 30.0
_PATIENCE_SECONDS, _SLOWEST_BYTES_PER_SECOND = 30.0, 1000
_CHUNK_BYTES = 1 << 20
_PARTIAL, _RANGE_NOT_SATISFIABLE = 206, 416


class FetchError(ValueError):
    """An address that gives nothing, or not all; the text is the rest of a sentence that begins with the address."""


class _HttpOnly(urllib.request.HTTPRedirectHandler):
    """Follows redirections to http and https only."""

    def redirect_request(  # noqa: PLR0917 - the base class's arguments
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if not newurl.startswith(("http://", "https://")):
            raise urllib.error.URLError(f"it leads to {printable(newurl[:80])}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def name_of(url: str) -> str:
    """The last part of an address, fit for a terminal."""
    return printable(url.rpartition("?")[0].rpartition("/")[2] or url.rpartition("/")[2] or "archive")


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

"""HTTP downloads to files: limited in size, monitored for speed, and resumable."""

import base64
import contextlib
import fcntl
import http.client
import logging
import os
import re
import shutil
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from kernels.host.paths import printable
from kernels.host.quantity import quantity

ALLOW_DOWNLOAD = "--allow-download"
"""The flag that allows downloads, other than of URLs given directly in `--source`."""
MAX_BYTES = 1 << 40
ATTEMPTS = 5
"""How often a broken connection is resumed, as long as there is progress."""
_TIMEOUT_SECONDS = 30.0
_NO_HEADERS = "no complete response in time"
_PATIENCE_SECONDS, _SLOWEST_BYTES_PER_SECOND = 30.0, 1000
_CHUNK_BYTES = 1 << 20
_KEPT_CHARACTERS = "%/:=&?~#+!$,;'@()*[]"
"""Characters of a URL that are not percent-encoded."""
_log = logging.getLogger("graph_train")
_PARTIAL, _RANGE_NOT_SATISFIABLE = 206, 416


class FetchError(ValueError):
    """A failed download; the message continues a sentence that begins with the URL."""


class WrongContentError(ValueError):
    """A file with an unexpected SHA-256, which is the message."""


class _HttpOnly(urllib.request.HTTPRedirectHandler):
    """A handler that follows redirects to http and https only."""

    def redirect_request(  # noqa: PLR0917 - the base class's arguments
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if not newurl.startswith(("http://", "https://")):
            raise urllib.error.URLError(f"redirect to {printable(newurl[:80])}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _HeaderTimeout:
    """Connection mix-in that limits the time until headers are complete, not only the time between bytes."""

    sock: socket.socket
    _is_late = False

    def getresponse(self) -> Any:
        timer = threading.Timer(_TIMEOUT_SECONDS, self._give_up)
        timer.daemon = True
        timer.start()
        try:
            answer = super().getresponse()  # type: ignore[misc]
        except Exception:
            if self._is_late:
                raise TimeoutError(_NO_HEADERS) from None
            raise
        finally:
            timer.cancel()
        if self._is_late:
            raise TimeoutError(_NO_HEADERS)
        return answer

    def _give_up(self) -> None:
        self._is_late = True
        with contextlib.suppress(OSError, AttributeError):  # closed by the other side meanwhile
            self.sock.shutdown(socket.SHUT_RDWR)


class _HttpConnection(_HeaderTimeout, http.client.HTTPConnection):
    pass


class _HttpsConnection(_HeaderTimeout, http.client.HTTPSConnection):
    pass


class _HttpHandler(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(_HttpConnection, req)


class _HttpsHandler(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(_HttpsConnection, req)  # verifies certificate and host name by default


def name_of(url: str) -> str:
    """Return the last part of a URL, made printable."""
    return printable(url.rpartition("?")[0].rpartition("/")[2] or url.rpartition("/")[2] or "archive")


def fetch_verified(url: str, target: Path, *, sha256: str, size: int | None = None, note: str = "") -> None:
    """Download a file and verify it, unless it exists; the target is created only when complete and verified.

    A partial download is kept as `<name>.part` and continued by the next call. Of concurrent processes, one downloads
    and the others wait.

    Args:
        url: http or https URL.
        target: the file, in an existing folder.
        sha256: 64 hexadecimal digits.
        size: expected size in bytes, if known.
        note: text for the log, such as the licence.
    Raises:
        FetchError: the download failed, see `fetch`.
        WrongContentError: the checksum differs; the file is deleted.
        OSError: the file cannot be written.
    """
    # Imported here because it takes a third of a second, and most commands download nothing.
    import pooch

    pooch.get_logger().setLevel(logging.ERROR)
    partial = target.with_name(f"{target.name}.part")

    def download(url: str, output_file: str, _: pooch.Pooch) -> None:
        _log.info("Downloading %s%s", url, f" ({note})" if note else "")
        fetch(url, partial, size=size, attempts=ATTEMPTS)
        os.replace(partial, output_file)

    with target.with_name(f"{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            pooch.retrieve(url, f"sha256:{sha256}", target.name, target.parent, downloader=download)
        except FetchError as error:
            arrived = partial.stat().st_size if partial.exists() else 0
            of = f"{arrived} of {size}" if size else str(arrived)
            kept = f" ({of} bytes kept; run again to continue)" if arrived else ""
            if not arrived:
                partial.unlink(missing_ok=True)
            raise FetchError(f"{error}{kept}") from None
        except ValueError as error:
            found = re.findall(r"\b[0-9a-f]{64}\b", str(error))
            raise WrongContentError(found[-1] if found else "unknown") from None


def fetch(
    url: str,
    file: Path,
    *,
    size: int | None = None,
    attempts: int = 1,
    max_bytes: int = MAX_BYTES,
    progress: bool = True,
) -> None:
    """Download a URL to a file, continuing a partial download.

    Args:
        url: http or https URL; `user:password@` before the host is sent as basic authentication.
        file: the file, in an existing folder; after an error it is kept.
        size: expected size in bytes, if known.
        attempts: how often a broken connection is resumed, as long as there is progress.
        max_bytes: maximum size in bytes.
        progress: whether to show a progress bar.
    Raises:
        FetchError: the download failed, is too slow or too large, or has an unexpected size.
        OSError: the file cannot be written.
    """
    for left in reversed(range(attempts)):
        before = file.stat().st_size if file.exists() else 0
        try:
            _fetch_once(url, file, before, _DownloadRequest(size, max_bytes, progress))
        except urllib.error.HTTPError as error:
            if error.code != _RANGE_NOT_SATISFIABLE or not before:
                raise FetchError(f"download failed: {_reason(error)}") from None
            file.unlink()  # longer than the current file at the URL
        except _BROKEN as error:
            if left and file.exists() and file.stat().st_size > before:
                continue
            raise FetchError(f"download failed: {_reason(error)}") from None
        else:
            return
    raise FetchError("download failed: the remote file has become shorter; try again")


_BROKEN = (http.client.HTTPException, urllib.error.URLError, TimeoutError, ConnectionError)


def media_type(url: str) -> tuple[str, bool]:
    """Return the content type of a URL, such as "image/jpeg" or "", and whether it has a content length.

    Only the headers are read.

    Raises:
        FetchError: the request failed.
    """
    try:
        with _open(url) as answer:
            stated = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
            return stated, "Content-Length" in answer.headers
    except _BROKEN as error:
        raise FetchError(f"download failed: {_reason(error)}") from None


@dataclass(frozen=True)
class _DownloadRequest:
    """Expected and maximum size in bytes, and whether to show a progress bar."""

    size: int | None
    max_bytes: int
    progress: bool


def _reason(error: Exception) -> str:
    """Return a short description of a network error."""
    cause = getattr(error, "reason", "") or error
    if isinstance(error, urllib.error.HTTPError):
        return printable(f"{error.reason} (HTTP {error.code})")
    if isinstance(cause, socket.gaierror):
        return f"no such host ({cause.strerror})"
    if isinstance(cause, OSError) and cause.strerror:
        return printable(cause.strerror)
    return printable(" ".join(str(cause).split()) or type(error).__name__)


def _open(url: str, **headers: str) -> Any:
    opener = urllib.request.build_opener(_HttpOnly, _HttpHandler, _HttpsHandler)
    try:
        request = _request(url, headers)
    except ValueError as error:
        raise FetchError(f"invalid URL: {printable(str(error))}") from None
    return opener.open(request, timeout=_TIMEOUT_SECONDS)


def _request(url: str, headers: dict[str, str]) -> urllib.request.Request:
    parts = urllib.parse.urlsplit(url)
    account, _, place = parts.netloc.rpartition("@")
    path, query = (urllib.parse.quote(part, safe=_KEPT_CHARACTERS) for part in (parts.path, parts.query))
    host = place if place.isascii() else place.encode("idna").decode()
    address = urllib.parse.urlunsplit((parts.scheme, host, path, query, ""))
    request = urllib.request.Request(address, headers={"User-Agent": "graph-train", **headers})
    if account:
        secret = base64.b64encode(urllib.parse.unquote(account).encode()).decode()
        # Not sent to the targets of redirects.
        request.add_unredirected_header("Authorization", f"Basic {secret}")
    return request


def _fetch_once(url: str, file: Path, start: int, request: _DownloadRequest) -> None:
    size = request.size
    with _open(url, **({"Range": f"bytes={start}-"} if start else {})) as answer:
        # A server without support for ranges sends the whole file again.
        start = start if answer.status == _PARTIAL else 0
        stated = answer.headers.get("Content-Length", "")
        expected = start + int(stated) if stated.isascii() and stated.isdigit() else None
        if size is not None and expected not in (None, size):
            raise FetchError(f"has {quantity(expected or 0, 'byte')}, but {size} were expected; it is not used")
        with file.open("ab" if start else "wb") as out:
            _copy(answer, out, url, start, replace(request, size=expected if size is None else size))


def _copy(answer: Any, out: IO[bytes], url: str, start: int, request: _DownloadRequest) -> None:
    from tqdm import tqdm  # fails with wrong variables TQDM_…, which the commands report

    expected, total, began = request.size, start, time.monotonic()
    free = shutil.disk_usage(Path(out.name).parent).free
    bar = tqdm(
        total=expected, initial=start, desc=name_of(url), unit="B", unit_scale=True, disable=not request.progress
    )
    with bar:
        while True:
            if max(total, expected or 0) > start + free:
                raise FetchError(f"is larger than the free space in {Path(out.name).parent} ({free / 1e9:.1f} GB)")
            if max(total, expected or 0) > request.max_bytes:
                raise FetchError(f"is larger than {request.max_bytes / 1e6:,.0f} MB; it is not used")
            chunk = answer.read1(_CHUNK_BYTES)
            if not chunk:
                break
            total += len(chunk)
            waited = time.monotonic() - began
            if waited > _PATIENCE_SECONDS and total - start < waited * _SLOWEST_BYTES_PER_SECOND:
                raise FetchError(f"is too slow ({(total - start) / waited:.0f} bytes per second)")
            out.write(chunk)
            bar.update(len(chunk))
    if expected is not None and total != expected:
        raise ConnectionError(f"the connection ended after {total} of {expected} bytes")

"""Synchronisation of an evolution's results with Google Cloud Storage (`--bucket`), by its client `gsutil`.

As in YOLOv5, the bucket's table is downloaded at the start if it is longer than the local one, and the local table is
uploaded after each generation.
"""

import logging
import subprocess
from collections.abc import Sequence
from pathlib import Path

from graph_train.settings.train_options import BUCKET_CLIENT

_LOG = logging.getLogger(__name__)
_TIMEOUT_SECONDS = 120


class Bucket:
    """A bucket for the files of an evolution, given by its name or its gs:// URL; failed copies are only logged."""

    def __init__(self, name: str) -> None:
        self._url = "gs://" + name.removeprefix("gs://").strip("/")

    def fetch(self, file: Path) -> None:
        """Download the bucket's file of this name if it is longer than the local one."""
        url = f"{self._url}/{file.name}"
        size = (_gsutil("du", url).stdout.split() or ["0"])[0]  # fails if there is none yet
        if size.isdigit() and int(size) > (file.stat().st_size if file.exists() else 0):
            _LOG.info("--bucket: continuing with %s", url)
            _copy(url, str(file))

    def publish(self, files: Sequence[Path]) -> None:
        """Upload files."""
        _copy(*map(str, files), self._url + "/")


def _copy(*places: str) -> None:
    done = _gsutil("cp", *places)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        _LOG.warning("--bucket: %s cp: %s; the evolution continues", BUCKET_CLIENT, reason)


def _gsutil(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [BUCKET_CLIENT, *arguments]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=_TIMEOUT_SECONDS
        )
    except (subprocess.TimeoutExpired, OSError) as error:
        return subprocess.CompletedProcess(command, 1, stdout="", stderr=" ".join(str(error).split()))

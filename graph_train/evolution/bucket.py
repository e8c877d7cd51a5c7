"""`--bucket`: the table of an evolution also lies in Google Cloud Storage, carried by its own client, `gsutil`.

As in YOLOv5: at the start the bucket's table is taken if it is the longer one; ours is copied there after each
generation.
"""

import logging
import subprocess
from collections.abc import Sequence
from pathlib import Path

from graph_train.settings.train_options import BUCKET_CLIENT

_LOG = logging.getLogger(__name__)
_TIMEOUT_SECONDS = 120


class Bucket:
    """A place that keeps the files of one evolution: a name, as in the reference, or an address.

    What cannot be copied is told and ends nothing.
    """

    def __init__(self, name: str) -> None:
        self._url = "gs://" + name.removeprefix("gs://").strip("/")

    def fetch(self, file: Path) -> None:
        """Get the bucket's file of this name if it is longer than ours."""
        url = f"{self._url}/{file.name}"
        size = (_ask("du", url).stdout.split() or ["0"])[0]  # refused where there is none yet
        if size.isdigit() and int(size) > (file.stat().st_size if file.exists() else 0):
            _LOG.info("--bucket: going on with %s", url)
            _copy(url, str(file))

    def publish(self, files: Sequence[Path]) -> None:
        """Copy files there."""
        _copy(*map(str, files), self._url + "/")


def _copy(*places: str) -> None:
    done = _ask("cp", *places)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        _LOG.warning("--bucket: %s cp: %s; the evolution goes on", BUCKET_CLIENT, reason)


def _ask(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [BUCKET_CLIENT, *arguments]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=_TIMEOUT_SECONDS
        )
    except (subprocess.TimeoutExpired, OSError) as error:
        return subprocess.CompletedProcess(command, 1, stdout="", stderr=" ".join(str(error).split()))

"""One rank's membership in its job: joins before OneFlow is imported, reports success or failure at the end."""

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from graph_train.host.devices import VISIBLE_DEVICES, gpu_numbers, visible_devices
from graph_train.host.failures import RANK_LOST, AlreadyReportedError, GracefulStop
from graph_train.ranks.launcher import RankInfo, rank_info

DEFAULT_TIMEOUT = 60.0
_LONGEST_TIMEOUT = 86400.0
_STAY_SECONDS = 1.5
"""A rank that failed stays so long: OneFlow would abort the others if it missed one before the watches end them."""


class Team:
    """The ranks of this job, seen from one of them."""

    def __init__(self, info: RankInfo, status_fd: int | None = None) -> None:
        self.info = info
        self._status_fd = status_fd
        self.has_failed = False

    def _send_status(self, **status: str) -> None:
        if self._status_fd is not None:
            os.write(self._status_fd, json.dumps(status).encode() + b"\n")

    def report_done(self) -> None:
        """Report that this rank is done."""
        self._send_status(kind="done")

    def report_failure(self, reason: str) -> None:
        """Report that this rank has failed; the others will end, and rank 0's watch prints the reason."""
        self.has_failed = True
        self._send_status(kind="failed", reason=reason)


_team = Team(RankInfo())


def current() -> Team:
    """Return the job that this process has joined; a job of one without `join`."""
    return _team


def join(timeout: float = DEFAULT_TIMEOUT, *, devices: str = "") -> Team:
    """Meet the other ranks that the launcher's variables announce; once per process, and before OneFlow is imported.

    Args:
        timeout: seconds to wait for the others.
        devices: `--device`; a list such as "2,3" names the GPUs that the ranks of this host have, in their order.
    Raises:
        ValueError: the variables or the devices make no sense, somebody did not come, or OneFlow is loaded already.
    """
    global _team  # noqa: PLW0603 - a process belongs to one job
    if not _team.info.alone:
        return _team
    info = rank_info(os.environ)
    if info.alone:
        return _team
    if "oneflow" in sys.modules:
        raise ValueError(
            f"WORLD_SIZE={info.world}: OneFlow was imported before the ranks have met; call "
            "graph_train.ranks.team.join() first, or start `-m graph_train`"
        )
    if not isinstance(timeout, int | float) or not 0 < timeout <= _LONGEST_TIMEOUT:
        raise ValueError(
            f"--dist-timeout {timeout}: must be a number above 0 and at most {_LONGEST_TIMEOUT:.0f} seconds"
        )
    numbers = gpu_numbers(devices)
    from graph_train.ranks.rendezvous import join_rendezvous

    rendezvous = join_rendezvous(info, timeout)
    _export_to_engine(info, rendezvous.engine_port)
    _team = Team(info, _start_watch(info, rendezvous))
    if numbers:
        # OneFlow gives a rank the visible GPU of its local number.
        os.environ[VISIBLE_DEVICES] = visible_devices(numbers)
    if not info.main:
        # No progress bars; read when tqdm is imported.
        os.environ["TQDM_DISABLE"] = "1"
    return _team


def _export_to_engine(info: RankInfo, port: int) -> None:
    """Set the variables that OneFlow reads when it is imported; its ranks meet at a port of their own."""
    # Its own warnings tell of each rank that is not there yet.
    os.environ.setdefault("GLOG_minloglevel", "2")
    values = {
        "RANK": info.rank,
        "WORLD_SIZE": info.world,
        "LOCAL_RANK": info.local_rank,
        "MASTER_ADDR": info.master_host,
        "MASTER_PORT": port,
    }
    os.environ.update({name: str(value) for name, value in values.items()})


def _start_watch(info: RankInfo, rendezvous: Any) -> int:
    """Start the companion process; return the file descriptor of its status pipe."""
    from graph_train.ranks.rank_watch import WatchSettings

    status_out, status_in = os.pipe()
    rank_lost_out, rank_lost_in = os.pipe()
    settings = WatchSettings(
        rank=info.rank,
        process=os.getpid(),
        sockets={str(rank): known.fileno() for rank, known in rendezvous.sockets.items()},
        status_fd=status_out,
        rank_lost_fd=rank_lost_in,
        places=list(rendezvous.places),
        hosts=list(rendezvous.hosts),
    )
    handed_over = [status_out, rank_lost_in, *settings.sockets.values()]
    # A session of its own: signals from the terminal are for the training, which reports to its peers after saving.
    subprocess.Popen(
        [sys.executable, "-m", "graph_train.ranks.rank_watch", json.dumps(asdict(settings))],
        pass_fds=handed_over,
        start_new_session=True,
        stdin=subprocess.DEVNULL,
    )
    os.close(status_out)
    os.close(rank_lost_in)
    for known in rendezvous.sockets.values():
        known.close()
    threading.Thread(
        target=_exit_when_rank_lost, args=(rank_lost_out,), name="graph-train-rank-lost", daemon=True
    ).start()
    return status_in


def _exit_when_rank_lost(pipe: int) -> None:
    """End this process at once when its watch says that a rank is lost: the main thread may wait for it forever."""
    if os.read(pipe, 16):
        logging.shutdown()
        os._exit(RANK_LOST)


@contextmanager
def reporting(*, quiet: bool) -> Iterator[None]:
    """Wrap the work of a rank: the other ranks learn how it ended.

    Args:
        quiet: a failure of any rank but the main one is not reported here.
    Raises:
        AlreadyReportedError: such a failure.
    """
    team = _team
    try:
        yield
    except GracefulStop as error:
        team.report_done()
        if quiet and not team.info.main:
            raise AlreadyReportedError from error
        raise
    except BaseException as error:
        # Also an interrupt of this rank alone: the others may wait for it in the middle of an exchange.
        reason = "interrupted" if isinstance(error, KeyboardInterrupt) else " ".join(str(error).split())
        team.report_failure(reason or type(error).__name__)
        if quiet and not team.info.main:
            raise AlreadyReportedError from error
        raise
    team.report_done()


def leave(code: int) -> None:
    """End a process of several that failed, without OneFlow's own shutdown: that would wait for all ranks."""
    if code and not _team.info.alone:
        if _team.has_failed:
            time.sleep(_STAY_SECONDS)
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

"""A rank's membership in its job: it joins before OneFlow is imported and reports success or failure at the end."""

import gc
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
from typing import TYPE_CHECKING

from graph_train.host.devices import VISIBLE_DEVICES, gpu_numbers, visible_devices
from graph_train.host.failures import RANK_LOST, AlreadyReportedError, GracefulStop
from graph_train.host.own_modules import module_command
from graph_train.ranks.launcher import RankInfo, rank_info

if TYPE_CHECKING:
    from graph_train.ranks.rendezvous import Rendezvous

DEFAULT_TIMEOUT = 60.0
_MAX_TIMEOUT = 86400.0
_LINGER_SECONDS = 1.5
"""Delay of a failed rank's exit, so that the watchdogs end the other ranks before OneFlow aborts them."""


class Team:
    """This process's membership in a job."""

    def __init__(self, info: RankInfo, status_fd: int | None = None) -> None:
        self.info = info
        self._status_fd = status_fd
        self.has_failed = False

    def _send_status(self, **status: str) -> None:
        if self._status_fd is not None:
            os.write(self._status_fd, json.dumps(status).encode() + b"\n")

    def report_done(self) -> None:
        """Report that this rank has finished."""
        self._send_status(kind="done")

    def report_failure(self, reason: str) -> None:
        """Report that this rank has failed; the other ranks end, and rank 0's watchdog prints the reason."""
        self.has_failed = True
        self._send_status(kind="failed", reason=reason)


_team = Team(RankInfo())


def current() -> Team:
    """Return the job that this process has joined; without `join`, a job with one rank."""
    return _team


def join(timeout: float = DEFAULT_TIMEOUT, *, devices: str = "") -> Team:
    """Join the job described by the launcher's variables; must be called before OneFlow is imported.

    Args:
        timeout: seconds to wait for the other ranks.
        devices: the value of `--device`; a list such as "2,3" gives the GPUs of this host's ranks in their order.
    Raises:
        ValueError: the variables or devices are invalid, a rank is missing, or OneFlow is already imported.
    """
    global _team  # noqa: PLW0603 - a process belongs to one job
    if not _team.info.single_rank:
        return _team
    info = rank_info(os.environ)
    if info.single_rank:
        return _team
    if "oneflow" in sys.modules:
        raise ValueError(
            f"WORLD_SIZE={info.world}: OneFlow was imported before the ranks have joined; call "
            "graph_train.ranks.team.join() first, or start `-m graph_train`"
        )
    if not isinstance(timeout, int | float) or not 0 < timeout <= _MAX_TIMEOUT:
        raise ValueError(f"--dist-timeout {timeout}: must be a number above 0 and at most {_MAX_TIMEOUT:.0f} seconds")
    numbers = gpu_numbers(devices)
    from graph_train.ranks.rendezvous import join_rendezvous

    rendezvous = join_rendezvous(info, timeout)
    _export_to_oneflow(info, rendezvous.oneflow_port)
    _team = Team(info, _start_watch(info, rendezvous))
    if numbers:
        # OneFlow assigns each rank the visible GPU with its local rank.
        os.environ[VISIBLE_DEVICES] = visible_devices(numbers)
    if not info.is_main:
        # Disable progress bars; tqdm reads this when it is imported.
        os.environ["TQDM_DISABLE"] = "1"
    return _team


def _export_to_oneflow(info: RankInfo, port: int) -> None:
    """Set the variables that OneFlow reads when it is imported, with a separate port for its own rendezvous."""
    # Suppress its warnings about ranks that are not there yet.
    os.environ.setdefault("GLOG_minloglevel", "2")
    values = {
        "RANK": info.rank,
        "WORLD_SIZE": info.world,
        "LOCAL_RANK": info.local_rank,
        "MASTER_ADDR": info.master_host,
        "MASTER_PORT": port,
    }
    os.environ.update({name: str(value) for name, value in values.items()})


def _start_watch(info: RankInfo, rendezvous: "Rendezvous") -> int:
    """Start the watchdog process; return the file descriptor of its status pipe."""
    from graph_train.ranks.rank_watch import WatchSettings

    status_out, status_in = os.pipe()
    rank_lost_out, rank_lost_in = os.pipe()
    settings = WatchSettings(
        rank=info.rank,
        process=os.getpid(),
        sockets={str(rank): known.fileno() for rank, known in rendezvous.sockets.items()},
        status_fd=status_out,
        rank_lost_fd=rank_lost_in,
        locations=list(rendezvous.locations),
        hosts=list(rendezvous.hosts),
    )
    inherited = [status_out, rank_lost_in, *settings.sockets.values()]
    # A new session: signals from the terminal must reach only the training, which reports to its peers after saving.
    subprocess.Popen(
        module_command("graph_train.ranks.rank_watch", [json.dumps(asdict(settings))]),
        pass_fds=inherited,
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
    """Exit at once if the watchdog reports a lost rank, because the main thread may wait for it forever."""
    if os.read(pipe, 16):
        logging.shutdown()
        os._exit(RANK_LOST)


@contextmanager
def reporting(*, quiet: bool) -> Iterator[None]:
    """Report to the other ranks how the work inside the context ends.

    Args:
        quiet: raise AlreadyReportedError for a failure on a rank other than 0.
    Raises:
        AlreadyReportedError: the rank failed, and rank 0 prints the message.
    """
    team = _team
    try:
        yield
    except GracefulStop as error:
        team.report_done()
        if quiet and not team.info.is_main:
            raise AlreadyReportedError from error
        raise
    except BaseException as error:
        # Includes an interrupt of this rank alone: the others may be waiting for it in a collective.
        reason = "interrupted" if isinstance(error, KeyboardInterrupt) else " ".join(str(error).split())
        team.report_failure(reason or type(error).__name__)
        if quiet and not team.info.is_main:
            raise AlreadyReportedError from error
        raise
    team.report_done()


def leave(code: int) -> None:
    """Exit a failed rank of a job without OneFlow's shutdown, which would wait for all ranks.

    In a rank that has succeeded, keep unreachable graphs until the process ends: destroying a graph waits for the other
    ranks, which may be destroying another one.
    """
    if _team.info.single_rank:
        return
    gc.freeze()
    if code:
        if _team.has_failed:
            time.sleep(_LINGER_SECONDS)
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

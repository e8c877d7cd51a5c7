"""The watchdog process of a rank: detects that another rank is lost, reports it, and ends its own rank.

    python -m graph_train.ranks.rank_watch SETTINGS

It is a separate process, because a rank that waits for a dead one in native code cannot react. Rank 0's watchdog is
connected to the watchdogs of all other ranks. They exchange heartbeats; a rank that exits without signing off is lost.
SETTINGS is a JSON object with the fields of `WatchSettings`.
"""

import json
import os
import selectors
import signal
import socket
import sys
import time
from dataclasses import dataclass, field
from typing import Any

HEARTBEAT_SECONDS, HEARTBEAT_TIMEOUT_SECONDS = 2.0, 20.0
"""Interval of heartbeats, and the time without one after which a rank is lost."""
_GRACE_SECONDS = 5.0
_CHECK_SECONDS = 0.5


@dataclass(frozen=True)
class WatchSettings:
    """Settings of a watchdog.

    Attributes:
        rank: rank of the watched process.
        process: its process id.
        sockets: file descriptors by rank (as a string), see `graph_train.ranks.rendezvous.Rendezvous`.
        status_fd: pipe on which the process reports that it is done or has failed.
        rank_lost_fd: pipe on which the loss of a rank is reported.
        locations, hosts: see `graph_train.ranks.rendezvous.Rendezvous`.
    """

    rank: int
    process: int
    sockets: dict[str, int]
    status_fd: int
    rank_lost_fd: int
    locations: list[str]
    hosts: list[str]


@dataclass
class _Peer:
    """The watchdog of another rank."""

    rank: int
    connection: socket.socket
    last_seen: float = field(default_factory=time.monotonic)
    pending: bytes = b""
    finished: bool = False


class Watch:
    """A watchdog, which runs until the job ends or a rank is lost."""

    def __init__(self, settings: WatchSettings) -> None:
        self._settings = settings
        self._peers = {
            int(rank): _Peer(int(rank), socket.socket(fileno=number)) for rank, number in settings.sockets.items()
        }
        self._process = os.pidfd_open(settings.process)
        self._status_buffer = b""
        self._last_heartbeat = 0.0
        self._own_failure: str | None = None
        self._done = False

    def run(self) -> None:
        """Watch until the job ends."""
        with selectors.DefaultSelector() as selector:
            for peer in self._peers.values():
                peer.connection.setblocking(False)
                selector.register(peer.connection, selectors.EVENT_READ, peer)
            selector.register(self._process, selectors.EVENT_READ, "process")
            selector.register(self._settings.status_fd, selectors.EVENT_READ, "status")
            while True:
                events = {
                    key.data if isinstance(key.data, str) else key.data.rank: key.data
                    for key, _ in selector.select(_CHECK_SECONDS)
                }
                # Status first: a process that has signed off is not lost.
                if "status" in events and not self._read_status():
                    selector.unregister(self._settings.status_fd)
                if "process" in events:
                    return self._process_ended()
                for name, peer in events.items():
                    if isinstance(name, int) and not self._read_peer(peer):
                        selector.unregister(peer.connection)
                self._exchange_heartbeats()

    # --- the watched process ---------------------------------------------------------------------------------------

    def _read_status(self) -> bool:
        data = os.read(self._settings.status_fd, 1 << 16)
        self._status_buffer += data
        *lines, self._status_buffer = self._status_buffer.split(b"\n")
        for line in lines:
            status = json.loads(line)
            self._done = self._done or status["kind"] == "done"
            if status["kind"] == "failed":
                self._own_failure = status["reason"]
                # Announced at once: the process delays its exit, so that the others end before OneFlow aborts them.
                self._announce_exit(f"ended: {status['reason']}", reported=True)
        return bool(data)

    def _process_ended(self) -> None:
        """Sign off, or report this rank as lost to all peers."""
        if self._done:
            self._send_to_peers({"kind": "bye"})
        elif self._own_failure is None:
            reason = "ended unexpectedly: it was killed, or crashed"
            if self._settings.rank == 0:
                self._print_lost(0, reason)
            self._announce_exit(reason)

    def _end_process(self) -> None:
        """Tell the process to exit, unless it is exiting already; kill it if it hangs in native code."""
        try:
            if self._own_failure is None:
                os.write(self._settings.rank_lost_fd, b"lost\n")
        except OSError:
            return
        selector = selectors.DefaultSelector()
        selector.register(self._process, selectors.EVENT_READ)
        if not selector.select(_GRACE_SECONDS):
            signal.pidfd_send_signal(self._process, signal.SIGKILL)

    # --- the others ------------------------------------------------------------------------------------------------

    def _announce_exit(self, reason: str, *, reported: bool = False) -> None:
        self._send_to_peers({"kind": "lost", "rank": self._settings.rank, "reason": reason, "reported": reported})

    def _send_to_peers(self, message: dict[str, Any]) -> None:
        for peer in self._peers.values():
            try:
                peer.connection.sendall(json.dumps(message).encode() + b"\n")
            except OSError:
                continue  # full or gone; detected by the missing heartbeat

    def _exchange_heartbeats(self) -> None:
        now = time.monotonic()
        if now - self._last_heartbeat >= HEARTBEAT_SECONDS:
            self._last_heartbeat = now
            self._send_to_peers({"kind": "alive"})
        for peer in self._peers.values():
            if not peer.finished and now - peer.last_seen > HEARTBEAT_TIMEOUT_SECONDS:
                self._report_lost(
                    peer.rank, f"sent no heartbeat for {HEARTBEAT_TIMEOUT_SECONDS:g} s: its host or the network is down"
                )

    def _read_peer(self, peer: _Peer) -> bool:
        try:
            data = peer.connection.recv(1 << 16)
        except BlockingIOError:
            return True
        except OSError:
            data = b""
        if not data:
            if not peer.finished:
                self._report_lost(
                    peer.rank, "disconnected: its host went down, or it was killed with all its processes"
                )
            return False
        peer.last_seen = time.monotonic()
        peer.pending += data
        *lines, peer.pending = peer.pending.split(b"\n")
        for line in lines:
            message = json.loads(line)
            if message["kind"] == "bye":
                peer.finished = True
            elif message["kind"] == "lost":
                self._report_lost(int(message["rank"]), message["reason"], reported=message.get("reported", False))
        return True

    def _report_lost(self, rank: int, reason: str, *, reported: bool = False) -> None:
        """Report a lost rank to all peers and end the job."""
        if self._settings.rank == 0:
            self._send_to_peers({"kind": "lost", "rank": rank, "reason": reason, "reported": reported})
        # A failure is printed once: by rank 0 itself if it failed, and not again if all ranks failed in the same way.
        if reported:
            time.sleep(_CHECK_SECONDS)
            while is_readable(self._settings.status_fd) and self._read_status():
                continue
        repeated = reported and (rank == 0 or (self._own_failure is not None and reason.endswith(self._own_failure)))
        if self._is_reporter(rank) and not repeated:
            self._print_lost(rank, reason)
        self._end_process()
        raise SystemExit

    def _is_reporter(self, lost: int) -> bool:
        """Return whether this rank prints the message: rank 0, else the first remaining rank of this host."""
        settings = self._settings
        if settings.rank == 0:
            return True
        host = settings.hosts[settings.rank]
        remaining = [rank for rank, name in enumerate(settings.hosts) if name == host and rank != lost]
        return settings.rank == remaining[0]

    def _print_lost(self, rank: int, reason: str) -> None:
        place = self._settings.locations[rank]
        text = f"graph-train: rank {rank} ({place}) {reason}; stopping the job. Use --resume to continue from the last"
        print(f"{text} checkpoint", file=sys.stderr, flush=True)


def is_readable(number: int) -> bool:
    """Return whether a file descriptor is ready to read."""
    with selectors.DefaultSelector() as selector:
        selector.register(number, selectors.EVENT_READ)
        return bool(selector.select(0))


def main() -> None:
    """Run the process."""
    Watch(WatchSettings(**json.loads(sys.argv[1]))).run()


if __name__ == "__main__":
    main()

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from typing import Any

import pytest

from graph_train.ranks.launcher import RankInfo
from graph_train.ranks.rank_watch import WatchSettings
from graph_train.ranks.rendezvous import Rendezvous, free_port, join_rendezvous


def info(rank: int, world: int, port: int) -> RankInfo:
    return RankInfo(rank, world, 0, f"host{rank}", "127.0.0.1", port)


def connect_all(infos: list[RankInfo], timeout: float) -> list[Rendezvous | ValueError]:
    """Connect all ranks in threads of this process; rank 0 starts last."""
    outcomes: dict[int, Rendezvous | ValueError] = {}

    def connect(place: int) -> None:
        try:
            outcomes[place] = join_rendezvous(infos[place], timeout)
        except ValueError as error:
            outcomes[place] = error

    threads = [threading.Thread(target=connect, args=(place,)) for place in range(len(infos))]
    for thread in reversed(threads):
        thread.start()
    for thread in threads:
        thread.join()
    return [outcomes[place] for place in range(len(infos))]


def close(meetings: list[Any]) -> None:
    for meeting in meetings:
        if isinstance(meeting, Rendezvous):
            for connection in meeting.sockets.values():
                connection.close()


def test_all_ranks_connect() -> None:
    port = free_port()
    meetings = connect_all([info(rank, 3, port) for rank in range(3)], 10)
    for meeting in meetings:
        assert isinstance(meeting, Rendezvous), meeting
        assert meeting.hosts == ("host0", "host1", "host2")
        assert meeting.locations[2] == f"host2, process {os.getpid()}"
    assert len({meeting.oneflow_port for meeting in meetings if isinstance(meeting, Rendezvous)}) == 1
    assert [sorted(m.sockets) for m in meetings if isinstance(m, Rendezvous)] == [[1, 2], [0], [0]]
    close(meetings)


def test_missing_rank_is_reported_on_every_rank() -> None:
    port = free_port()
    outcomes = connect_all([info(rank, 4, port) for rank in (0, 2)], 1)
    for outcome in outcomes:
        assert f"ranks 1, 3 of 4 did not connect to rank 0 on host0 (127.0.0.1, port {port}) within 1 s" in str(outcome)
        assert "joined: 0 on host0, 2 on host2" in str(outcome)


def test_message_on_many_missing_ranks_is_bounded() -> None:
    (outcome,) = connect_all([info(0, 10_000, free_port())], 0.1)
    assert "19, 20 and 9979 more of 10000 did not connect" in str(outcome) and len(str(outcome)) < 500


def test_invalid_host_name_of_rank_0_is_reported() -> None:
    (outcome,) = connect_all([RankInfo(1, 2, 0, "host1", "a" * 300, free_port())], 0.1)
    assert "cannot connect to rank 0 at aaa" in str(outcome) and "check that it is running" in str(outcome)


def test_missing_rank_0_is_reported() -> None:
    port = free_port()
    (outcome,) = connect_all([info(1, 2, port)], 0.5)
    assert f"rank 1 on host1: cannot connect to rank 0 at 127.0.0.1, port {port} within 0.5 s" in str(outcome)


def test_ranks_of_different_jobs_do_not_connect() -> None:
    port = free_port()
    outcomes = connect_all([info(0, 2, port), info(1, 3, port)], 5)
    assert all("started with world size 3, but rank 0 on host0 with 2" in str(outcome) for outcome in outcomes)
    port = free_port()
    outcomes = connect_all([info(0, 3, port), info(1, 3, port), info(1, 3, port)], 5)
    assert all("two processes have rank 1" in str(outcome) for outcome in outcomes)


def connected(host: str, port: int) -> socket.socket:
    """Return a connection as soon as the port is open."""
    end = time.monotonic() + 10
    while True:
        try:
            return socket.create_connection((host, port))
        except ConnectionRefusedError:
            assert time.monotonic() < end
            time.sleep(0.02)


NO_RANKS = (
    b"GET / HTTP/1.1",
    b'{"rank": 7, "world": 2, "host": "a", "process": 1}',
    b'{"rank": -1, "world": 2, "host": "a", "process": 1}',
    b'{"rank": 1, "world": 2, "process": 1}',
    b'{"rank": 1, "world": 2, "host": "a"}',
    b'{"rank": 1e400, "world": 2, "host": "a", "process": 1}',
    b"[" * 100_000,
)


@pytest.mark.parametrize("sent", NO_RANKS, ids=range(len(NO_RANKS)))
def test_foreign_connections_are_ignored(sent: bytes) -> None:
    port = free_port()
    outcomes: list[Any] = []
    first = threading.Thread(target=lambda: outcomes.append(join_rendezvous(info(0, 2, port), 10)))
    first.start()
    with connected("127.0.0.1", port) as foreign:
        foreign.sendall(sent + b"\n")
    outcomes.append(join_rendezvous(info(1, 2, port), 10))
    first.join()
    assert all(isinstance(outcome, Rendezvous) for outcome in outcomes)
    close(outcomes)


@pytest.fixture
def job() -> Any:
    """Return three sleeping processes, each with its watchdog and status pipe."""
    started: list[subprocess.Popen[Any]] = []
    meetings = connect_all([info(rank, 3, port) for port in [free_port()] for rank in range(3)], 10)
    ranks = []
    for rank, meeting in enumerate(meetings):
        assert isinstance(meeting, Rendezvous)
        process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
        status_out, status_in = os.pipe()
        _, rank_lost_in = os.pipe()
        sockets = {str(other): connection.fileno() for other, connection in meeting.sockets.items()}
        settings = WatchSettings(
            rank, process.pid, sockets, status_out, rank_lost_in, list(meeting.locations), list(meeting.hosts)
        )
        watch = subprocess.Popen(
            [sys.executable, "-m", "graph_train.ranks.rank_watch", json.dumps(asdict(settings))],
            pass_fds=[status_out, rank_lost_in, *sockets.values()],
            stderr=subprocess.PIPE,
            text=True,
        )
        os.close(status_out)
        started += [process, watch]
        ranks.append((process, watch, status_in))
    close(meetings)
    yield ranks
    for process in started:
        process.kill()
        process.wait()


def texts(job: Any) -> list[str]:
    return [watch.communicate(timeout=20)[1] for _, watch, _ in job]


def test_killed_rank_ends_others_and_is_reported(job: Any) -> None:
    started = time.monotonic()
    job[1][0].kill()
    message = texts(job)
    assert time.monotonic() - started < 15
    assert "graph-train: rank 1 (host1, process" in message[0]
    assert "ended unexpectedly: it was killed, or crashed; stopping the job" in message[0]
    assert all(process.wait(10) == -signal.SIGKILL for process, _, _ in job)  # they slept on and did not read the pipe


def test_killed_rank_0_is_reported_by_others(job: Any) -> None:
    job[0][0].kill()
    message = texts(job)
    assert all("rank 0 (host0, process" in text for text in message)


def test_unreachable_rank_is_reported(job: Any) -> None:
    job[2][1].kill()  # the watch: its connections close without signing off
    message = texts(job[:2])
    assert "rank 2 (host2, process" in message[0]
    assert "disconnected" in message[0]


def test_failure_is_reported_once_with_reason(job: Any) -> None:
    process, _, status = job[2]
    os.write(status, b'{"kind": "failed", "reason": "disk full"}\n')
    process.kill()
    message = texts(job)
    assert "rank 2 (host2, process" in message[0]
    assert "ended: disk full; stopping the job" in message[0]
    assert not message[2]


def test_finished_rank_is_not_reported_as_lost(job: Any) -> None:
    for process, watch, status in (job[2], job[0], job[1]):
        os.write(status, b'{"kind": "done"}\n')
        process.kill()
        assert not watch.communicate(timeout=10)[1]
        assert watch.returncode == 0

"""Rendezvous of the ranks of a job before anything slow is started; reports which ranks are missing.

Rank 0 listens at the master port. The others connect and identify themselves; then rank 0 sends all of them the hosts
of all ranks and a free port for OneFlow's own rendezvous. The connections stay open for
`graph_train.ranks.rank_watch`.
"""

import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from graph_train.ranks.launcher import RankInfo

_RETRY_SECONDS = 0.2
_HELLO_SECONDS = 5.0
_MAX_LINE_LENGTH = 1 << 20
_LISTED_RANKS = 20
"""Maximum number of ranks listed in a message."""
_Arrival = tuple[dict[str, Any], socket.socket | None]


@dataclass(frozen=True)
class Rendezvous:
    """Result of the rendezvous.

    Attributes:
        sockets: connections by rank: on rank 0 one to each other rank, else the one to rank 0.
        locations: description of host and process of each rank.
        hosts: host name of each rank.
        oneflow_port: a free port on rank 0's host for OneFlow.
    """

    sockets: Mapping[int, socket.socket]
    locations: tuple[str, ...]
    hosts: tuple[str, ...]
    oneflow_port: int


def join_rendezvous(info: RankInfo, timeout: float) -> Rendezvous:
    """Wait until all ranks have joined.

    Args:
        info: this rank.
        timeout: time limit in seconds.
    Raises:
        ValueError: a rank did not join in time, or does not belong to this job; names rank, host and port.
    """
    return _accept_ranks(info, timeout) if info.is_main else _connect_to_main(info, timeout)


def _accept_ranks(info: RankInfo, timeout: float) -> Rendezvous:
    """Accept the other ranks, on rank 0."""
    deadline = time.monotonic() + timeout
    where = f"{info.master_host}, port {info.master_port}"
    try:
        server = socket.create_server(("", info.master_port), backlog=info.world)
    except OSError as error:
        raise ValueError(
            f"rank 0 on {info.host} cannot listen on port {info.master_port} ({error.strerror}): another job may be "
            "using it; choose another master port"
        ) from None
    arrived: dict[int, _Arrival] = {0: (_hello(info), None)}
    with server:
        while len(arrived) < info.world and time.monotonic() < deadline:
            server.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                connection, _ = server.accept()
            except TimeoutError:
                break
            _accept_rank(info, connection, arrived)
    sockets = {rank: known for rank, (_, known) in arrived.items() if known is not None}
    if len(arrived) < info.world:
        missing = [rank for rank in range(info.world) if rank not in arrived]
        joined = [f"{rank} on {hello['host']}" for rank, (hello, _) in sorted(arrived.items())]
        text = (
            f"rank{'s' if len(missing) > 1 else ''} {_listed(missing)} of {info.world} did not connect to rank 0 on "
            f"{info.host} ({where}) within {timeout:g} s; joined: {_listed(joined)}. Start the missing ranks, check "
            "that no firewall blocks the port, or increase --dist-timeout"
        )
        _send_all(sockets, {"error": text})
        raise ValueError(text)
    hellos = [arrived[rank][0] for rank in range(info.world)]
    answer = {
        "locations": [f"{hello['host']}, process {hello['process']}" for hello in hellos],
        "hosts": [hello["host"] for hello in hellos],
        "oneflow_port": free_port(),
    }
    _send_all(sockets, answer)
    return _rendezvous(sockets, answer)


def _listed(entries: Sequence[object]) -> str:
    """Return the entries separated by commas; of many, the first ones."""
    more = len(entries) - _LISTED_RANKS
    return ", ".join(map(str, entries[:_LISTED_RANKS])) + (f" and {more} more" if more > 0 else "")


def _accept_rank(info: RankInfo, connection: socket.socket, arrived: dict[int, _Arrival]) -> None:
    """Register a connecting rank; drop connections that are not from a rank."""
    try:
        connection.settimeout(_HELLO_SECONDS)
        hello = _read_line(connection)
        rank, world, host = int(hello["rank"]), int(hello["world"]), str(hello["host"])
        if not 0 <= rank < world or "process" not in hello:
            raise ValueError("not a rank")
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        connection.close()
        return
    problem = ""
    if world != info.world:
        problem = (
            f"rank {rank} on {host} was started with world size {world}, but rank 0 on {info.host} with {info.world}"
        )
    elif rank in arrived:
        problem = f"two processes have rank {rank}, on {arrived[rank][0]['host']} and {host}"
    arrived.setdefault(rank, (hello, connection))
    if problem:
        connections = {rank: known for rank, (_, known) in arrived.items() if known is not None}
        _send_all({**connections, -1: connection}, {"error": problem})
        raise ValueError(problem)


def _connect_to_main(info: RankInfo, timeout: float) -> Rendezvous:
    """Connect to rank 0, on any other rank."""
    connection = _connect(info, timeout)
    _send(connection, _hello(info))
    # Rank 0 may have started only now.
    connection.settimeout(timeout + _HELLO_SECONDS)
    try:
        answer = _read_line(connection)
    except (OSError, ValueError):
        raise ValueError(
            f"rank {info.rank} on {info.host}: rank 0 at {info.master_host}, port {info.master_port} exited, or did "
            f"not answer within {timeout:g} s; see its output"
        ) from None
    if "error" in answer:
        raise ValueError(answer["error"])
    return _rendezvous({0: connection}, answer)


def _connect(info: RankInfo, timeout: float) -> socket.socket:
    deadline = time.monotonic() + timeout
    reason = ""
    while time.monotonic() < deadline:
        try:
            return socket.create_connection((info.master_host, info.master_port), deadline - time.monotonic() + 0.1)
        # It has not started yet, its name is not known yet, or it is no host name.
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", "") or str(error)
            time.sleep(_RETRY_SECONDS)
    raise ValueError(
        f"rank {info.rank} on {info.host}: cannot connect to rank 0 at {info.master_host}, port {info.master_port} "
        f"within {timeout:g} s ({reason}); check that it is running, that the address is right, and that no firewall "
        "blocks the port"
    )


def _hello(info: RankInfo) -> dict[str, Any]:
    return {"rank": info.rank, "world": info.world, "host": info.host, "process": os.getpid()}


def _rendezvous(sockets: Mapping[int, socket.socket], answer: Mapping[str, Any]) -> Rendezvous:
    return Rendezvous(sockets, tuple(answer["locations"]), tuple(answer["hosts"]), int(answer["oneflow_port"]))


def free_port() -> int:
    """Return an unused TCP port of this host."""
    with socket.create_server(("", 0)) as probe:
        return int(probe.getsockname()[1])


def _send_all(sockets: Mapping[int, socket.socket], message: Mapping[str, Any]) -> None:
    for known in sockets.values():
        try:
            _send(known, message)
        except OSError:
            continue  # gone; the watchdog reports it


def _send(connection: socket.socket, message: Mapping[str, Any]) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")


def _read_line(connection: socket.socket) -> dict[str, Any]:
    """Read a line with a JSON object.

    Raises:
        ValueError: the connection was closed, or the line is something else.
    """
    data = bytearray()
    while not data.endswith(b"\n"):
        byte = connection.recv(1)  # not beyond the line, because the rest is for the watchdog
        if not byte or len(data) > _MAX_LINE_LENGTH:
            raise ValueError("connection closed")
        data += byte
    message = json.loads(data)
    if not isinstance(message, dict):
        raise ValueError("not an object")
    return message

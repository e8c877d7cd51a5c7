"""Rank and world size from a launcher's environment variables, read before OneFlow is imported.

Supported launchers are `oneflow.distributed.launch`, torchrun and Kubernetes' training operators (RANK, WORLD_SIZE,
LOCAL_RANK, MASTER_ADDR, MASTER_PORT), and SLURM's `srun`.
"""

import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass

_FOUR = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_MAX_RANKS = 1 << 16
_LAST_PORT = 65535
_SLURM_FIRST_PORT, _SLURM_PORTS = 20000, 20000
"""The port of a SLURM job is derived from the job id, so that two jobs on one host use different ports."""


@dataclass(frozen=True)
class RankInfo:
    """Rank of a process in its job.

    Attributes:
        rank, world: rank of this process and number of ranks.
        local_rank: rank of this process on its host, which is also the number of its GPU.
        host: name of this host.
        master_host, master_port: address at which rank 0 listens.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    host: str = ""
    master_host: str = "127.0.0.1"
    master_port: int = 0

    @property
    def single_rank(self) -> bool:
        """Whether this is the only process."""
        return self.world == 1

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes files and logs."""
        return self.rank == 0


def rank_info(variables: Mapping[str, str], *, host: str | None = None) -> RankInfo:
    """Parse a launcher's environment variables.

    Raises:
        ValueError: variables are missing, invalid or inconsistent.
    """
    host = socket.gethostname() if host is None else host
    if any(name in variables for name in ("RANK", "WORLD_SIZE")):
        return _from_launcher(variables, host)
    # Only `srun` sets this variable; a batch script itself is a single process.
    if variables.get("SLURM_STEP_NUM_TASKS") and _number(variables, "SLURM_STEP_NUM_TASKS") > 1:
        return _from_slurm(variables, host)
    return RankInfo(host=host)


def _from_launcher(variables: Mapping[str, str], host: str) -> RankInfo:
    # OneFlow sets RANK to -1 in a single process, and its children inherit that.
    if variables.get("WORLD_SIZE") == "1" and variables.get("RANK", "-1") == "-1":
        return RankInfo(host=host)
    missing = [name for name in _FOUR if not variables.get(name)]
    if missing:
        given = [name for name in _FOUR if name in variables]
        raise ValueError(
            f"{', '.join(given)} set, but not {', '.join(missing)}; a launcher sets all four: use `python -m "
            "oneflow.distributed.launch`, or unset them to train in one process"
        )
    rank, world, local = _ranks(variables, "RANK", "WORLD_SIZE", "LOCAL_RANK")
    # torchrun itself listens at MASTER_PORT.
    offset = int(variables.get("TORCHELASTIC_USE_AGENT_STORE") == "True")
    port = _port(variables, last=_LAST_PORT - offset) + offset
    return RankInfo(rank, world, local, host, variables["MASTER_ADDR"], port) if world > 1 else RankInfo(host=host)


def _from_slurm(variables: Mapping[str, str], host: str) -> RankInfo:
    names = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_JOB_ID")
    missing = [name for name in names if name not in variables]
    nodes = variables.get("SLURM_STEP_NODELIST") or variables.get("SLURM_JOB_NODELIST") or ""
    if missing or not nodes:
        missing += [] if nodes else ["SLURM_STEP_NODELIST"]
        raise ValueError(f"SLURM_STEP_NUM_TASKS set, but not {', '.join(missing)}: start with `srun`")
    port = _SLURM_FIRST_PORT + _number(variables, "SLURM_JOB_ID") % _SLURM_PORTS
    rank, world, local = _ranks(variables, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
    return RankInfo(
        rank=rank,
        world=world,
        local_rank=local,
        host=host,
        master_host=variables.get("MASTER_ADDR") or first_host(nodes),
        master_port=_port(variables, last=_LAST_PORT) if variables.get("MASTER_PORT") else port,
    )


def _ranks(variables: Mapping[str, str], rank_name: str, world_name: str, local_name: str) -> tuple[int, int, int]:
    """Return rank, number of ranks and local rank.

    Raises:
        ValueError: one of them is out of range.
    """
    rank, world = _number(variables, rank_name), _number(variables, world_name)
    local = _number(variables, local_name) if local_name in variables else 0
    if world < 1 or not 0 <= rank < world:
        raise ValueError(f"{rank_name}={rank}, {world_name}={world}: ranks count from 0 to {world_name} - 1")
    if world > _MAX_RANKS:
        raise ValueError(f"{world_name}={world}: at most {_MAX_RANKS} ranks are supported")
    if world > 1 and not 0 <= local < world:
        raise ValueError(f"{local_name}={local}: must be between 0 and {world_name} - 1")
    return rank, world, local


def _port(variables: Mapping[str, str], *, last: int) -> int:
    port = _number(variables, "MASTER_PORT")
    if not 0 < port <= last:
        raise ValueError(f"MASTER_PORT={port}: must be between 1 and {last}")
    return port


def first_host(nodes: str) -> str:
    """Return the first host of a SLURM node list: `gpu003` for `gpu[003-010,12],login1`.

    Raises:
        ValueError: `nodes` is not a node list.
    """
    match = re.match(r"([\w.-]+)(?:\[(\d+)[^\]]*\]([\w.-]*))?", nodes)
    if match is None:
        raise ValueError(f"SLURM_STEP_NODELIST={nodes!r}: not a node list")
    stem, number, rest = match.groups()
    return stem + (number or "") + (rest or "")


def _number(variables: Mapping[str, str], name: str) -> int:
    try:
        return int(variables[name])
    except ValueError:
        raise ValueError(f"{name}={variables[name]!r}: must be an integer") from None

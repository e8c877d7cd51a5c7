"""Self-check of the plugin's changes to OneFlow, run once for each compiled library.

The plugin replaces internals of OneFlow: the kernel registry of each op, the memory planner of graphs, the allocation
of large blocks, and the queue of graph runs. Another build of OneFlow could differ there. A child process, which may
crash, therefore runs an op before and after the plugin is loaded, allocates a large tensor, and runs a small graph.
"""

import contextlib
import hashlib
import os
import subprocess
import sys
from pathlib import Path

from kernels.build.cache import PluginUnavailableError, private_cache_folder
from kernels.host.files import write_atomically

GOOD = "good"
_CACHE_NAME = "self-checks"
"""Subfolder of the cache with the results of libraries that are stored elsewhere."""
_TIMEOUT_SECONDS = 120
_LARGE = 1 << 23
"""Elements of a tensor whose memory comes directly from the system, see `native/host_memory.cpp`."""
_PROGRAM = "from kernels.build.self_check import main; import sys; main(sys.argv[1])"


def check(library: Path) -> str:
    """Return `GOOD`, or one line about the failure; takes seconds the first time.

    The result is stored next to the library or, for a library in a folder of another user, such as that of a wheel
    installed by root, in the cache.
    """
    name = result_name(library)
    beside = library.with_name(name)
    if beside.exists():
        return _stored(beside)
    if os.access(library.parent, os.W_OK) and library.parent.stat().st_uid == os.geteuid():
        note = beside
    else:
        try:
            note = private_cache_folder(_CACHE_NAME) / name
        except (OSError, PluginUnavailableError):  # no writable or private cache: checked at each start
            return _probe(library)
        if note.exists():
            return _stored(note)
    found = _probe(library)
    with contextlib.suppress(OSError):
        write_atomically(note, found)
    return found


def result_name(library: Path) -> str:
    """Return the name of the file with the result; another library of the same name has another one."""
    return f"self-check-{hashlib.sha256(library.read_bytes()).hexdigest()[:24]}"


def _stored(note: Path) -> str:
    return note.read_text(encoding="utf-8").strip() or GOOD


def _probe(library: Path) -> str:
    """Run the check in a child process and return its result."""
    package = str(Path(__file__).resolve().parents[2])
    environment = {name: value for name, value in os.environ.items() if name not in _RANK_VARIABLES}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM, str(library)],
            env={**environment, "PYTHONPATH": package},
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIMEOUT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"a small graph did not finish within {_TIMEOUT_SECONDS} s"
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return f"a process that runs a small graph exited with code {done.returncode}: {last:.200}"
    return done.stdout.strip().splitlines()[-1]


_RANK_VARIABLES = frozenset({"MASTER_ADDR", "MASTER_PORT", "RANK", "LOCAL_RANK", "WORLD_SIZE"})
"""Variables to remove for the child process, because it is not a rank of the job."""


def main(library: str) -> None:
    """Run the check and print the result; runs in a child process."""
    from kernels.runtime import flow

    values = flow.tensor([[-3.0, -0.5, 0.0, 0.25, 2.0, 7.0]] * 64)
    before = flow.nn.functional.silu(values).numpy()  # OneFlow caches its kernel here
    from kernels import plugin

    try:
        plugin._process.library = plugin._load(Path(library))
    except (ValueError, OSError) as error:
        print(f"{' '.join(str(error).split()):.200}")
        return
    after = flow.nn.functional.silu(values).numpy()
    if abs(after - before).max() > 1e-5:
        print("an op that ran before the plugin was loaded gives wrong results afterwards")
    elif flow.empty(_LARGE).numpy().any():
        print("the memory of a large tensor is not clear")
    else:
        print(_graph_finding(values))


def _graph_finding(values: object) -> str:
    from kernels.framework import dispatch
    from kernels.framework.graph_memory import compile_graph, last_memory_plan
    from kernels.runtime import Tensor, flow

    def doubled(x: Tensor) -> Tensor:
        return dispatch.call(dispatch.op_of("graph_train_double", "in"), (x,))

    class Chain(flow.nn.Graph):
        def build(self, x: Tensor) -> Tensor:
            for _ in range(4):
                x = doubled(flow.nn.functional.silu(x))
            return x

    graph, expected = Chain(), values
    for _ in range(4):
        expected = doubled(flow.nn.functional.silu(expected))
    compile_graph(graph, values)
    for _ in range(2):
        if abs(graph(values).numpy() - expected.numpy()).max() > 1e-5:  # type: ignore[attr-defined]
            return "a small graph and its ops run eagerly give different results"
    plan = last_memory_plan()
    if not plan.peak <= plan.shared < plan.separate:
        return SHARES_NOTHING
    return GOOD


SHARES_NOTHING = (
    "tensors of a graph do not share memory with this build of OneFlow; they need about three times as much"
)
"""A finding with which the plugin is used nevertheless, because results are correct."""

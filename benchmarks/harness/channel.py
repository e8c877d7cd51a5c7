"""The worker's end of the pipe to `graph-bench`: one JSON line in, one JSON line out.

Imports only the standard library, since other interpreters, such as PyTorch's, load this module too.
"""

import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_USER_ERRORS = (ValueError, OSError, MemoryError)


def serve(handlers: Mapping[str, Callable[..., Any]]) -> None:
    """Answer requests `{"call": name, "arguments": {...}}` until stdin closes.

    The handlers `processor_ms` and `memory` are always available. Printed output is redirected to stderr, so that
    native libraries cannot corrupt an answer.
    """
    handlers = {"processor_ms": processor_ms, "memory": memory, **handlers}
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        reply: dict[str, Any]
        try:
            reply = {"value": handlers[request["call"]](**request["arguments"])}
        except Exception as error:
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}", "users": isinstance(error, _USER_ERRORS)}
        answers.write(json.dumps(reply) + "\n")
        answers.flush()


def processor_ms() -> dict[str, float]:
    """Return the processor time so far in ms, of the thread that runs the handlers and of the whole process."""
    return {"main_thread": time.thread_time() * 1e3, "process": time.process_time() * 1e3}


def memory() -> dict[str, float | None]:
    """Return the peak memory and the current GPU memory of this process in MB."""
    return {"peak_rss_mb": peak_memory_mb(), "device_mb": device_memory_mb()}


def peak_memory_mb() -> float:
    """Return the peak resident size of this process in MB.

    `getrusage` is no alternative: it includes what the parent held when it started this process.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024 / 1e6
    raise OSError("/proc/self/status has no VmHWM")


def device_memory_mb() -> float | None:
    """Return the GPU memory of this process in MB, allocator reserves included; None without a GPU."""
    query = ("nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits")
    try:
        listing = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    rows = (line.split(",") for line in listing.splitlines() if "," in line)
    return next((float(used) * 2**20 / 1e6 for pid, used in rows if int(pid) == os.getpid()), None)

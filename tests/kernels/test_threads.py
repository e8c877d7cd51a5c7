"""Worker threads of a team stay off the core of the thread that they help."""

import ctypes
import os
import threading
from collections.abc import Callable

import pytest

from kernels.plugin import load_plugin, plugin_library

pytestmark = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core: there is no other to go to")


def in_a_thread(body: Callable[[], None]) -> None:
    """Run a function in a thread, so that its core affinity does not affect the test's thread."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            body()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def leave(core: int) -> None:
    load_plugin("require")
    plugin_library().graph_train_leave_core(core)


def current_core() -> int:
    return int(ctypes.CDLL(None).sched_getcpu())


def leave_own_core() -> int:
    """Leave the current core and return it, with retries since the system may move the thread before the call."""
    before = os.sched_getaffinity(0)
    for _ in range(1000):
        core = current_core()
        leave(core)
        if os.sched_getaffinity(0) != before:
            return core
    raise AssertionError("the thread never left its core")


def test_worker_thread_leaves_core_of_team_leader() -> None:
    def body() -> None:
        allowed = os.sched_getaffinity(0)
        first = leave_own_core()
        assert os.sched_getaffinity(0) == allowed - {first}
        assert current_core() != first
        second = leave_own_core()
        assert second != first
        assert os.sched_getaffinity(0) == allowed - {second}

    in_a_thread(body)


def test_worker_thread_on_other_core_is_not_moved() -> None:
    def body() -> None:
        allowed = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(allowed)})
        for core in (max(allowed), -1, 10**6):
            leave(core)
            assert os.sched_getaffinity(0) == {min(allowed)}

    in_a_thread(body)


def test_worker_thread_stays_on_only_core() -> None:
    def body() -> None:
        only = {min(os.sched_getaffinity(0))}
        os.sched_setaffinity(0, only)
        leave(min(only))
        assert os.sched_getaffinity(0) == only

    in_a_thread(body)

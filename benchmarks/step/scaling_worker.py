"""Worker of `graph-bench scaling`: one rank of a job whose ranks train on one batch together."""

import time
from pathlib import Path
from typing import Any

from benchmarks.harness.channel import serve


class _Session:
    """The objects that `prepare` made."""

    exchange: Any


def prepare(folder: str, device: str) -> dict[str, Any]:
    """Join the ranks given by environment variables, build the step as a graph and execute it once."""
    from graph_train.ranks import team

    info = team.join().info  # before anything imports OneFlow

    from benchmarks.step.step_worker import prepare_at
    from graph_train.host.devices import select_device
    from graph_train.ranks.exchange import Exchange
    from graph_train.ranks.placement import Placement

    _Session.exchange = Exchange(info.rank, info.world)
    place = select_device(device, None if info.single_rank else info.local_rank)
    placement = Placement(place, info.rank, info.world)
    return prepare_at(placement, Path(folder), plugin=True, graph=True, amp=False)


def steps(count: int) -> float:
    """See `benchmarks.step.step_worker.steps`."""
    from benchmarks.step.step_worker import steps as work

    return work(count)


def agreements(count: int) -> float:
    """Exchange a few numbers `count` times, as the trainer does before each batch, and return the seconds."""
    started = time.perf_counter()
    for number in range(count):
        _Session.exchange.all_reduce_max(number, 0, 0, 0)
    return time.perf_counter() - started


def sums(count: int) -> float:
    """All-reduce all gradients `count` times and return the seconds."""
    from benchmarks.step.step_worker import sum_gradients

    started = time.perf_counter()
    for _ in range(count):
        sum_gradients()
    return time.perf_counter() - started


def report_done() -> None:
    """Notify the other ranks that this one is done; never raises."""
    from graph_train.ranks import team

    team.current().report_done()


if __name__ == "__main__":
    serve({"prepare": prepare, "steps": steps, "agreements": agreements, "sums": sums, "report_done": report_done})

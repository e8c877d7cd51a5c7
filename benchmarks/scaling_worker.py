"""Worker of `graph-bench scaling`: one rank of a job that trains one batch together."""

from pathlib import Path
from typing import Any

from benchmarks.channel import serve


def prepare(folder: str, device: str) -> dict[str, Any]:
    """Meets the other ranks that the variables announce, builds the step as a graph and executes it once."""
    from graph_train import team

    info = team.join().info  # before anything imports OneFlow

    from benchmarks.step_worker import prepare_at
    from graph_train.devices import select_device
    from graph_train.placement import Placement

    place = select_device(device, None if info.alone else info.local_rank)
    placement = Placement(place, info.rank, info.world)
    return prepare_at(placement, Path(folder), plugin=True, graph=True, amp=False)


def steps(count: int) -> float:
    """See `benchmarks.step_worker.steps`."""
    from benchmarks.step_worker import steps as work

    return work(count)


def farewell() -> None:
    """Tells the other ranks that this one is done, and does not fail."""
    from graph_train import team

    team.current().farewell()


if __name__ == "__main__":
    serve({"prepare": prepare, "steps": steps, "farewell": farewell})

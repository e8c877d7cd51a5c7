"""Sides are compared only where they compute the same; how a turn counts."""

from typing import Any

import pytest

from benchmarks.competitors import _check_losses
from benchmarks.points import Point

POINT = Point("yolov5n", 1, 64)


def losses(**given: float) -> dict[str, dict[str, Any]]:
    return {name.replace("_", "-"): {"loss": loss} for name, loss in given.items()}


@pytest.mark.parametrize(
    "given",
    [
        {"plugin_graph": 10.0, "pytorch_eager": 10.009},  # within a thousandth
        {"plugin_graph": 10.0, "plugin_graph_amp": 10.4},  # half precision may be 5 % away
        {"plugin_graph": 10.0},
    ],
)
def test_sides_that_compute_the_same_are_compared(given: dict[str, float]) -> None:
    _check_losses(POINT, losses(**given))


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"plugin_graph": 10.0, "pytorch_eager": 10.011}, "pytorch-eager"),
        ({"plugin_graph": 10.0, "plugin_graph_amp": 10.6}, "plugin-graph-amp"),
        ({"plugin_graph_amp": 10.6, "plugin_graph": 10.0}, "plugin-graph-amp"),  # float32 is what counts
        ({"plugin_graph": 10.0, "stock_eager": float("nan")}, "stock-eager"),
        ({"plugin_graph": float("nan"), "stock_eager": 10.0}, "plugin-graph"),
    ],
)
def test_sides_that_compute_something_else_are_not(given: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=f"with {named} .*they do not compute the same step"):
        _check_losses(POINT, losses(**given))

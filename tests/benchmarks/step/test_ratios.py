"""Guards against slowdowns: ratios between alternating competitors, with generous bounds."""

import pytest
import yaml

from benchmarks.harness.points import Point
from benchmarks.step.competitors import Comparison, ComparisonSettings, compare
from tests.graph_train.tiny import TINY

PLUGIN_OVER_STOCK, GRAPH_OVER_EAGER = 2.0, 0.8
ATTEMPTS = 3


@pytest.fixture(scope="module")
def point(tmp_path_factory: pytest.TempPathFactory) -> Point:
    model = tmp_path_factory.mktemp("guard") / "small.yaml"
    model.write_text(yaml.safe_dump({**TINY, "width_multiple": 4.0}))
    return Point(str(model), 4, 64)


def measured(point: Point, *variants: str) -> Comparison:
    return compare(point, variants, ComparisonSettings("cpu", threads=2, repeats=3, torch_python=None))


def shortfalls(comparison: Comparison, *, plugin: str, stock: str, graph: str, eager: str) -> list[str]:
    """Return the ratios out of bounds; each argument is the variant measured for that role."""
    ratios = (
        ("plugin / stock", comparison.speedup(plugin, stock).median, PLUGIN_OVER_STOCK),
        ("graph / eager", comparison.speedup(graph, eager).median, GRAPH_OVER_EAGER),
    )
    return [f"{name} {found:.2f}, expected {least}" for name, found, least in ratios if not found >= least]


def test_plugin_is_faster_than_stock_and_graph_not_slower_than_eager(point: Point) -> None:
    found = []
    # Repeated, because a real slowdown shows every time, but a burst of other load does not.
    for _ in range(ATTEMPTS):
        comparison = measured(point, "plugin-graph", "plugin-eager", "stock-eager")
        slow = shortfalls(
            comparison, plugin="plugin-eager", stock="stock-eager", graph="plugin-graph", eager="plugin-eager"
        )
        if not slow:
            return
        found.append(slow)
    pytest.fail(f"in {ATTEMPTS} attempts: {found}")


@pytest.mark.parametrize(
    ("graph", "eager", "stock", "slow"),
    [
        ([10, 11, 30], [12, 14, 33], [100, 110, 300], []),
        ([10, 11, 30], [12, 14, 33], [20, 25, 60], ["plugin / stock 1.79, expected 2.0"]),
        ([20, 21, 60], [12, 14, 33], [100, 110, 300], ["graph / eager 0.60, expected 0.8"]),
        ([9, float("nan"), 10], [9, 9, 9], [90, 90, 90], ["graph / eager nan, expected 0.8"]),
    ],
)
def test_guard_detects_slow_kernels_and_slow_graph(
    graph: list[float], eager: list[float], stock: list[float], slow: list[str]
) -> None:
    comparison = Comparison([], {"graph": graph, "eager": eager, "stock": stock}, [])
    assert shortfalls(comparison, plugin="eager", stock="stock", graph="graph", eager="eager") == slow

"""Guards speed by ratios of things that run in turn; bounds are generous, absolute times are never looked at."""

import pytest
import yaml

from benchmarks.competitors import Comparison, Setting, compare
from benchmarks.points import Point
from tests.graph_train.tiny import TINY

PLUGIN_OVER_STOCK, GRAPH_OVER_EAGER = 2.0, 0.8
ATTEMPTS = 3


@pytest.fixture(scope="module")
def point(tmp_path_factory: pytest.TempPathFactory) -> Point:
    model = tmp_path_factory.mktemp("guard") / "small.yaml"
    model.write_text(yaml.safe_dump({**TINY, "width_multiple": 4.0}))
    return Point(str(model), 4, 64)


def measured(point: Point, *variants: str) -> Comparison:
    return compare(point, variants, Setting("cpu", threads=2, repeats=3, torch_python=None))


def shortfalls(comparison: Comparison, *, plugin: str, stock: str, graph: str, eager: str) -> list[str]:
    """What is too slow, with the ratio found; each argument names the variant that stands for that side."""
    ratios = (
        ("plugin / stock", comparison.speedup(plugin, stock).median, PLUGIN_OVER_STOCK),
        ("graph / eager", comparison.speedup(graph, eager).median, GRAPH_OVER_EAGER),
    )
    return [f"{name} {found:.2f}, expected {least}" for name, found, least in ratios if not found >= least]


def test_plugin_beats_stock_and_graph_keeps_up_with_eager(point: Point) -> None:
    found = []
    # A real loss of speed shows every time; a burst of other work on the machine does not.
    for _ in range(ATTEMPTS):
        comparison = measured(point, "plugin-graph", "plugin-eager", "stock-eager")
        slow = shortfalls(
            comparison, plugin="plugin-eager", stock="stock-eager", graph="plugin-graph", eager="plugin-eager"
        )
        if not slow:
            return
        found.append(slow)
    pytest.fail(f"in {ATTEMPTS} attempts: {found}")


def test_the_guard_sees_a_graph_without_the_kernels_and_kernels_that_gain_nothing(point: Point) -> None:
    """What a regression would look like, measured: OneFlow's own kernels in the places of ours."""
    comparison = measured(point, "plugin-eager", "stock-graph", "stock-eager")
    slow = shortfalls(comparison, plugin="stock-graph", stock="stock-eager", graph="stock-graph", eager="plugin-eager")
    assert [text.rpartition(" / ")[0] for text in slow] == ["plugin", "graph"]

"""Guards speed by ratios of things that run in turn; bounds are generous, absolute times are never looked at."""

from pathlib import Path

import pytest
import yaml

from benchmarks.competitors import Setting, compare
from benchmarks.points import Point
from tests.graph_train.tiny import TINY

PLUGIN_OVER_STOCK, GRAPH_OVER_EAGER = 2.0, 0.8
ATTEMPTS = 3


def test_plugin_beats_stock_and_graph_keeps_up_with_eager(tmp_path: Path) -> None:
    model = tmp_path / "small.yaml"
    model.write_text(yaml.safe_dump({**TINY, "width_multiple": 4.0}))
    setting = Setting("cpu", threads=2, repeats=3, torch_python=None)
    found = []
    # A real loss of speed shows every time; a burst of other work on the machine does not.
    for _ in range(ATTEMPTS):
        comparison = compare(Point(str(model), 4, 64), ("plugin-graph", "plugin-eager", "stock-eager"), setting)
        plugin = comparison.speedup("plugin-eager", "stock-eager").median
        graph = comparison.speedup("plugin-graph", "plugin-eager").median
        found.append((round(plugin, 2), round(graph, 2)))
        if plugin >= PLUGIN_OVER_STOCK and graph >= GRAPH_OVER_EAGER:
            return
    pytest.fail(f"(plugin / stock, graph / eager) = {found}: expected ({PLUGIN_OVER_STOCK}, {GRAPH_OVER_EAGER})")

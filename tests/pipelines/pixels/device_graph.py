"""The graph that a GPU gets, built on DALI's CPU backend."""

from dataclasses import replace
from typing import Any

import pytest

from pipelines.pixels.canvas_graph import GraphSettings
from pipelines.pixels.drawing import Drawing, open_drawing


def draw_as_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pipelines that are made from now on finish batches in the graph and hand over OneFlow tensors."""

    def opened(settings: GraphSettings, *rest: Any) -> Drawing:
        return open_drawing(replace(settings, finish=True), *rest)

    monkeypatch.setattr("pipelines.batches.open_drawing", opened)

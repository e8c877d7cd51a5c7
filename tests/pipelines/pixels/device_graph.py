"""The pipeline graph used on a GPU, built on DALI's CPU backend."""

from dataclasses import replace
from typing import Any

import pytest

from pipelines.pixels.canvas_graph import GraphSettings
from pipelines.pixels.drawing import Drawing, open_drawing


def use_gpu_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make new pipelines finish batches in the DALI graph and return OneFlow tensors."""

    def opened(settings: GraphSettings, *rest: Any) -> Drawing:
        return open_drawing(replace(settings, finish=True), *rest)

    monkeypatch.setattr("pipelines.batches.open_drawing", opened)

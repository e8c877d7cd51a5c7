import os
from pathlib import Path

import pytest

from benchmarks.step.competitors import find_torch


@pytest.fixture(scope="session")
def torch_python() -> Path:
    """Return an interpreter with PyTorch: named by GRAPH_TRAIN_TORCH_PYTHON, or this one."""
    found = find_torch(os.environ.get("GRAPH_TRAIN_TORCH_PYTHON"))
    if found is None:
        pytest.skip("no PyTorch: name an interpreter that has it in GRAPH_TRAIN_TORCH_PYTHON")
    return found

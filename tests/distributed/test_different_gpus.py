"""Ranks whose GPUs differ compile one step, in a data type that all of them support."""

from pathlib import Path

import pytest

from tests.gpu.test_earlier_faults import step_for_a_gpu

pytestmark = pytest.mark.distributed


def test_ranks_with_different_gpus_use_float16(tmp_path: Path) -> None:
    assert step_for_a_gpu(tmp_path, "8.0", "7.5")["activations"] == "FLOAT16"

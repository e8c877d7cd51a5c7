"""The plugin's kernels for OneFlow's own ops: float32 results against OneFlow's float64 kernels."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from tests.kernels.op_cases import CASES

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, np.ndarray]:
    path = tmp_path_factory.mktemp("ops") / "results.npz"
    subprocess.run([sys.executable, "-m", "tests.kernels.op_cases", str(path)], cwd=ROOT, check=True)
    with np.load(path) as file:
        return dict(file)


@pytest.mark.parametrize("name", CASES)
def test_float32_kernel_equals_float64_kernel(name: str, results: Mapping[str, np.ndarray]) -> None:
    prefix = f"{name}/float32/"
    keys = [key.removeprefix(prefix) for key in results if key.startswith(prefix)]
    assert keys
    for key in keys:
        ours, exact = results[prefix + key], results[f"{name}/float64/{key}"]
        assert ours.shape == exact.shape
        assert np.isfinite(ours).all()
        # Sums of up to a few thousand float32 products of order one: 3e-6 of the largest result is some 25 roundings.
        # Far means lose as many digits as the mean exceeds the deviation, in any float32 kernel.
        scale = max(1.0, np.abs(exact).max())
        tolerance = (3e-5 if "far_mean" in name else 3e-6) * scale
        np.testing.assert_allclose(ours, exact, rtol=0, atol=tolerance, err_msg=f"{name} {key}")

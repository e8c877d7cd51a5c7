"""Which devices are taken, what they compute in, and what the log says of it."""

import numpy as np
import pytest

from graph_train.engine import precision
from graph_train.engine.precision import ComputeDevice, agreeing_type, compute_device
from kernels.framework.activation_type import ActivationType
from kernels.plugin import is_loaded
from kernels.runtime import flow
from tests.graph_train.tiny import tiny_network

FLOAT32, BFLOAT16, FLOAT16 = ActivationType


@pytest.mark.parametrize(
    ("capability", "plugin", "fast", "amp", "expected"),
    [
        (60, True, False, None, FLOAT16),
        (75, True, False, True, FLOAT16),
        (80, True, False, None, BFLOAT16),
        (90, True, False, None, BFLOAT16),
        (90, True, False, False, FLOAT32),
        (86, False, False, None, FLOAT32),
        (None, True, True, None, FLOAT32),
        (None, True, True, True, BFLOAT16),
        (None, True, False, True, FLOAT32),
        (None, False, False, None, FLOAT32),
    ],
)
def test_activation_type(
    capability: int | None, plugin: bool, fast: bool, amp: bool | None, expected: ActivationType
) -> None:
    assert ComputeDevice("device", capability, plugin, fast).activation_type(amp) is expected


def test_mixed_precision_without_the_plugin_is_refused() -> None:
    for capability in (None, 86):
        with pytest.raises(ValueError, match="--amp: mixed precision needs the kernel plugin"):
            ComputeDevice("device", capability, plugin=False).activation_type(True)


def test_gpus_without_kernels_are_refused() -> None:
    ComputeDevice("GPU 0: A", 60, plugin=False).check()
    ComputeDevice("GPU 0: B", 89, plugin=False).check()
    ComputeDevice("GPU 0: C", 120, plugin=True).check()
    with pytest.raises(ValueError, match=r"GPU 0: Tesla M40 has compute capability 5\.2, which is too old"):
        ComputeDevice("GPU 0: Tesla M40", 52, plugin=True).check()
    with pytest.raises(ValueError, match=r"GPU 1: H200 has compute capability 9\.0, and OneFlow 0\.9\.0's own"):
        ComputeDevice("GPU 1: H200", 90, plugin=False).check()


def test_summary_names_device_type_and_kernels() -> None:
    assert ComputeDevice("GPU 0: NVIDIA H200", 90, True).summary(BFLOAT16, "") == (
        "GPU 0: NVIDIA H200 (compute capability 9.0); activations bfloat16; sums, statistics, loss and weights in "
        "float32. Kernels: plugin"
    )
    assert ComputeDevice("CPU", None, False).summary(FLOAT32, "switched off") == (
        "CPU; activations float32. Kernels: OneFlow's own (switched off)"
    )


def test_a_gpu_is_asked_for_its_name_and_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow.cuda, "get_device_capability", lambda number: (8, number))
    monkeypatch.setattr(flow.cuda, "get_device_name", lambda number: f"card {number}")
    assert compute_device("cuda:6", plugin=True) == ComputeDevice("GPU 6: card 6", 86, True)


@pytest.mark.skipif(not is_loaded(), reason="needs the kernel plugin")
def test_amp_check_compares_maps(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(precision, "emulates_cuda", lambda: True)
    network = tiny_network()
    before = {name: value.numpy().copy() for name, value in network.state_dict().items()}
    assert agreeing_type(network, BFLOAT16, "cpu") is BFLOAT16
    assert network.activation_type is FLOAT32 and network.training
    for name, value in network.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[name])

    monkeypatch.setattr(precision, "_AGREEMENT", 0.0)
    with caplog.at_level("WARNING", logger="graph_train"):
        assert agreeing_type(network, BFLOAT16, "cpu") is FLOAT32
    assert "AMP check failed: maps in bfloat16 are off by" in caplog.text

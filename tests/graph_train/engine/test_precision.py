"""The choice of devices and precision, and the log messages on it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graph_train import export, predict, validate
from graph_train.detection.inference import Inference
from graph_train.engine import precision
from graph_train.engine.precision import ComputeDevice, checked_activation_type, compute_device
from kernels.framework.activation_type import ActivationType
from kernels.plugin import is_loaded
from kernels.runtime import Tensor, flow
from models.layout import Layout
from tests.graph_train.tiny import random_batch, tiny_network
from tests.graph_train.training_runner import TrainingRunner

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


def test_mixed_precision_without_plugin_raises() -> None:
    for capability in (None, 86):
        with pytest.raises(ValueError, match="--amp: mixed precision needs the kernel plugin"):
            ComputeDevice("device", capability, plugin=False).activation_type(True)


def test_gpu_without_kernels_raises() -> None:
    ComputeDevice("GPU 0: A", 60, plugin=False).check()
    ComputeDevice("GPU 0: B", 89, plugin=False).check()
    ComputeDevice("GPU 0: C", 90, plugin=True).check()
    with pytest.raises(ValueError, match=r"GPU 0: Tesla M40: compute capability 5\.2 is not supported"):
        ComputeDevice("GPU 0: Tesla M40", 52, plugin=True).check()
    with pytest.raises(ValueError, match=r"GPU 1: H200: compute capability 9\.0 needs the kernel plugin.*\(no g\+\+\)"):
        ComputeDevice("GPU 1: H200", 90, plugin=False, reason="no g++").check()


def test_blackwell_needs_cudnn_9(monkeypatch: pytest.MonkeyPatch) -> None:
    for capability, version in ((100, r"10\.0"), (120, r"12\.0")):
        monkeypatch.setattr(precision, "newer_cudnn", lambda: None)
        message = rf"capability {version} needs cuDNN 9 .*--extra blackwell; or use --device cpu"
        with pytest.raises(ValueError, match=message):
            ComputeDevice("GPU 0: B200", capability, plugin=True).check()
        monkeypatch.setattr(precision, "newer_cudnn", lambda: Path("libcudnn.so.9"))
        ComputeDevice("GPU 0: B200", capability, plugin=True).check()


def test_summary_has_device_dtype_and_kernels() -> None:
    assert ComputeDevice("GPU 0: NVIDIA H200", 90, True).summary(BFLOAT16) == (
        "GPU 0: NVIDIA H200 (compute capability 9.0); activations bfloat16; sums, statistics, loss and weights in "
        "float32. Kernels: plugin"
    )
    assert ComputeDevice("CPU", None, False, reason="switched off").summary(FLOAT32) == (
        "CPU; activations float32. Kernels: OneFlow's own (switched off)"
    )


def test_gpu_name_and_capability_are_queried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow.cuda, "get_device_capability", lambda number: (8, number))
    monkeypatch.setattr(flow.cuda, "get_device_name", lambda number: f"card {number}")
    assert compute_device("cuda:6", plugin=True) == ComputeDevice("GPU 6: card 6", 86, True)


@pytest.mark.skipif(not is_loaded(), reason="needs the kernel plugin")
def test_amp_check_compares_maps(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(precision, "emulates_cuda", lambda: True)
    network = tiny_network()
    before = {name: value.numpy().copy() for name, value in network.state_dict().items()}
    assert checked_activation_type(network, BFLOAT16, "cpu") is BFLOAT16
    assert network.activation_type is FLOAT32 and network.training
    for name, value in network.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[name])

    monkeypatch.setattr(precision, "_MAX_RELATIVE_ERROR", 0.0)
    with caplog.at_level("WARNING", logger="graph_train"):
        assert checked_activation_type(network, BFLOAT16, "cpu") is FLOAT32
    assert "AMP check failed: bfloat16 feature maps differ by" in caplog.text


@pytest.mark.skipif(not is_loaded(), reason="needs the kernel plugin")
@pytest.mark.parametrize(
    ("float32", "rounded", "message"),
    [
        # A level that is not finite follows one that is: Python's `max` of (0.0, nan) is 0.0.
        ([1.0, 1.0], [1.0, np.nan], "bfloat16 feature maps are not finite"),
        ([1.0, 1.0], [np.inf, 1.0], "bfloat16 feature maps are not finite"),
        ([1.0, np.nan], [1.0, np.nan], "those in float32 are not finite (check the initial weights)"),
        ([1.0, 2.0], [1.0, 2.6], "differ by 30% of the largest value"),
        ([1.0, 2.0], [1.0, 2.1], None),
    ],
)
def test_amp_check_of_given_maps(
    float32: list[float],
    rounded: list[float],
    message: str | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    network = tiny_network()
    maps = {FLOAT32: float32, BFLOAT16: rounded}
    monkeypatch.setattr(precision, "emulates_cuda", lambda: True)
    monkeypatch.setattr(
        type(network), "raw_maps", lambda self, _: [flow.tensor([value]) for value in maps[self.activation_type]]
    )
    with caplog.at_level("WARNING", logger="graph_train"):
        chosen = checked_activation_type(network, BFLOAT16, "cpu")
    assert chosen is (BFLOAT16 if message is None else FLOAT32)
    assert (message or "") in caplog.text
    assert len(caplog.messages) == (message is not None)


@pytest.mark.skipif(not is_loaded(), reason="needs the kernel plugin")
def test_bfloat16_is_limited_to_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other networks in the process and later commands on the same weights stay in float32."""
    computed: list[ActivationType] = []
    choose = Layout.fastest_for

    def record(images: Tensor, activation_type: ActivationType) -> Layout:
        computed.append(activation_type)
        return choose(images, activation_type)

    def within(call: Any, **flags: Any) -> set[ActivationType]:
        computed.clear()
        call(**flags)
        return set(computed)

    other, (images, _) = Inference(tiny_network(seed=4), graph=False), random_batch(0, side=64, labels=3)
    before = np.array(other(images, np.zeros((0, 6), np.float32))[0])
    runner = TrainingRunner(tmp_path)
    monkeypatch.setattr(precision, "multiplies_bfloat16_faster", lambda: True)
    monkeypatch.setattr(Layout, "fastest_for", record)
    run = runner.train(amp=True, kernels="auto")
    assert "activations bfloat16" in run.log
    assert BFLOAT16 in computed
    np.testing.assert_array_equal(other(images, np.zeros((0, 6), np.float32))[0], before)

    weights, common = run.folder / "weights" / "best.safetensors", {"project": str(tmp_path / "later"), "graph": False}
    measured = {"data": str(runner.data), "imgsz": 64, "noplots": True}
    assert within(validate, weights=weights, **measured, **common) == {FLOAT32}
    assert within(predict, weights=weights, source=runner.data.parent / "images" / "val", imgsz=64, **common) == {
        FLOAT32
    }
    # The export compares its file with our own forward pass, and rejects a difference that bfloat16 would make.
    assert within(export, weights=weights, include="onnx", output=tmp_path / "w.onnx", imgsz=64, graph=False) == {
        FLOAT32
    }

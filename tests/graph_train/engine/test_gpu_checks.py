"""GPUs that cannot be used are rejected by every command, before data are read or anything is compiled."""

import json
from pathlib import Path
from typing import Any

import pytest

import graph_train
from graph_train.engine import precision
from graph_train.engine.precision import check_gpu
from graph_train.ranks.launcher import RankInfo
from graph_train.settings.train_options import options_from_flags
from graph_train.training.setup import run_device
from kernels.runtime import flow
from models.weights import save_weights
from tests.graph_train.tiny import tiny_network
from tests.graph_train.training_runner import CLASSES, TrainingRunner
from tests.python_process import run_python


def pretend(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    """Fake a GPU for all decisions."""
    monkeypatch.setattr(flow.cuda, "is_available", lambda: True)
    monkeypatch.setattr(flow.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(flow.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(flow.cuda, "get_device_name", lambda _: "pretended")


_COMMANDS = """
import json, sys
import graph_train
from kernels.runtime import flow
flow.cuda.is_available, flow.cuda.device_count = lambda: True, lambda: 1
flow.cuda.get_device_capability, flow.cuda.get_device_name = lambda _: (9, 0), lambda _: "pretended"
messages = {}
for command, flags in json.loads(sys.argv[1]).items():
    try:
        getattr(graph_train, command)(**flags, device="0", kernels="off")
    except ValueError as error:
        messages[command] = str(error)
print(json.dumps(messages))
"""


def test_every_command_rejects_gpu_without_kernels(tmp_path: Path) -> None:
    runner, weights = TrainingRunner(tmp_path), tmp_path / "tiny.safetensors"
    save_weights(tiny_network(), weights)
    given, images = {"weights": str(weights), "project": str(tmp_path / "runs")}, runner.data.parent / "images" / "val"
    commands = {
        "train": {"data": str(runner.data), "cfg": str(runner.cfg), "project": str(tmp_path / "runs")},
        "validate": {**given, "data": str(runner.data)},
        "predict": {**given, "source": str(images)},
        "export": {"weights": str(weights), "include": "onnx"},
        "load": {"weights": str(weights)},
    }
    ran = run_python("-c", _COMMANDS, json.dumps(commands))
    assert ran.returncode == 0, ran.stderr
    wanted = "GPU 0: pretended: compute capability 9.0 needs the kernel plugin, because OneFlow 0.9.0 supports up to"
    messages = json.loads(ran.stdout)
    assert messages.keys() == commands.keys()
    assert {message.partition(" 8.9, but")[0] for message in messages.values()} == {wanted}
    assert not (tmp_path / "runs").exists()


def test_every_command_names_its_device(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    runner, weights = TrainingRunner(tmp_path), tmp_path / "tiny.safetensors"
    network = tiny_network()
    network.names = list(CLASSES)
    save_weights(network, weights)
    images, project = runner.data.parent / "images" / "val", tmp_path / "runs"
    common: dict[str, Any] = {"weights": weights, "device": "cpu", "imgsz": 64, "graph": False}
    for call in (
        lambda: graph_train.validate(**common, data=runner.data, project=project, noplots=True),
        lambda: graph_train.predict(**common, source=images / "0.jpg", project=project),
        lambda: graph_train.export(weights=weights, include="safetensors", device="cpu"),
        lambda: graph_train.load(weights, device="cpu"),
    ):
        caplog.clear()
        with caplog.at_level("INFO", logger="graph_train"):
            call()
        assert sum(message.startswith("CPU; activations float32. Kernels: ") for message in caplog.messages) == 1


def test_unsupported_gpu_is_rejected_before_data_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, (5, 2))
    monkeypatch.setattr("graph_train.training.assembly.load_data", lambda _: pytest.fail("read the data"))
    with pytest.raises(ValueError, match=r"compute capability 5\.2 is not supported"):
        TrainingRunner(tmp_path).assemble(device="0")


def test_missing_compiler_is_noticed_before_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, (9, 0))
    monkeypatch.setattr(precision, "missing_for", lambda _: "no C++ compiler")
    with pytest.raises(ValueError, match=r"it is not loaded \(no C\+\+ compiler\); make it available"):
        check_gpu("cuda:0", "auto")


@pytest.mark.parametrize("capability", [(8, 9), (9, 0)])
def test_several_hopper_gpus_need_newer_nccl(capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, capability)
    monkeypatch.setattr(precision, "missing_for", lambda _: "")
    monkeypatch.setattr(precision, "driver_problem", lambda: "")
    options = options_from_flags(data="shapes", cfg="yolov5n.yaml", device="", kernels="auto")
    several = RankInfo(0, 2, 0)
    for installed in (True, False):
        monkeypatch.setattr(precision, "has_newer_nccl", lambda installed=installed: installed)
        assert run_device(options, RankInfo()) == "cuda:0"
        if installed or capability == (8, 9):
            assert run_device(options, several) == "cuda:0"
            continue
        with pytest.raises(ValueError, match=r"GPU 0: pretended: several processes need.*uv sync.*--extra nccl"):
            run_device(options, several)


def test_old_driver_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, (8, 6))
    monkeypatch.setattr(precision, "driver_problem", lambda: "NVIDIA's driver supports CUDA 11.4, but 12.0 is needed")
    monkeypatch.setattr(precision, "emulates_cuda", lambda: False)
    with pytest.raises(ValueError, match=r"GPU 0: pretended: NVIDIA's driver supports CUDA 11\.4"):
        check_gpu("cuda:0", "auto")
    check_gpu("cpu", "auto")

"""`.pt` files for YOLOv5: read back, compared with a file of YOLOv5, and loaded by YOLOv5 itself."""

import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import graph_train
from graph_train.cli.export import main
from graph_train.detection.detector import rebuild_network
from graph_train.exporting.pytorch.checkpoint import export_pytorch
from kernels.runtime import flow
from models.catalogue import ACTIVATIONS
from models.network import DetectionModel
from models.pickle_reader import Instance
from models.pytorch_file import PyTorchFile
from models.spec import load_model_spec
from models.weights import load_weights, save_weights
from tests.docs.commands import ROOT
from tests.graph_train.tiny import TINY
from tests.models.every_block import EVERY_BLOCK

NEWER_HOOKS = {
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks_with_kwargs",
    "_backward_pre_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
}
"""Attributes that `torch.nn.Module.__setstate__` adds in newer versions."""
TRAINING_ATTRIBUTES = {"yaml_file", "class_weights", "hyp"}
CACHED = {"grid", "anchor_grid", "stride"}
"""Tensors that are not compared: the first two are filled by a forward pass, strides are compared separately."""


def randomized_network(config: Any, **more: Any) -> DetectionModel:
    """Return an untrained network in which no array has default values."""
    network = DetectionModel(load_model_spec(config, **more), seed=3)
    random = np.random.default_rng(4)
    for name, value in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            value.copy_(value + 17)
        elif name.endswith(("running_mean", "bn.bias", "bn.weight")):
            value.copy_(value + float(random.uniform(-0.2, 0.2)))
        elif name.endswith("running_var"):
            value.copy_(value * float(random.uniform(0.2, 0.6)))
    network.names = [f"class {number}" for number in range(network.num_classes)]
    return network.eval()


def tree(path: Path) -> dict[str, Instance]:
    """Return all modules of the file's network by dotted name."""
    file = PyTorchFile(path)
    file.close()

    def walk(module: Instance, name: str) -> Iterator[tuple[str, Instance]]:
        yield name, module
        for own, child in module.state["_modules"].items():
            yield from walk(child, f"{name}.{own}" if name else own)

    return dict(walk(file.content["ema"] or file.content["model"], ""))


@pytest.mark.parametrize("config", [TINY, EVERY_BLOCK, "yolov5n6.yaml"], ids=["tiny", "every block", "n6"])
def test_pt_file_round_trip(config: Any, tmp_path: Path) -> None:
    network = randomized_network(config)
    export_pytorch(network, tmp_path / "network.pt", half=False)
    read = load_weights(tmp_path / "network.pt")
    assert read.arrays.keys() == network.state_dict().keys()
    for name, value in network.state_dict().items():
        np.testing.assert_array_equal(read.arrays[name], value.numpy())
    assert read.stride == network.stride
    assert read.class_names == tuple(network.names)
    rebuilt = load_model_spec(read.config or {})
    assert [replace(layer, where="") for layer in rebuilt.layers] == [
        replace(layer, where="") for layer in network.spec.layers
    ]


def test_modules_match_yolov5_file(goldens: Path, tmp_path: Path) -> None:
    """Module tree and classes are equal, and so is every attribute present in both files."""
    output = tmp_path / "again.pt"
    assert main(["--weights", str(goldens / "yolov5n_nc3.pt"), "--include", "pt", "--output", str(output)]) == 0
    theirs, ours = tree(goldens / "yolov5n_nc3.pt"), tree(output)
    assert list(theirs) == list(ours)
    for name, module in theirs.items():
        expected, state = module.state, ours[name].state
        assert str(module.kind) == str(ours[name].kind)
        assert expected.keys() - state.keys() <= NEWER_HOOKS | TRAINING_ATTRIBUTES, name
        assert state.keys() <= expected.keys(), name
        for key in state.keys() - CACHED:
            mapping = isinstance(state[key], dict) and key.startswith("_")
            assert (list(state[key]) == list(expected[key])) if mapping else (state[key] == expected[key]), (name, key)


EXPECTED: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("", "models.yolo.DetectionModel", {"nc": 2, "names": {0: "class 0", 1: "class 1"}, "save": [4, 16, 17]}),
    ("model.0", "models.common.Focus", {"i": 0, "f": -1, "type": "models.common.Focus", "np": 880}),
    ("model.2", "torch.nn.modules.container.Sequential", {"i": 2, "type": "models.common.Bottleneck"}),
    ("model.2.0", "models.common.Bottleneck", {"add": True}),
    (
        "model.2.0.cv1.conv",
        "torch.nn.modules.conv.Conv2d",
        {"in_channels": 16, "kernel_size": (1, 1), "transposed": False, "padding_mode": "zeros"},
    ),
    (
        "model.2.0.cv1.bn",
        "torch.nn.modules.batchnorm.BatchNorm2d",
        {"num_features": 8, "eps": 0.001, "momentum": 0.03, "affine": True, "track_running_stats": True},
    ),
    ("model.2.0.cv1.act", "torch.nn.modules.activation.LeakyReLU", {"negative_slope": 0.1, "inplace": False}),
    ("model.3", "torch.nn.modules.padding.ZeroPad2d", {"padding": (0, 1, 0, 1), "value": 0.0}),
    ("model.4", "torch.nn.modules.pooling.MaxPool2d", {"kernel_size": 2, "stride": 1, "padding": 0}),
    ("model.5.conv.1", "models.common.DWConv", {}),
    ("model.6", "models.common.BottleneckCSP", {}),
    ("model.7.m.0", "models.common.CrossConv", {"add": True}),
    ("model.10.m", "models.common.TransformerBlock", {"conv": None, "c2": 8}),
    (
        "model.10.m.tr.0.ma",
        "torch.nn.modules.activation.MultiheadAttention",
        {"embed_dim": 8, "num_heads": 4, "head_dim": 2, "dropout": 0.0, "_qkv_same_embed_dim": True, "bias_k": None},
    ),
    ("model.14", "torch.nn.modules.upsampling.Upsample", {"scale_factor": 2.0, "mode": "nearest", "size": None}),
    ("model.15", "models.common.Concat", {"d": 1, "f": [-1, 4]}),
    ("model.17.act", "torch.nn.modules.activation.Hardswish", {"inplace": False}),
    ("model.18", "models.yolo.Detect", {"nc": 2, "no": 7, "nl": 2, "na": 2, "inplace": True, "f": [16, 17]}),
)


def test_every_block_has_yolov5_class_and_attributes(tmp_path: Path) -> None:
    export_pytorch(randomized_network(EVERY_BLOCK), tmp_path / "network.pt", half=False)
    found = tree(tmp_path / "network.pt")
    for name, kind, attributes in EXPECTED:
        assert str(found[name].kind) == kind
        assert {key: found[name].state[key] for key in attributes} == attributes, name
    for name, module in found.items():
        assert module.state["training"] is False
        if str(module.kind).endswith(".Conv2d"):
            assert list(module.state["_parameters"]) == ["weight", "bias"], name


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_is_exportable(name: str, tmp_path: Path) -> None:
    arguments = {"LeakyReLU": "0.1", "ELU": "0.7"}.get(name, "")
    export_pytorch(
        randomized_network({**TINY, "activation": f"nn.{name}({arguments})"}), tmp_path / "network.pt", half=False
    )
    package = "linear" if name == "Identity" else "activation"
    assert str(tree(tmp_path / "network.pt")["model.0.act"].kind) == f"torch.nn.modules.{package}.{name}"


def test_half_precision_file_is_half_size_and_rounded(tmp_path: Path) -> None:
    network = randomized_network("yolov5n.yaml")
    save_weights(network, tmp_path / "n.safetensors")
    sizes = []
    for flags in ({}, {"half": True}):
        result = graph_train.export(weights=tmp_path / "n.safetensors", include="pt", **flags)
        assert result.files[0].path == tmp_path / "n.export.pt"
        sizes.append(result.files[0].path.stat().st_size)
    assert sizes[1] < 0.53 * sizes[0]
    read = load_weights(tmp_path / "n.export.pt")
    assert set(read.stored_dtypes.values()) == {"float16", "int64"}
    for name, value in network.state_dict().items():
        stored = value.numpy().astype(np.float16 if value.dtype == flow.float32 else np.int64)
        np.testing.assert_array_equal(read.arrays[name], stored)


def test_weight_beyond_float16_is_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = randomized_network(TINY)
    with flow.no_grad():
        network.head.m[0].bias.copy_(flow.full_like(network.head.m[0].bias, 1e6))
    save_weights(network, tmp_path / "tiny.safetensors")
    assert main(["--weights", str(tmp_path / "tiny.safetensors"), "--include", "pt", "--half"]) == 2
    assert "exceeds the range of float16" in capsys.readouterr().err
    assert not (tmp_path / "tiny.export.pt").exists()


# --- YOLOv5 itself ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def yolov5() -> tuple[Path, str]:
    """Return a checkout of YOLOv5 v7.0 and a Python interpreter with its requirements."""
    checkout = os.environ.get("GRAPH_TRAIN_YOLOV5")
    if not checkout:
        pytest.skip("GRAPH_TRAIN_YOLOV5 names no checkout of YOLOv5 v7.0; see CONTRIBUTING.md")
    return Path(checkout), os.environ.get("GRAPH_TRAIN_YOLOV5_PYTHON", "python3")


@pytest.mark.slow
@pytest.mark.parametrize("half", [False, True], ids=["float", "half"])
@pytest.mark.parametrize(
    "config", ["yolov5n.yaml", "yolov5s.yaml", "yolov5n6.yaml", EVERY_BLOCK], ids=["n", "s", "n6", "every block"]
)
def test_yolov5_loads_file_and_predictions_match(
    config: Any, half: bool, yolov5: tuple[Path, str], tmp_path: Path
) -> None:
    export_pytorch(randomized_network(config), tmp_path / "network.pt", half=half)
    images = np.random.default_rng(5).random((2, 3, 128, 192), dtype=np.float32)
    np.savez(tmp_path / "images.npz", images=images)
    # PyTorch 2.6 and newer rejects pickled classes by default; YOLOv5 v7.0 does not account for it.
    environment = {**os.environ, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
    job = Path(__file__).with_name("yolov5_job.py")
    files = [str(tmp_path / name) for name in ("network.pt", "images.npz", "found.npz")]
    ran = subprocess.run(
        [yolov5[1], str(job), *files], cwd=yolov5[0], env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    found = np.load(tmp_path / "found.npz")
    # For a float16 file, our network predicts with the same rounded weights.
    network = rebuild_network(tmp_path / "network.pt").eval()
    with flow.no_grad():
        expected = network.decode(network(flow.from_numpy(images))).numpy()
    for name in ("plain", "fused"):
        np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=2e-3)
    assert list(found["keys"]) == list(network.state_dict())
    assert list(found["names"]) == network.names
    assert found["stride"].tolist() == list(network.stride)


@pytest.mark.slow
def test_documented_program_loads_into_yolov5(yolov5: tuple[Path, str], tmp_path: Path) -> None:
    """Run the program of the user guide, which loads with strict=True."""
    code = re.findall(r"^```py\n(.*?)^```", (ROOT / "docs/guide/from-yolov5.md").read_text(), re.MULTILINE | re.DOTALL)
    network = randomized_network("yolov5n.yaml", num_classes=3)
    weights = tmp_path / "best.export.safetensors"
    save_weights(network, weights)
    assert len(code) == 1
    assert "strict=True" in code[0]
    program = code[0].replace('"best.export.safetensors"', repr(str(weights)))
    check = """
import numpy, torch
with torch.no_grad():
    numpy.save({found!r}, network(torch.from_numpy(numpy.load({images!r})))[0].numpy())
"""
    images = np.random.default_rng(5).random((1, 3, 96, 128), dtype=np.float32)
    np.save(tmp_path / "images.npy", images)
    program += check.format(found=str(tmp_path / "found.npy"), images=str(tmp_path / "images.npy"))
    ran = subprocess.run([yolov5[1], "-c", program], cwd=yolov5[0], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    with flow.no_grad():
        expected = network.decode(network(flow.from_numpy(images))).numpy()
    np.testing.assert_allclose(np.load(tmp_path / "found.npy"), expected, rtol=1e-4, atol=2e-3)

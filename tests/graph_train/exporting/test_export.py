from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file

import graph_train
from graph_train.cli.export import main
from graph_train.detection.nms import NmsSettings
from graph_train.exporting import export as exporting
from graph_train.exporting.onnx.check import TOLERANCE, OnnxSession, check_onnx, largest_difference
from graph_train.exporting.onnx.network import OnnxSettings, build_onnx
from graph_train.settings.export_options import ExportOptions
from graph_train.settings.flag_table import options_of
from kernels.runtime import flow
from models.catalogue import ACTIVATIONS
from models.network import DetectionModel
from models.spec import load_model_spec, shipped_configs
from models.weights import load_weights, save_weights
from tests.graph_train.tiny import TINY

SMALL_MAP = [[-1, 1, "Conv", [8, 3, 2]], [-1, 1, "Conv", [16, 3, 2]]]
ANCHORS = [[10, 13, 16, 30, 33, 23]]


def settings(**changes: Any) -> OnnxSettings:
    given = {"batch_size": 1, "image_hw": (64, 96), "dynamic": False, "opset": 17, "suppression": None}
    return OnnxSettings(**{**given, **changes})


def network_of(config: Any, *, classes: int = 3, lively: bool = True) -> DetectionModel:
    """Return an untrained fused network; `lively` sets BatchNorm statistics that make it react to the image."""
    network = DetectionModel(load_model_spec(config, num_classes=classes), seed=1)
    random = np.random.default_rng(2)
    for name, value in network.state_dict().items() if lively else ():
        if name.endswith(("running_mean", "bn.bias")):
            value.copy_(value + float(random.uniform(-0.2, 0.2)))
        elif name.endswith("running_var"):
            value.copy_(value * float(random.uniform(0.2, 0.6)))
    return network.eval().fuse()


def one_block(*row: Any, **more: Any) -> Mapping[str, Any]:
    """Return a network whose third layer is the block."""
    return {
        "nc": 3,
        "depth_multiple": 1.0,
        "width_multiple": 1.0,
        "anchors": ANCHORS,
        "backbone": SMALL_MAP,
        "head": [list(row), [[-1], 1, "Detect", ["nc", "anchors"]]],
        **more,
    }


def test_onnx_has_reference_names_and_values(goldens: Path, tmp_path: Path) -> None:
    output = tmp_path / "weights.safetensors"
    assert main(["--weights", str(goldens / "yolov5n_nc3.pt"), "--output", str(output)]) == 0
    arrays = load_file(output)
    expected = np.load(goldens / "checkpoint_expected.npz")
    wanted = {name[len("ema/") :]: expected[name] for name in expected.files if name.startswith("ema/")}
    wanted |= {str(name): expected[f"model/{name}"] for name in expected["ema_same_as_model"]}
    assert arrays.keys() == wanted.keys()
    for name, value in wanted.items():
        assert arrays[name].shape == value.shape
        np.testing.assert_array_equal(arrays[name], value)
    assert load_weights(output).config is not None


def test_onnx_predictions_match_yolov5(goldens: Path, tmp_path: Path) -> None:
    """Compare onnxruntime with a recorded forward pass of YOLOv5."""
    expected = np.load(goldens / "checkpoint_expected.npz")
    height, width = expected["image"].shape[2:]
    output = tmp_path / "reference.onnx"
    result = graph_train.export(
        weights=goldens / "yolov5n_nc3.pt", include="onnx", imgsz=(height, width), output=output, device="cpu"
    )
    assert result.files[0].path == output
    assert result.files[0].difference is not None
    assert result.files[0].difference <= 1e-4
    session = OnnxSession(str(output))
    found = session.run_scaled(np.asarray(expected["image"], np.float32))["output0"]
    assert largest_difference(found, expected["ema_eval_decoded"]) < 1e-4


@pytest.mark.parametrize(
    "row",
    [
        [-1, 2, "C3", [16]],
        [-1, 2, "C3", [16, False, 2]],
        [-1, 1, "C3x", [16]],
        [-1, 2, "C3TR", [16]],
        [-1, 1, "C3Ghost", [16]],
        [-1, 1, "C3SPP", [16]],
        [-1, 1, "SPP", [16, [3, 5]]],
        [-1, 1, "SPPF", [16, 3]],
        [-1, 2, "Bottleneck", [16]],
        [-1, 2, "BottleneckCSP", [16]],
        [-1, 1, "GhostConv", [16, 3, 2]],
        [-1, 1, "GhostBottleneck", [16, 3, 2]],
        [-1, 1, "GhostBottleneck", [16]],
        [-1, 1, "DWConv", [16, 3, 2]],
        [-1, 1, "Conv", [16, 3, 1, 2, 4, 2]],
        [-1, 1, "Focus", [16, 3]],
        [-1, 1, "nn.Upsample", ["None", 2, "nearest"]],
        [-1, 1, "nn.MaxPool2d", [3, 2, 1]],
    ],
    ids=lambda row: f"{row[2]}{row[3]}",
)
def test_every_block_matches_onnxruntime(row: list[Any]) -> None:
    network = network_of(one_block(*row))
    for dynamic, opset in ((False, 17), (True, 12)):
        chosen = settings(dynamic=dynamic, opset=opset)
        assert check_onnx(build_onnx(network, chosen), network, chosen, graph=False) < 1e-5


def test_zero_pad_before_pool_matches_onnxruntime() -> None:
    """yolov3-tiny has such layers; if onnxruntime merged the padding into the pool, negative values would change."""
    pads = [[-1, 1, "nn.ZeroPad2d", [[0, 1, 0, 1]]], [-1, 1, "nn.MaxPool2d", [2, 1, 0]]]
    config = {**one_block(*pads[0]), "backbone": [*SMALL_MAP, pads[0]]}
    config["head"] = [pads[1], [[-1], 1, "Detect", ["nc", "anchors"]]]
    network = network_of(config)
    assert check_onnx(build_onnx(network, settings()), network, settings(), graph=False) < 1e-5


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_matches_onnxruntime(name: str) -> None:
    arguments = {"LeakyReLU": "0.1", "ELU": "0.7"}.get(name, "")
    network = network_of(one_block(-1, 1, "Conv", [16, 3, 1], activation=f"nn.{name}({arguments})"))
    assert check_onnx(build_onnx(network, settings()), network, settings(), graph=False) < 1e-5


@pytest.mark.parametrize("opset", range(12, 23))
def test_nms_in_every_opset(opset: int) -> None:
    network = network_of(TINY)
    chosen = settings(opset=opset, dynamic=opset % 2 == 0, suppression=NmsSettings(max_det=40))
    assert check_onnx(build_onnx(network, chosen), network, chosen, graph=False) < 1e-5


def test_wrong_weight_is_detected() -> None:
    network = network_of(TINY)
    model = build_onnx(network, settings())
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "model.3.cv1.conv.weight")
    values = onnx.numpy_helper.to_array(weight).copy()
    values.flat[0] += 0.5
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    with pytest.raises(RuntimeError, match="results differ from the network"):
        check_onnx(model, network, settings(), graph=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", shipped_configs())
def test_every_shipped_network_exports(name: str) -> None:
    network = network_of(name, lively=False)
    side = 2 * network.spec.coarsest_stride
    chosen = settings(image_hw=(side, side), dynamic=True, suppression=NmsSettings())
    assert check_onnx(build_onnx(network, chosen), network, chosen, graph=False) < 1e-4


def test_metadata_has_yolov5_class_names_and_stride(tmp_path: Path) -> None:
    network = DetectionModel(load_model_spec(TINY), seed=0)
    network.names = ["cat", "dog's", "bird"]
    weights = tmp_path / "tiny.safetensors"
    save_weights(network, weights)
    arguments = ["--weights", str(weights), "--include", "onnx", "safetensors", "--imgsz", "50", "70", "--batch-size"]
    assert main([*arguments, "2", "--device", "cpu", "--eager"]) == 0
    model = onnx.load(tmp_path / "tiny.onnx")
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert facts["stride"] == "16"
    assert facts["names"] == str({0: "cat", 1: "dog's", 2: "bird"})
    assert (tmp_path / "tiny.export.safetensors").exists()
    shape = [side.dim_value for side in model.graph.input[0].type.tensor_type.shape.dim]
    assert shape == [2, 3, 64, 80]
    assert model.opset_import[0].version == 17
    assert {"model.0.conv.weight", "model.9.level1.bias"} <= {tensor.name for tensor in model.graph.initializer}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "--weights: give t"),
        ({"include": "engine"}, "--include engine: not supported; export onnx"),
        ({"include": "onyx"}, "--include 'onyx': must be one of safetensors, pt, onnx"),
        ({"include": ("onnx", "safetensors"), "output": "x"}, "--output: cannot be used with several formats"),
        ({"weights": ("a.pt", "b.pt"), "output": "x"}, "--output: cannot be used with several weights; remove it"),
        ({"dynamic": True}, "--dynamic: applies to ONNX only"),
        ({"include": "onnx", "conf_thres": 0.5}, "--conf-thres: applies to NMS only; add --nms"),
        ({"include": "onnx", "imgsz": (1, 2, 3)}, "--imgsz"),
        ({"include": "onnx", "imgsz": ()}, "--imgsz : give one number"),
        ({"include": "onnx", "imgsz": 16}, "--imgsz 16: must be at least 32"),
        ({"graph": False}, "--eager: applies to ONNX only"),
        ({"include": "onnx", "half": True}, "--half: applies to .pt files only; add --include pt"),
        ({"int8": True}, "--int8: applies to an unsupported export format"),
        ({"opset": "17"}, "opset='17': must be an integer"),
    ],
)
def test_inapplicable_settings_are_rejected(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        options_of(ExportOptions, {"weights": "a.pt", **given} if given else {})


def test_user_errors_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = DetectionModel(load_model_spec(TINY), seed=0)
    save_weights(network, tmp_path / "tiny.safetensors")
    (tmp_path / "x").mkdir()
    for arguments, word in (
        (["--weights", str(tmp_path / "none.pt")], "no such weight file"),
        (["--weights", str(tmp_path / "tiny.safetensors"), "--include", "onnx", "--opset", "9"], "--opset 9"),
        (["--weights", str(tmp_path / "tiny.safetensors"), "--data", "coco128.yaml"], "--data"),
        (["--weights", str(tmp_path / "tiny.safetensors"), "--output", str(tmp_path)], "is a folder; give the name"),
        (
            ["--weights", str(tmp_path / "tiny.safetensors"), "--output", str(tmp_path / "no/x.onnx")],
            "not found; create it first",
        ),
        (
            ["--weights", str(tmp_path / "tiny.safetensors"), "--output", str(tmp_path / "x/../tiny.safetensors")],
            "would overwrite --weights",
        ),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("graph-export: ")
        assert word in error


def test_weights_without_a_name_are_exported_beside_their_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = DetectionModel(load_model_spec(TINY), seed=0)
    flow.save(network.state_dict(), str(tmp_path / "folder"))
    monkeypatch.chdir(tmp_path / "folder")
    monkeypatch.setattr(exporting, "rebuild_network", lambda *_, **__: network)
    assert graph_train.export(weights=".", include="pt", device="cpu").files[0].path == tmp_path / "folder.export.pt"
    with pytest.raises(ValueError, match=r"^--weights /: not a weight file$"):
        graph_train.export(weights="/", include="pt", device="cpu")


def test_looping_link_in_place_of_weights_is_reported(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(FileNotFoundError, match=r"/loop: no such weight file"):
        graph_train.export(weights=tmp_path / "loop", output=tmp_path / "a.pt", include="pt", device="cpu")


def test_read_only_folder_of_weights_is_reported_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "damaged.safetensors"
    weights.write_bytes(b"x")
    monkeypatch.setattr("graph_train.exporting.export.not_writable", lambda _: "Read-only file system")
    assert main(["--weights", str(weights)]) == 2
    message = f"{weights}: its folder is not writable (Read-only file system); give a file elsewhere with --output"
    assert message in capsys.readouterr().err


def test_several_weights_are_exported_one_by_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, name in enumerate("ab"):
        save_weights(DetectionModel(load_model_spec(TINY), seed=seed), tmp_path / f"{name}.safetensors")
    weights = [str(tmp_path / f"{name}.safetensors") for name in "ab"]
    assert main(["--weights", *weights, "--include", "pt", "safetensors"]) == 0
    for name in "ab":
        source = load_weights(tmp_path / f"{name}.safetensors")
        for ending in ("pt", "safetensors"):
            exported = load_weights(tmp_path / f"{name}.export.{ending}")
            assert all(np.array_equal(exported.arrays[key], value) for key, value in source.arrays.items())
    (tmp_path / "a.pt").write_bytes((tmp_path / "a.export.pt").read_bytes())
    assert main(["--weights", weights[0], str(tmp_path / "a.pt")]) == 2
    assert "a.pt: both would be exported to " in capsys.readouterr().err


def test_non_finite_values_never_agree() -> None:
    good = np.ones((1, 2), np.float32)
    for bad in (np.nan, np.inf):
        wrong = np.array([[1, bad]], np.float32)
        assert largest_difference(good, wrong) == largest_difference(wrong, good) == np.inf
    assert largest_difference(good, good) == 0


def test_differences_are_relative_to_column_maximum() -> None:
    """Rounding scales with the range of a column (640 px), not with each value; half a pixel is an error."""
    expected = np.array([[[0.5, 0.1], [640.0, 0.9]]], np.float32)
    assert largest_difference(expected + np.array([6e-4, 0.0], np.float32), expected) < TOLERANCE / 10
    for wrong in ([0.5, 0.0], [0.0, 0.001]):
        assert largest_difference(expected + np.array(wrong, np.float32), expected) > TOLERANCE

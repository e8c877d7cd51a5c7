"""TensorRT's requirements on ONNX files: validity, supported operators, documented inputs."""

from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest

from graph_train.detection.nms import NmsSettings
from graph_train.exporting.onnx.network import COUNTS, DETECTIONS, INPUT, PREDICTIONS, build_onnx
from models.catalogue import ACTIVATIONS
from models.network import DetectionModel
from models.spec import load_model_spec
from tests.docs.commands import ROOT
from tests.graph_train.exporting.test_export import network_of, one_block, settings
from tests.graph_train.tiny import TINY

_NAMES = """
    Add And BatchNormalization Cast Clip Concat Constant ConstantOfShape Conv Div Elu Equal Erf Exp
    Expand Flatten Gather GatherElements GatherND Gelu Gemm Greater GreaterOrEqual HardSigmoid
    HardSwish Identity LeakyRelu Less LessOrEqual Log MatMul Max MaxPool Min Mish Mul Neg
    NonMaxSuppression NonZero Not Or PRelu Pad Pow Range Reciprocal ReduceMax ReduceMean ReduceMin
    ReduceSum Relu Reshape Resize ScatterElements ScatterND Selu Shape Sigmoid Slice Softmax
    Softplus Split Sqrt Squeeze Sub Sum Tanh Tile TopK Transpose Unsqueeze Where
"""
SUPPORTED = frozenset(_NAMES.split())
"""Operators supported by TensorRT 10.1's parser (docs/operators.md of onnx-tensorrt at 10.1-GA) that an exporter of
detectors may use."""
OPSETS = range(9, 21)
MAX_TOP_K = 3840
BLOCKS = [
    ["C3", [16]],
    ["C3x", [16]],
    ["C3TR", [16]],
    ["C3Ghost", [16]],
    ["SPP", [16, [3, 5]]],
    ["SPPF", [16, 3]],
    ["BottleneckCSP", [16]],
    ["GhostConv", [16, 3, 2]],
    ["DWConv", [16, 3, 2]],
    ["Focus", [16, 3]],
    ["nn.Upsample", ["None", 2, "nearest"]],
    ["nn.MaxPool2d", [3, 2, 1]],
]


def rejected(model: onnx.ModelProto) -> Iterator[str]:
    """Return the parts that TensorRT would reject."""
    onnx.checker.check_model(model, full_check=True)
    if model.opset_import[0].version not in OPSETS:
        yield f"operator set {model.opset_import[0].version}"
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        chosen = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        if node.op_type not in SUPPORTED:
            yield node.op_type
        elif node.op_type == "TopK":
            count = constants.get(node.input[1])
            # In a dynamic file it is computed from the same limit.
            many = count is not None and onnx.numpy_helper.to_array(count).max() >= MAX_TOP_K
            if many or not chosen.get("sorted", 1):
                yield "TopK"
        elif node.op_type == "Resize":
            how = chosen.get("mode", b"nearest"), chosen["coordinate_transformation_mode"], chosen["nearest_mode"]
            if how != (b"nearest", b"asymmetric", b"floor"):
                yield f"Resize {how}"
        elif node.op_type == "ScatterND" and chosen.get("reduction", b"none") != b"none":
            yield "ScatterND reduction"
        elif node.op_type == "MaxPool" and (len(node.output) > 1 or len(chosen["kernel_shape"]) != 2):
            yield "MaxPool indices"
        elif node.op_type == "Conv" and node.input[1] not in constants:
            yield "Conv weights"
        elif node.op_type == "Slice" and len(node.input) > 3 and node.input[3] not in constants:
            yield "Slice axes"


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("suppressed", [False, True])
def test_exported_files_are_accepted(dynamic: bool, suppressed: bool) -> None:
    network = DetectionModel(load_model_spec("yolov5n.yaml", num_classes=3), seed=0).eval().fuse()
    chosen = settings(
        image_hw=(64, 64), batch_size=2, dynamic=dynamic, suppression=NmsSettings(max_det=300) if suppressed else None
    )
    model = build_onnx(network, chosen)
    assert list(rejected(model)) == []
    (images,) = model.graph.input
    sides = [side.dim_param or side.dim_value for side in images.type.tensor_type.shape.dim]
    assert images.name == INPUT == "images"
    assert sides == (["batch", 3, "height", "width"] if dynamic else [2, 3, 64, 64])
    assert images.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert [output.name for output in model.graph.output] == ([COUNTS, DETECTIONS] if suppressed else [PREDICTIONS])
    if not dynamic:
        shapes = [[side.dim_value for side in out.type.tensor_type.shape.dim] for out in model.graph.output]
        boxes = 3 * (8 * 8 + 4 * 4 + 2 * 2)
        assert shapes == ([[2], [2, min(300, boxes), 6]] if suppressed else [[2, boxes, 8]])


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block[0])
def test_every_block_is_accepted(block: list[object]) -> None:
    network = network_of(one_block(-1, 1, *block))
    for dynamic in (False, True):
        assert list(rejected(build_onnx(network, settings(dynamic=dynamic)))) == []


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_is_accepted(name: str) -> None:
    arguments = {"LeakyReLU": "0.1", "ELU": "0.7"}.get(name, "")
    network = network_of(one_block(-1, 1, "Conv", [16, 3, 1], activation=f"nn.{name}({arguments})"))
    assert list(rejected(build_onnx(network, settings()))) == []


def test_unsupported_operators_are_detected() -> None:
    network = network_of(TINY)
    suppression = NmsSettings(max_det=5000)
    large = settings(image_hw=(320, 320), suppression=suppression)
    assert set(rejected(build_onnx(network, large))) == {"TopK"}
    assert set(rejected(build_onnx(network, settings(opset=22)))) == {"operator set 22"}


def test_documented_shapes_match_file() -> None:
    text = (ROOT / "docs/guide/exporting.md").read_text()
    commands = [line.split() for line in text.splitlines() if line.startswith("trtexec ")]
    assert len(commands) == 2
    for words in commands:
        flags = dict(word.lstrip("-").split("=") for word in words[1:] if "=" in word)
        # The file is written by a command above, with shapes if and only if it is dynamic.
        written = next(line for line in text.splitlines() if line.endswith(f"--output {flags['onnx']}"))
        shapes = [flags[key] for key in ("minShapes", "optShapes", "maxShapes") if key in flags]
        assert len(shapes) == (3 if "--dynamic" in written else 0)
        assert all(shape.startswith("images:") and shape.endswith("x3x640x640") for shape in shapes)
        assert Path(flags["saveEngine"]).suffix == ".engine"

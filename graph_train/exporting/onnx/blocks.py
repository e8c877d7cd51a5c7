"""Conversion of the blocks of a network to ONNX nodes."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from graph_train.exporting.onnx.writer import GraphWriter
from kernels.runtime import flow
from models import blocks
from models.attention import TransformerBlock
from models.batch_norm import BatchNorm2d
from models.layers import Conv2d, Linear, MaxPool2d, Module, Upsample, ZeroPad2d

nn: Any = flow.nn

_NEARLY_ZERO = 1e-30
"""Padding value instead of 0: onnxruntime 1.23 would merge zero padding into a following MaxPool, which pads with minus
infinity and so would keep negative values at the edge."""


def write_module(writer: GraphWriter, module: Module, source: Any, name: str) -> str:
    """Add the nodes of a module and its submodules.

    Args:
        writer: the graph.
        module: the module, in evaluation mode.
        source: name of the input tensor, or a list of names for a module with several inputs.
        name: name of the module in its parent.
    Returns:
        Name of the output tensor.
    Raises:
        ValueError: the module type is not supported.
    """
    convert = _CONVERTERS.get(type(module))
    if convert is None:
        known = ", ".join(sorted(kind.__name__ for kind in _CONVERTERS))
        raise ValueError(f"{name}: export of {type(module).__name__} to ONNX is not supported; supported are {known}")
    with writer.scope(name):
        return convert(writer, module, source)


def _values(tensor: Any) -> np.ndarray:
    return tensor.numpy()


# --- layers ----------------------------------------------------------------------------------------------------------


def _convolution(writer: GraphWriter, layer: Module, x: str) -> str:
    inputs = [x, writer.constant(_values(layer.weight), "weight")]
    if layer.bias is not None:
        inputs.append(writer.constant(_values(layer.bias), "bias"))
    return writer.add(
        "Conv",
        inputs,
        "out",
        kernel_shape=list(layer.kernel_size),
        strides=list(layer.stride),
        pads=[*layer.padding, *layer.padding],
        dilations=list(layer.dilation),
        group=layer.groups,
    )


def _batch_norm(writer: GraphWriter, layer: Module, x: str) -> str:
    names = ("weight", "bias", "running_mean", "running_var")
    given = [writer.constant(_values(getattr(layer, name)), name) for name in names]
    return writer.add("BatchNormalization", [x, *given], "out", epsilon=layer.eps)


def _linear(writer: GraphWriter, layer: Module, x: str) -> str:
    return _projected(writer, x, _values(layer.weight), None if layer.bias is None else _values(layer.bias))


def _projected(writer: GraphWriter, x: str, weight: np.ndarray, bias: np.ndarray | None) -> str:
    """Add x (…, in) times the transposed weight (out, in), plus bias (out,)."""
    product = writer.add("MatMul", [x, writer.constant(weight.T, "weight")], "product")
    return product if bias is None else writer.add("Add", [product, writer.constant(bias, "bias")], "out")


def _max_pool(writer: GraphWriter, layer: Module, x: str) -> str:
    return writer.add(
        "MaxPool",
        [x],
        "out",
        kernel_shape=list(layer.kernel_size),
        strides=list(layer.stride),
        pads=[*layer.padding, *layer.padding],
    )


def _zero_pad(writer: GraphWriter, layer: Module, x: str) -> str:
    left, right, top, bottom = layer.padding
    pads = writer.integers([0, 0, top, left, 0, 0, bottom, right])
    return writer.add("Pad", [x, pads, writer.constant(_NEARLY_ZERO, "nearly_zero")], "out")


def _sequential(writer: GraphWriter, layers: Module, x: str) -> str:
    for number, layer in enumerate(layers):
        x = write_module(writer, layer, x, str(number))
    return x


def _identity(writer: GraphWriter, layer: Module, x: str) -> str:
    return x


# --- activations -----------------------------------------------------------------------------------------------------


def _gated(operator: str, **attributes: Any) -> Callable[[GraphWriter, Module, str], str]:
    """Return a converter for x times an activation of x."""

    def convert(writer: GraphWriter, layer: Module, x: str) -> str:
        return writer.add("Mul", [x, writer.add(operator, [x], "gate", **attributes)], "out")

    return convert


def _plain(operator: str, **names: str) -> Callable[[GraphWriter, Module, str], str]:
    """Return a converter to a single node; `names` maps node attributes to layer attributes."""

    def convert(writer: GraphWriter, layer: Module, x: str) -> str:
        attributes = {key: float(getattr(layer, name)) for key, name in names.items()}
        return writer.add(operator, [x], "out", **attributes)

    return convert


def _relu6(writer: GraphWriter, layer: Module, x: str) -> str:
    return writer.add("Clip", [x, writer.constant(0.0, "zero"), writer.constant(6.0, "six")], "out")


def _mish(writer: GraphWriter, layer: Module, x: str) -> str:
    gate = writer.add("Tanh", [writer.add("Softplus", [x], "softplus")], "gate")
    return writer.add("Mul", [x, gate], "out")


def _gelu(writer: GraphWriter, layer: Module, x: str) -> str:
    scaled = writer.add("Mul", [x, writer.constant(math.sqrt(0.5), "root_half")], "scaled")
    gate = writer.add("Add", [writer.add("Erf", [scaled], "erf"), writer.constant(1.0, "one")], "gate")
    halved = writer.add("Mul", [x, writer.constant(0.5, "half")], "halved")
    return writer.add("Mul", [halved, gate], "out")


# --- blocks ----------------------------------------------------------------------------------------------------------


def _conv(writer: GraphWriter, block: Module, x: str) -> str:
    x = write_module(writer, block.conv, x, "conv")
    if not block.folded:
        x = write_module(writer, block.bn, x, "bn")
    return write_module(writer, block.act, x, "act")


def _shortcut(writer: GraphWriter, block: Module, x: str) -> str:
    y = write_module(writer, block.cv2, write_module(writer, block.cv1, x, "cv1"), "cv2")
    return writer.add("Add", [x, y], "out") if block.add else y


def _cross_stage(writer: GraphWriter, block: Module, x: str) -> str:
    inner = write_module(writer, block.m, write_module(writer, block.cv1, x, "cv1"), "m")
    both = _joined(writer, [inner, write_module(writer, block.cv2, x, "cv2")])
    return write_module(writer, block.cv3, both, "cv3")


def _cross_stage_with_norm(writer: GraphWriter, block: Module, x: str) -> str:
    inner = write_module(writer, block.m, write_module(writer, block.cv1, x, "cv1"), "m")
    inner = write_module(writer, block.cv3, inner, "cv3")
    both = _joined(writer, [inner, write_module(writer, block.cv2, x, "cv2")])
    both = write_module(writer, block.act, write_module(writer, block.bn, both, "bn"), "act")
    return write_module(writer, block.cv4, both, "cv4")


def _pyramid(writer: GraphWriter, block: Module, x: str) -> str:
    x = write_module(writer, block.cv1, x, "cv1")
    pooled = [write_module(writer, pool, x, f"m.{number}") for number, pool in enumerate(block.m)]
    return write_module(writer, block.cv2, _joined(writer, [x, *pooled]), "cv2")


def _fast_pyramid(writer: GraphWriter, block: Module, x: str) -> str:
    maps = [write_module(writer, block.cv1, x, "cv1")]
    for _ in range(3):
        maps.append(write_module(writer, block.m, maps[-1], "m"))
    return write_module(writer, block.cv2, _joined(writer, maps), "cv2")


def _focus(writer: GraphWriter, block: Module, x: str) -> str:
    end = np.iinfo(np.int64).max
    corners = []
    for column in (0, 1):
        for row in (0, 1):
            rows = writer.part(x, f"rows{row}", axis=2, start=row, end=end, step=2)
            corners.append(writer.part(rows, f"corner{row}{column}", axis=3, start=column, end=end, step=2))
    return write_module(writer, block.conv, _joined(writer, corners), "conv")


def _ghost_conv(writer: GraphWriter, block: Module, x: str) -> str:
    half = write_module(writer, block.cv1, x, "cv1")
    return _joined(writer, [half, write_module(writer, block.cv2, half, "cv2")])


def _ghost_bottleneck(writer: GraphWriter, block: Module, x: str) -> str:
    y = write_module(writer, block.conv, x, "conv")
    return writer.add("Add", [y, write_module(writer, block.shortcut, x, "shortcut")], "out")


def _upsample(writer: GraphWriter, block: Module, x: str) -> str:
    scales = writer.constant([1.0, 1.0, block.scale_factor, block.scale_factor], "scales")
    region = writer.constant(np.zeros(0), "no_region")
    return writer.add(
        "Resize",
        [x, region, scales],
        "out",
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


def _joined(writer: GraphWriter, maps: Sequence[str]) -> str:
    return writer.add("Concat", maps, "joined", axis=1)


def _concat(writer: GraphWriter, block: Module, maps: Sequence[str]) -> str:
    return _joined(writer, maps)


def _transformer(writer: GraphWriter, block: Module, x: str) -> str:
    """Add a transformer block, see `models.attention`; shapes depend on the input at run time."""
    flat = writer.reshaped(x, [0, 0, -1], "flat")
    tokens = writer.add("Transpose", [flat], "tokens", perm=[2, 0, 1])
    tokens = writer.add("Add", [tokens, write_module(writer, block.linear, tokens, "linear")], "placed")
    for number, layer in enumerate(block.tr):
        with writer.scope(f"tr.{number}"):
            tokens = _transformer_layer(writer, layer, tokens)
    channels_last = writer.add("Transpose", [tokens], "channels", perm=[1, 2, 0])
    return writer.add("Reshape", [channels_last, writer.add("Shape", [x], "shape")], "out")


def _transformer_layer(writer: GraphWriter, layer: Module, x: str) -> str:
    q, k, v = (write_module(writer, getattr(layer, name), x, name) for name in "qkv")
    with writer.scope("ma"):
        mixed = _attention(writer, layer.ma, q, k, v)
    x = writer.add("Add", [mixed, x], "attended")
    y = write_module(writer, layer.fc2, write_module(writer, layer.fc1, x, "fc1"), "fc2")
    return writer.add("Add", [y, x], "out")


def _attention(writer: GraphWriter, block: Module, *inputs: str) -> str:
    """Map query, key, value, each (tokens, B, C), to (tokens, B, C); see `models.attention.MultiheadAttention`."""
    weight, bias = _values(block.in_proj_weight), _values(block.in_proj_bias)
    channels = weight.shape[1]
    depth = channels // block.heads
    heads = []
    for number, (x, part) in enumerate(zip(inputs, "qkv", strict=True)):
        rows = slice(number * channels, (number + 1) * channels)
        with writer.scope(part):
            projected = writer.reshaped(_projected(writer, x, weight[rows], bias[rows]), [0, -1, depth], "heads")
            # The key is transposed for the product with the query.
            order = [1, 2, 0] if part == "k" else [1, 0, 2]
            heads.append(writer.add("Transpose", [projected], "first", perm=order))
    scores = writer.add("MatMul", heads[:2], "scores")
    scores = writer.add("Mul", [scores, writer.constant(depth**-0.5, "scale")], "scaled")
    mixed = writer.add("MatMul", [writer.add("Softmax", [scores], "softmax", axis=-1), heads[2]], "mixed")
    joined = writer.add("Transpose", [mixed], "tokens", perm=[1, 0, 2])
    return write_module(writer, block.out_proj, writer.reshaped(joined, [0, -1, channels], "joined"), "out_proj")


_CONVERTERS: Mapping[type, Callable[[GraphWriter, Module, Any], str]] = {
    Conv2d: _convolution,
    BatchNorm2d: _batch_norm,
    Linear: _linear,
    MaxPool2d: _max_pool,
    ZeroPad2d: _zero_pad,
    nn.Sequential: _sequential,
    nn.Identity: _identity,
    nn.SiLU: _gated("Sigmoid"),
    nn.Hardswish: _gated("HardSigmoid", alpha=1 / 6, beta=0.5),
    nn.ReLU: _plain("Relu"),
    nn.LeakyReLU: _plain("LeakyRelu", alpha="negative_slope"),
    nn.ELU: _plain("Elu", alpha="alpha"),
    nn.Sigmoid: _plain("Sigmoid"),
    nn.Tanh: _plain("Tanh"),
    nn.ReLU6: _relu6,
    nn.Mish: _mish,
    nn.GELU: _gelu,
    blocks.Conv: _conv,
    blocks.DWConv: _conv,
    blocks.Bottleneck: _shortcut,
    blocks.CrossConv: _shortcut,
    blocks.BottleneckCSP: _cross_stage_with_norm,
    blocks.C3: _cross_stage,
    blocks.C3x: _cross_stage,
    blocks.C3TR: _cross_stage,
    blocks.C3SPP: _cross_stage,
    blocks.C3Ghost: _cross_stage,
    blocks.SPP: _pyramid,
    blocks.SPPF: _fast_pyramid,
    blocks.Focus: _focus,
    blocks.GhostConv: _ghost_conv,
    blocks.GhostBottleneck: _ghost_bottleneck,
    Upsample: _upsample,
    blocks.Concat: _concat,
    TransformerBlock: _transformer,
}

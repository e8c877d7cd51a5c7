"""Conversion of modules to pickled instances of PyTorch's or YOLOv5's classes.

Instances have the attributes that the forward pass, `fuse()` and `repr()` of PyTorch 1.7 to 2 and YOLOv5 v7.0 need.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from kernels.framework.global_rows import local_shard
from kernels.runtime import flow
from models import blocks
from models.attention import MultiheadAttention, TransformerBlock, TransformerLayer
from models.batch_norm import BatchNorm2d
from models.head import Detect
from models.layers import Conv2d, Linear, MaxPool2d, Module, Upsample, ZeroPad2d
from models.pickle_reader import Global, Instance
from models.pytorch_writer import Parameter

nn: Any = flow.nn
Attributes = dict[str, Any]
_LAYERS = "torch.nn.modules"


def module_instance(module: Module, *, half: bool, **extra_attributes: Any) -> Instance:
    """Return the pickled instance of a module and its submodules.

    Args:
        module: the module, not fused.
        half: whether to convert floating-point parameters and buffers to float16.
        extra_attributes: additional attributes of the instance.
    Raises:
        ValueError: YOLOv5 has no such module, or a value exceeds the range of float16.
    """
    kind = type(module)
    if kind not in _CLASSES:
        known = ", ".join(sorted(known.__name__ for known in _CLASSES))
        raise ValueError(f"{kind.__name__} is not supported in YOLOv5's format; supported are {known}")
    children = OrderedDict((name, module_instance(child, half=half)) for name, child in module._modules.items())
    parameters = _with_storage(module._parameters, Parameter, half=half)
    attributes = _ATTRIBUTES.get(kind, lambda _: {})(module)
    parameters.update(dict.fromkeys(attributes.pop("absent_parameters", ())))
    buffers = _with_storage(module._buffers, np.asarray, half=half)
    return torch_module(_CLASSES[kind], parameters, buffers, children, {**attributes, **extra_attributes})


def _with_storage(
    tensors: Mapping[str, Any], wrap: Callable[[np.ndarray], Any], *, half: bool
) -> "OrderedDict[str, Any]":
    return OrderedDict(
        (name, wrap(values_of(tensor, half=half))) for name, tensor in tensors.items() if tensor is not None
    )


def torch_module(
    name: str,
    parameters: "OrderedDict[str, Any]",
    buffers: "OrderedDict[str, Any]",
    children: "OrderedDict[str, Any]",
    attributes: Mapping[str, Any],
) -> Instance:
    """Return an instance of a subclass of `torch.nn.Module` in evaluation mode."""
    hooks = (
        "_backward_hooks",
        "_forward_hooks",
        "_forward_pre_hooks",
        "_state_dict_hooks",
        "_load_state_dict_pre_hooks",
    )
    state = {
        "training": False,
        "_parameters": parameters,
        "_buffers": buffers,
        "_non_persistent_buffers_set": set(),
        **{hook: OrderedDict() for hook in hooks},
        "_is_full_backward_hook": None,
        "_modules": children,
        **attributes,
    }
    package, _, own_name = name.rpartition(".")
    return Instance(Global(package, own_name), (), state)


def values_of(tensor: Any, *, half: bool) -> np.ndarray:
    """Return a tensor as an array; floating-point types are converted to float16 if `half`."""
    values: np.ndarray = local_shard(tensor).numpy()
    if not half or values.dtype.kind != "f":
        return values
    with np.errstate(over="ignore"):
        halved = values.astype(np.float16)
    if not np.isfinite(halved).all():
        raise ValueError("--half: a weight exceeds the range of float16 (65504); remove --half")
    return halved


# --- attributes of PyTorch's layers ----------------------------------------------------------------------------------


def _convolution(layer: Module) -> Attributes:
    return {
        **_copied(layer, "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"),
        "transposed": False,
        "output_padding": (0, 0),
        "padding_mode": "zeros",
        # Last dimension first, as in torch.nn.functional.pad.
        "_reversed_padding_repeated_twice": tuple(side for side in reversed(layer.padding) for _ in range(2)),
        "absent_parameters": ("bias",) if layer.bias is None else (),
    }


def _linear(layer: Module) -> Attributes:
    absent = ("bias",) if layer.bias is None else ()
    return {**_copied(layer, "in_features", "out_features"), "absent_parameters": absent}


def _batch_norm(layer: Module) -> Attributes:
    return {
        "num_features": int(layer.weight.shape[0]),
        "eps": layer.eps,
        "momentum": layer.momentum,
        "affine": True,
        "track_running_stats": True,
    }


def _max_pool(layer: Module) -> Attributes:
    return {
        **{name: getattr(layer, name)[0] for name in ("kernel_size", "stride", "padding")},
        "dilation": 1,
        "return_indices": False,
        "ceil_mode": False,
    }


def _upsample(layer: Module) -> Attributes:
    return {
        "name": "Upsample",
        "size": None,
        "scale_factor": float(layer.scale_factor),
        "mode": "nearest",
        "align_corners": None,
        "recompute_scale_factor": None,
    }


def _zero_pad(layer: Module) -> Attributes:
    return {"padding": tuple(layer.padding), "value": 0.0}


def _attention(layer: Module) -> Attributes:
    channels = int(layer.in_proj_weight.shape[1])
    return {
        **dict.fromkeys(("embed_dim", "kdim", "vdim"), channels),
        "_qkv_same_embed_dim": True,
        "num_heads": layer.heads,
        "dropout": 0.0,
        "batch_first": False,
        "head_dim": channels // layer.heads,
        "bias_k": None,
        "bias_v": None,
        "add_zero_attn": False,
        "absent_parameters": ("q_proj_weight", "k_proj_weight", "v_proj_weight"),
    }


def _copied(layer: Module, *names: str) -> Attributes:
    return {name: getattr(layer, name) for name in names}


def _in_place(layer: Module) -> Attributes:
    return {"inplace": False}


_CLASSES: Mapping[Any, str] = {
    Conv2d: f"{_LAYERS}.conv.Conv2d",
    BatchNorm2d: f"{_LAYERS}.batchnorm.BatchNorm2d",
    Linear: f"{_LAYERS}.linear.Linear",
    MaxPool2d: f"{_LAYERS}.pooling.MaxPool2d",
    Upsample: f"{_LAYERS}.upsampling.Upsample",
    ZeroPad2d: f"{_LAYERS}.padding.ZeroPad2d",
    MultiheadAttention: f"{_LAYERS}.activation.MultiheadAttention",
    nn.Sequential: f"{_LAYERS}.container.Sequential",
    nn.ModuleList: f"{_LAYERS}.container.ModuleList",
    nn.Identity: f"{_LAYERS}.linear.Identity",
    **{
        getattr(nn, name): f"{_LAYERS}.activation.{name}"
        for name in ("SiLU", "ReLU", "ReLU6", "LeakyReLU", "ELU", "Hardswish", "Mish", "GELU", "Sigmoid", "Tanh")
    },
    **{kind: f"models.common.{name}" for name, kind in blocks.CONSTRUCTORS.items()},
    **{kind: f"models.common.{kind.__name__}" for kind in (blocks.CrossConv, blocks.Concat)},
    **{kind: f"models.common.{kind.__name__}" for kind in (TransformerBlock, TransformerLayer)},
    Detect: "models.yolo.Detect",
}
"""Our class -> full name of the class in YOLOv5's files."""

_ATTRIBUTES: Mapping[type, Callable[[Module], Attributes]] = {
    Conv2d: _convolution,
    BatchNorm2d: _batch_norm,
    Linear: _linear,
    MaxPool2d: _max_pool,
    Upsample: _upsample,
    ZeroPad2d: _zero_pad,
    MultiheadAttention: _attention,
    nn.SiLU: _in_place,
    nn.ReLU: _in_place,
    nn.ReLU6: lambda layer: {"min_val": 0.0, "max_val": 6.0, "inplace": False},
    nn.LeakyReLU: lambda layer: {"negative_slope": layer.negative_slope, "inplace": False},
    nn.ELU: lambda layer: {"alpha": layer.alpha, "inplace": False},
    nn.Hardswish: _in_place,
    nn.Mish: _in_place,
    nn.GELU: lambda layer: {"approximate": "none"},
    blocks.Bottleneck: lambda block: {"add": block.add},
    blocks.CrossConv: lambda block: {"add": block.add},
    blocks.Concat: lambda block: {"d": 1},
    TransformerBlock: lambda block: {"conv": None, "c2": int(block.linear.weight.shape[0])},
}
"""Our class -> attributes other than tensors and children; `absent_parameters` lists parameters that are None."""


def class_name(kind: str) -> str:
    """Return the full name of the YOLOv5 or PyTorch class for a block in a model yaml."""
    own = {
        "Upsample": Upsample,
        "MaxPool2d": MaxPool2d,
        "ZeroPad2d": ZeroPad2d,
        "Concat": blocks.Concat,
        "Detect": Detect,
    }
    return _CLASSES[own[kind] if kind in own else blocks.CONSTRUCTORS[kind]]

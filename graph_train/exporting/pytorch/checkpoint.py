"""A network as a `.pt` file, equivalent to a YOLOv5 checkpoint after `strip_optimizer`."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from graph_train.exporting.pytorch.modules import class_name, module_instance, torch_module
from models.network import DetectionModel
from models.pickle_reader import Instance
from models.pytorch_writer import write_pytorch


def export_pytorch(network: DetectionModel, path: Path, *, half: bool) -> None:
    """Write a network, not fused, to a file for YOLOv5's `attempt_load`.

    Args:
        half: store the weights in float16, as YOLOv5 does.
    Raises:
        OSError: the file cannot be written.
        ValueError: YOLOv5 has no such module, or a value exceeds the range of float16.
    """
    write_pytorch(path, checkpoint(network, half=half))


def checkpoint(network: DetectionModel, *, half: bool) -> dict[str, Any]:
    """Return the content of the file: the network under `model`, and no training state."""
    return {
        "epoch": -1,
        "best_fitness": None,
        "model": _network(network, half=half),
        "ema": None,
        "updates": None,
        "optimizer": None,
        "opt": {},
        "git": None,
        "date": None,
    }


def _network(network: DetectionModel, *, half: bool) -> Instance:
    spec = network.spec
    config = {**spec.config, "nc": spec.num_classes, "ch": spec.channels}
    layers = _layers(network, half=half)
    attributes = {
        "yaml": _plain(config),
        "save": list(spec.saved),
        "names": dict(enumerate(network.names)),
        "nc": spec.num_classes,
        "inplace": True,
        "stride": _stride(network),
    }
    sequence = torch_module("torch.nn.modules.container.Sequential", OrderedDict(), OrderedDict(), layers, {})
    children = OrderedDict(model=sequence)
    return torch_module("models.yolo.DetectionModel", OrderedDict(), OrderedDict(), children, attributes)


def _layers(network: DetectionModel, *, half: bool) -> "OrderedDict[str, Instance]":
    """Return the layers with the attributes that YOLOv5's forward pass needs: index, inputs and type."""
    rows = [*network.spec.config["backbone"], *network.spec.config["head"]]
    made = OrderedDict()
    for layer, module, row in zip(network.spec.layers, network.model, rows, strict=True):
        attributes: dict[str, Any] = {
            "i": layer.index,
            "f": _plain(row[0]),
            "type": class_name(layer.kind),
            "np": sum(int(parameter.numel()) for parameter in module.parameters()),
        }
        if layer.kind == "Detect":
            attributes |= _head(network)
        made[str(layer.index)] = module_instance(module, half=half, **attributes)
    return made


def _head(network: DetectionModel) -> dict[str, Any]:
    head, levels = network.head, len(network.stride)
    return {
        "nc": head.num_classes,
        "no": head.num_classes + 5,
        "nl": levels,
        "na": head.anchors_per_level,
        # Filled by the first forward pass.
        "grid": [np.zeros(0, np.float32) for _ in range(levels)],
        "anchor_grid": [np.zeros(0, np.float32) for _ in range(levels)],
        "stride": _stride(network),
        "inplace": True,
    }


def _stride(network: DetectionModel) -> np.ndarray:
    return np.asarray(network.stride, np.float32)


def _plain(value: Any) -> Any:
    """Replace the tuples of a configuration by lists, as in yaml."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value

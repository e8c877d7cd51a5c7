"""Parity of all shipped model yamls: sizes, names and shapes, strides, anchors, GFLOPs."""

from pathlib import Path
from typing import Any

import numpy as np

from models.blocks import Conv
from models.complexity import Complexity, measure
from models.network import DetectionModel
from models.spec import load_model_spec
from tests.parity.harness import Mode, Report, Subject

FOLDED_PARAMETERS = 15_000_000
"""Maximum size of networks that are actually folded; folding larger ones would take most of the time."""


def _leaves(model: DetectionModel) -> int:
    return sum(1 for module in model.modules() if next(iter(module.children()), None) is None)


def _block_kind(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def _check_structure(cfg: str, vectors: Any, model: DetectionModel, report: Report) -> None:
    spec, state = model.spec, model.state_dict()
    shapes = ["x".join(str(side) for side in tensor.shape) for tensor in state.values()]
    kinds = [layer.kind for layer in spec.layers]
    anchors_px = model.anchors_cells * np.asarray(model.stride, np.float32).reshape(-1, 1, 1)
    report.exact(f"stride/{cfg}", model.stride, vectors[f"stride/{cfg}"])
    report.close(f"anchors_px/{cfg}", anchors_px, vectors[f"anchors_px/{cfg}"], rtol=1e-6)
    report.exact(f"save/{cfg}", spec.saved, vectors[f"save/{cfg}"])
    report.exact(f"layer_type/{cfg}", kinds, [_block_kind(name) for name in vectors[f"layer_type/{cfg}"]])
    report.exact(f"state_keys/{cfg}", list(state), vectors[f"state_keys/{cfg}"])
    report.exact(f"state_shapes/{cfg}", shapes, vectors[f"state_shapes/{cfg}"])


def _columns(model: DetectionModel, size: Complexity) -> dict[str, float]:
    """Return the counts before and after folding BatchNorm; may leave the model folded."""
    spec = model.spec
    columns: dict[str, float] = {
        "params": size.parameters,
        "modules": size.modules,
        "leaf_modules": _leaves(model),
        "top_level_layers": len(spec.layers),
        "state_dict_entries": len(model.state_dict()),
        "buffers_numel": sum(buffer.numel() for buffer in model.buffers()),
        "depth_multiple": spec.depth_multiple,
        "width_multiple": spec.width_multiple,
        "nc": spec.num_classes,
    }
    columns["params_fused"], columns["modules_fused"] = _predicted_fused(model, size)
    if size.parameters <= FOLDED_PARAMETERS:
        with np.errstate(invalid="ignore", over="ignore"):  # the weights are not initialised
            model.fuse()
        columns["params_fused"] = sum(parameter.numel() for parameter in model.parameters())
        columns["modules_fused"] = sum(1 for _ in model.modules())
    return columns


def _predicted_fused(model: DetectionModel, size: Complexity) -> tuple[int, int]:
    """Predict the counts after folding, which replaces each BatchNorm by a bias."""
    folded = [module.bn.num_features for module in model.modules() if isinstance(module, Conv)]
    return size.parameters - sum(folded), size.modules - len(folded)


def check(path: Path, report: Report, mode: Mode) -> None:
    """Build all configurations of the file; nothing is run, so there is no graph mode."""
    vectors = report.open(path)
    for row, name in enumerate(vectors["cfg"].tolist()):
        cfg = name.removesuffix(".yaml")
        model = DetectionModel(load_model_spec(cfg, num_classes=int(vectors["nc"][row])), seed=None)
        _check_structure(name, vectors, model, report)
        size = measure(model)
        report.exact(f"layer_params/{name}", [part.parameters for part in size.layers], vectors[f"layer_params/{name}"])
        report.close(f"MACs {name}", size.macs / 1e9, vectors["conv_linear_gmacs_640"][row], rtol=1e-6)
        # Attention is counted by hand here and by a profiler there; without attention the two agree to 1e-6.
        report.close(f"GFLOPs {name}", size.flops / 1e9, vectors["gflops_640_thop"][row], rtol=0.03)
        for column, value in _columns(model, size).items():
            report.exact(f"{column} {name}", value, vectors[column][row])


SUBJECT = Subject(("model_counts*.npz",), check, modes=("eager",))

"""Parity of YOLOv5n: raw maps, gradients, BatchNorm buffers, decoded boxes, and norms of all layers."""

from pathlib import Path
from typing import Any

import numpy as np

from kernels.runtime import Tensor, flow
from models.network import DetectionModel
from models.spec import load_model_spec
from tests.parity.harness import Mode, Report, Subject

PREFIX = "model."


def _network(vectors: Any) -> DetectionModel:
    """Return the network of a file with its weights; the number of classes follows from the maps."""
    classes = vectors["train_out_0"].shape[-1] - 5
    model = DetectionModel(load_model_spec("yolov5n", num_classes=classes), seed=None)
    arrays = {name: flow.tensor(vectors[name]) for name in vectors.files if name.startswith(PREFIX)}
    model.load_state_dict(arrays)
    return model


def _scalar(maps: list[Tensor]) -> Tensor:
    total = (maps[0] * maps[0]).mean()
    for raw in maps[1:]:
        total = total + (raw * raw).mean()
    return total


class _TrainGraph(flow.nn.Graph):
    """A graph of forward and backward that returns the maps, the scalar and all gradients."""

    def __init__(self, model: DetectionModel) -> None:
        super().__init__()
        self.model = model
        self.names = [name for name, _ in model.named_parameters()]
        self.config._train(True)

    def build(self, images: Tensor) -> tuple[list[Tensor], Tensor, list[Tensor]]:
        maps = self.model(images)
        scalar = _scalar(maps)
        internal = flow._oneflow_internal
        internal.nn.graph.AddTensorAsGraphLoss(scalar)
        parameters = [_member(self.model, name) for name in self.names]
        pack = internal.TensorTuple
        gradients = internal.autograd.grad(pack([scalar]), pack(parameters), pack(), False, False)
        return maps, scalar, list(gradients)


class _EvalGraph(flow.nn.Graph):
    """A graph that returns maps and decoded predictions."""

    def __init__(self, model: DetectionModel) -> None:
        super().__init__()
        self.model = model

    def build(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        maps = self.model(images)
        return maps, self.model.decode(maps)


def _member(module: Any, name: str) -> Tensor:
    for part in name.split("."):
        module = getattr(module, part)
    return module


def _train(model: DetectionModel, images: Tensor, mode: Mode) -> tuple[list[Tensor], Tensor, list[Tensor]]:
    model.train()
    if mode == "graph":
        outputs: tuple[list[Tensor], Tensor, list[Tensor]] = _TrainGraph(model)(images)
    else:
        maps = model(images)
        scalar = _scalar(maps)
        scalar.backward()
        outputs = maps, scalar, [parameter.grad for parameter in model.parameters()]
    model.count_batch()
    return outputs


def evaluate(model: DetectionModel, images: Tensor, mode: Mode) -> tuple[list[Tensor], Tensor]:
    """Return raw maps and decoded predictions in evaluation mode."""
    model.eval()
    with flow.no_grad():
        if mode == "graph":
            outputs: tuple[list[Tensor], Tensor] = _EvalGraph(model)(images)
            return outputs
        maps = model(images)
        return maps, model.decode(maps)


def layer_norms(model: DetectionModel, images: Tensor) -> list[float]:
    """Return the L2 norm of the output of each top-level layer except the head."""
    norms: list[float] = []

    def note(_: Any, __: Any, output: Tensor) -> None:
        norms.append(float(np.linalg.norm(output.numpy().astype(np.float64).ravel())))

    layers = list(model.model)[:-1]
    for layer in layers:
        layer.register_forward_hook(note)
    with flow.no_grad():
        model.eval()(images)
    for layer in layers:
        layer._forward_hooks.clear()
    return norms


def _check_training(vectors: Any, report: Report, mode: Mode, images: Tensor) -> None:
    model = _network(vectors)
    names = [name for name, _ in model.named_parameters()]
    report.exact("state keys", list(model.state_dict()), [n for n in vectors.files if n.startswith(PREFIX)])
    maps, scalar, gradients = _train(model, images, mode)
    for level, raw in enumerate(maps):
        report.close(f"train_out_{level}", raw.numpy(), vectors[f"train_out_{level}"], atol=1e-3)
    # A mean of squares: twice the error of the maps, relative to maps of magnitude 1 to 10.
    report.close("train_scalar", scalar.numpy(), vectors["train_scalar"], rtol=1e-4)
    by_name = dict(zip(names, gradients, strict=True))
    expected = dict(zip(vectors["grad_names"].tolist(), vectors["grad_l2"], strict=True))
    report.exact("parameters with gradients", sorted(by_name), sorted(expected))
    for name, norm in expected.items():
        gradient = by_name[name].numpy()
        report.close(f"norm of grad/{name}", np.linalg.norm(gradient.astype(np.float64).ravel()), norm, rtol=1e-3)
        if f"grad/{name}" in vectors.files:
            report.relative_l2(f"grad/{name}", gradient, vectors[f"grad/{name}"], limit=1e-3)
    state = model.state_dict()
    for name in vectors.files:
        if not name.startswith("after_train/"):
            continue
        got = state[name.removeprefix("after_train/")].numpy()
        if name.endswith("num_batches_tracked"):
            report.exact(name, got, vectors[name])
        else:
            # Relative to the whole buffer, since relative errors of means near zero are meaningless.
            report.relative_l2(name, got, vectors[name], limit=1e-5)


def _check_evaluation(vectors: Any, report: Report, mode: Mode, images: Tensor) -> None:
    model = _network(vectors)
    maps, decoded = evaluate(model, images, mode)
    for level, raw in enumerate(maps):
        report.close(f"eval_raw_{level}", raw.numpy(), vectors[f"eval_raw_{level}"], atol=1e-3)
    compare_decoded(report, "eval_decoded", decoded.numpy(), vectors["eval_decoded"])
    report.exact("stride", model.stride, vectors["stride"])
    strides = np.asarray(model.stride, np.float32).reshape(-1, 1, 1)
    report.close("anchors_px", model.anchors_cells * strides, vectors["anchors_px"], rtol=1e-6)
    if mode == "eager":
        report.close("eval_layer_l2", layer_norms(model, images), vectors["eval_layer_l2"], rtol=1e-4)
        fused = model.fuse()
        fused_maps, fused_decoded = evaluate(fused, images, mode)
        for level, raw in enumerate(fused_maps):
            report.close(f"fused raw {level}", raw.numpy(), vectors[f"eval_raw_{level}"], atol=1e-3)
        compare_decoded(report, "fused decoded", fused_decoded.numpy(), vectors["eval_decoded"])


def compare_decoded(report: Report, name: str, actual: np.ndarray, expected: np.ndarray) -> None:
    """Compare boxes in px, and confidences, each with its own tolerance."""
    report.close(f"{name}: boxes", actual[..., :4], expected[..., :4], atol=0.02, rtol=2e-4)
    report.close(f"{name}: confidences", actual[..., 4:], expected[..., 4:], atol=2e-4)


def check(path: Path, report: Report, mode: Mode) -> None:
    """Compare one file."""
    vectors = np.load(path)
    images = flow.tensor(vectors["image"])
    _check_training(vectors, report, mode, images)
    _check_evaluation(vectors, report, mode, images)


SUBJECT = Subject(("model_yolov5n*.npz",), check)

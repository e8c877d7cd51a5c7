"""Parity of networks: raw maps, gradients, BatchNorm buffers, decoded boxes, layer norms, augmented inference.

A file has the weights, or `weights_seed` for weights that everybody can make (`seeded_state`), which keeps it small.
"""

from pathlib import Path
from typing import Any

import numpy as np

from graph_train.detection.augmented_views import AugmentedInference
from graph_train.detection.inference import Inference, on_host
from kernels.framework.module_graph import gradients_of
from kernels.runtime import Tensor, flow
from models.layers import get_attribute
from models.network import DetectionModel
from models.spec import load_model_spec, shipped_configs
from tests.parity.harness import Mode, Report, Subject, VectorError

PREFIX = "model."
WHOLE_GRADIENTS = 1024
"""Largest parameter whose gradient is recorded element by element, unless a file says `whole_tensors`."""
NO_LABELS = np.zeros((0, 6), np.float32)


def _architecture(path: Path) -> str:
    """Return the shipped configuration in `model_<configuration>[_<case>].npz`."""
    shipped, name = shipped_configs(), path.stem.removeprefix("model_")
    while name and name not in shipped:
        name = name.rpartition("_")[0]
    if not name:
        raise VectorError("the file's name should be model_ and the name of a shipped configuration")
    return name


def _network(vectors: Any, architecture: str) -> DetectionModel:
    """Return the network of a file with its weights; the maps give the number of classes."""
    classes = vectors["train_out_0"].shape[-1] - 5
    model = DetectionModel(load_model_spec(architecture, num_classes=classes), seed=None)
    if "weights_seed" in vectors:
        arrays = seeded_state(model, int(vectors["weights_seed"]))
    else:
        arrays = {name: vectors[name] for name in vectors if name.startswith(PREFIX)}
    model.load_state_dict({name: flow.tensor(value) for name, value in arrays.items()})
    return model


def seeded_state(model: DetectionModel, seed: int) -> dict[str, np.ndarray]:
    """Return random weights in the order of the state, exact in half precision, for any implementation to repeat.

    Matrices and kernels are uniform with variance 1.7 / fan-in, because SiLU reduces the variance; scales of norms lie
    in [0.6, 1.4], running variances in [0.5, 1.5]; biases and running means have a standard deviation of 0.1.
    """
    random, state = np.random.RandomState(seed), {}
    for name, tensor in model.state_dict().items():
        value = tensor.numpy()
        if name.endswith("num_batches_tracked"):
            state[name] = np.full_like(value, 3)
            continue
        if name.endswith("anchors"):
            state[name] = value
            continue
        if value.ndim > 1:
            bound = np.sqrt(3 * 1.7 * value.shape[0] / value.size)
            values = random.uniform(-bound, bound, value.shape)
        elif name.endswith("running_var"):
            values = random.uniform(0.5, 1.5, value.shape)
        elif name.endswith("weight"):
            values = random.uniform(0.6, 1.4, value.shape)
        else:
            values = random.normal(0.0, 0.1, value.shape)
        state[name] = values.astype(np.float16).astype(np.float32)
    return state


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
        return maps, scalar, gradients_of(scalar, [get_attribute(self.model, name) for name in self.names])


class _EvalGraph(flow.nn.Graph):
    """A graph that returns maps and decoded predictions."""

    def __init__(self, model: DetectionModel) -> None:
        super().__init__()
        self.model = model

    def build(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        maps = self.model(images)
        return maps, self.model.decode(maps)


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


def _check_training(vectors: Any, model: DetectionModel, report: Report, mode: Mode, images: Tensor) -> None:
    names = [name for name, _ in model.named_parameters()]
    if "weights_seed" not in vectors:
        report.exact("state keys", list(model.state_dict()), [n for n in vectors if n.startswith(PREFIX)])
    whole = int(vectors["whole_tensors"]) if "whole_tensors" in vectors else None
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
        if gradient.size <= (whole or WHOLE_GRADIENTS):
            report.relative_l2(f"grad/{name}", gradient, vectors[f"grad/{name}"], limit=1e-3)
    state = model.state_dict()
    for buffer in (name for name in state if name.endswith(("running_mean", "running_var", "num_batches_tracked"))):
        name, got = f"after_train/{buffer}", state[buffer].numpy()
        if whole is not None and got.size > whole:
            continue
        if name.endswith("num_batches_tracked"):
            report.exact(name, got, vectors[name])
        else:
            # Relative to the whole buffer, since relative errors of means near zero are meaningless.
            report.relative_l2(name, got, vectors[name], limit=1e-5)


def _check_evaluation(vectors: Any, model: DetectionModel, report: Report, mode: Mode, images: Tensor) -> None:
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


def _check_augmented(vectors: Any, model: DetectionModel, report: Report, mode: Mode) -> None:
    """Compare augmented inference, with the views made by our kernels or by OneFlow's ops."""
    predict = Inference(model, graph=mode == "graph")
    views = AugmentedInference(
        lambda images: predict(images, NO_LABELS)[0], model.stride, grid_px=model.spec.coarsest_stride
    )
    joined, _ = views(vectors["image_u8"], NO_LABELS)
    compare_decoded(report, "augmented", on_host(joined), vectors["augmented_decoded"])


def compare_decoded(report: Report, name: str, actual: np.ndarray, expected: np.ndarray) -> None:
    """Compare boxes in px, and confidences, each with its own tolerance."""
    report.close(f"{name}: boxes", actual[..., :4], expected[..., :4], atol=0.02, rtol=2e-4)
    report.close(f"{name}: confidences", actual[..., 4:], expected[..., 4:], atol=2e-4)


def check(path: Path, report: Report, mode: Mode) -> None:
    """Compare one file."""
    vectors, architecture = report.open(path), _architecture(path)
    images = flow.tensor(vectors["image"])
    _check_training(vectors, _network(vectors, architecture), report, mode, images)
    _check_evaluation(vectors, _network(vectors, architecture), report, mode, images)
    if "image_u8" in vectors:
        _check_augmented(vectors, _network(vectors, architecture), report, mode)


SUBJECT = Subject(("model_*.npz",), check, companions=("model_counts*.npz",), information=("eval_layer_l2",))

"""Parity with a training checkpoint of the reference: all tensors, their stored types, and predictions."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from kernels.runtime import flow
from models.network import DetectionModel
from models.pytorch_file import PyTorchFile, StoredTensor
from models.spec import load_model_spec
from models.weights import LoadedWeights, Prefer, load_weights, transfer
from tests.parity.harness import Mode, Report, Subject
from tests.parity.network import compare_decoded, evaluate

PARTS: tuple[Prefer, ...] = ("model", "ema")


def _checkpoint_file(path: Path, class_names: tuple[str, ...]) -> Path:
    """Return the .pt next to the expected values; if there are several, the one trained on these classes."""
    candidates = sorted(path.parent.glob("*.pt"))
    if len(candidates) > 1:
        candidates = [file for file in candidates if load_weights(file).class_names == class_names]
    if len(candidates) != 1:
        raise FileNotFoundError(f"{path.parent}: {len(candidates)} .pt files fit {path.name}, one is needed")
    return candidates[0]


def _check_tensors(vectors: Any, part: Prefer, weights: LoadedWeights, report: Report) -> None:
    shared = set(vectors["ema_same_as_model"].tolist())
    names = [name.removeprefix("model/") for name in vectors if name.startswith("model/")]
    report.exact(f"{part}: part", weights.part, part)
    report.exact(f"{part}: names", list(weights.arrays), names)
    for name in names:
        expected = vectors[f"model/{name}" if part == "model" or name in shared else f"ema/{name}"]
        report.exact(f"{part}/{name}", weights.arrays[name], expected)
    stored = [f"torch.{weights.stored_dtypes[name]}" for name in vectors["dtype_names"].tolist()]
    report.exact(f"{part}: stored types", stored, vectors["dtype_values"])
    report.exact(f"{part}: stride", weights.stride or (), vectors["stride"])


def _check_predictions(vectors: Any, part: Prefer, weights: LoadedWeights, report: Report, mode: Mode) -> None:
    assert weights.config is not None
    model = DetectionModel(load_model_spec(weights.config), seed=None)
    moved = transfer(model, weights)
    report.exact(f"{part}: items transferred", len(moved.transferred), moved.total)
    _, decoded = evaluate(model, flow.tensor(vectors["image"]), mode)
    compare_decoded(report, f"{part}_eval_decoded", decoded.numpy(), vectors[f"{part}_eval_decoded"])


def _check_optimizer(vectors: Any, file: Path, report: Report) -> None:
    opened = PyTorchFile(file)
    optimizer = opened.content["optimizer"]
    groups = [
        {key: value for key, value in group.items() if not isinstance(value, StoredTensor)}
        for group in optimizer["param_groups"]
    ]
    report.exact("optimizer groups", json.dumps(groups), str(vectors["optimizer_groups_json"]))
    expected = {int(name.split("/")[1]): vectors[name] for name in vectors if name.startswith("optimizer_mom")}
    buffers = {
        index: state["momentum_buffer"]
        for index, state in optimizer["state"].items()
        if state.get("momentum_buffer") is not None
    }
    report.exact("momentum buffers", sorted(buffers), sorted(expected))
    for index, value in expected.items():
        report.exact(f"optimizer_momentum/{index}", opened.array(buffers[index]).astype(np.float32), value)
    opened.close()


def check(path: Path, report: Report, mode: Mode) -> None:
    """Compare one file with the checkpoint next to it."""
    vectors = report.open(path)
    scalars = json.loads(str(vectors["scalars_json"]))
    class_names = tuple(scalars["names"].values())
    file = _checkpoint_file(path, class_names)
    for part in PARTS:
        weights = load_weights(file, prefer=part)
        report.exact(f"{part}: epoch", weights.epoch if weights.epoch is not None else -1, scalars["epoch"])
        report.exact(f"{part}: class names", weights.class_names or (), class_names)
        _check_tensors(vectors, part, weights, report)
        _check_predictions(vectors, part, weights, report, mode)
    _check_optimizer(vectors, file, report)


SUBJECT = Subject(("checkpoint_expected*.npz",), check)

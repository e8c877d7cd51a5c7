"""Parity of the loss with `loss_*.npz`: target assignment, parts, gradients, level balance."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kernels.framework.module_graph import ModuleGraph, gradients_of
from kernels.runtime import Tensor, flow
from models.loss import DetectionLoss
from models.loss_config import LossConfig
from models.padded_labels import label_capacity, pad_labels
from models.targets import HeadGeometry
from tests.parity.harness import Mode, Report, Subject, recorded


@dataclass(frozen=True)
class _Call:
    """One call as NumPy arrays, per level except for parts and balance."""

    parts: npt.NDArray[np.float32]
    gradients: list[npt.NDArray[np.float32]]
    cells: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.float32]
    objectness_targets: list[npt.NDArray[np.float32]]
    balance: npt.NDArray[np.float32]


def check(path: Path, report: Report, mode: Mode) -> None:
    """Compare all calls of one case within the tolerances of the vectors' README."""
    case = report.open(path)
    maps = [case[f"pred_{level}"] for level in range(len(case["stride"]))]
    config = loss_config(
        json.loads(str(case["hyp_json"])),
        gr=float(case["gr"]),
        autobalance=bool(case["autobalance"]),
        sort_obj_iou=bool(case["sort_obj_iou"]),
    )
    criterion = DetectionLoss(_head(case), config)
    targets, batch = case["targets"], maps[0].shape[0]
    capacity = label_capacity(int(np.bincount(targets[:, 0].astype(int), minlength=1).max()))
    run = _runner(mode, criterion, maps, pad_labels(targets, batch, capacity))
    calls = [run() for _ in case["total_loss"]]
    for number, call in enumerate(calls):
        report.close(f"total {number}", call.parts[0], case["total_loss"][number], rtol=1e-5)
        report.close(f"items {number}", call.parts[1:], case["loss_items"][number], rtol=1e-5)
        # The reference keeps five weights for any head that has not three levels.
        report.close(f"balance {number}", call.balance, case["balance"][number + 1][: len(maps)], rtol=1e-5)
    for level in range(len(maps)):
        _check_matches(report, calls[-1], case, level)
        _check_level(report, calls[-1], case, level)


def _head(case: Mapping[str, Any]) -> HeadGeometry:
    return HeadGeometry(case["anchors_grid"], tuple(float(stride) for stride in case["stride"]), int(case["nc"]))


def loss_config(hyp: Mapping[str, float], **others: Any) -> LossConfig:
    """Return the settings of the loss in a YOLOv5 `hyp` dictionary with scaled gains; `others` are not in it."""
    return LossConfig(
        box=hyp["box"],
        objectness=hyp["obj"],
        classes=hyp["cls"],
        cls_pw=hyp["cls_pw"],
        obj_pw=hyp["obj_pw"],
        anchor_t=hyp["anchor_t"],
        fl_gamma=hyp["fl_gamma"],
        label_smoothing=hyp["label_smoothing"],
        **others,
    )


class _LossAndGradients(flow.nn.Module):
    """Loss parts, gradients, matches and objectness targets, eagerly and in a graph."""

    def __init__(self, criterion: DetectionLoss, maps: list[npt.NDArray[np.float32]]) -> None:
        super().__init__()
        self.criterion = criterion
        for level, raw in enumerate(maps):
            self.register_parameter(f"map{level}", flow.nn.Parameter(flow.tensor(raw)))
        self.levels = len(maps)

    def forward(self, labels: Tensor) -> tuple[Tensor, ...]:
        maps = [getattr(self, f"map{level}") for level in range(self.levels)]
        details = self.criterion.details(maps, labels)
        total = details.parts.total
        gradients = gradients_of(total, maps)
        return (
            total,
            details.parts.parts,
            *gradients,
            details.assignment.cell,
            details.assignment.boxes_cells,
            *details.objectness_targets,
        )


def _runner(
    mode: Mode, criterion: DetectionLoss, maps: list[npt.NDArray[np.float32]], labels: npt.NDArray[np.float32]
) -> Callable[[], _Call]:
    padded = flow.tensor(labels)
    module = _LossAndGradients(criterion, maps)
    execute = ModuleGraph(module, differentiates=True) if mode == "graph" else module

    def run() -> _Call:
        total, parts, *arrays = (output.numpy() for output in execute(padded))
        levels = len(maps)
        return _Call(
            parts=np.append(total, parts),
            gradients=arrays[:levels],
            cells=arrays[levels],
            boxes=arrays[levels + 1],
            objectness_targets=arrays[levels + 2 :],
            balance=criterion.balance.numpy().copy(),  # the array is a view of the tensor
        )

    return run


def _check_level(report: Report, call: _Call, case: Mapping[str, Any], level: int) -> None:
    expected = case[f"tobj_{level}"]
    report.close(f"tobj {level}", call.objectness_targets[level].reshape(expected.shape), expected, atol=1e-5)
    gradient, ours = recorded(case, f"grad_{level}"), call.gradients[level]
    report.exact(f"gradient {level} is finite", np.isfinite(ours).all(), True)
    known = np.isfinite(gradient)  # a reference that overflowed and recorded no double precision tells nothing
    report.relative_l2(f"gradient {level} L2", ours[known], gradient[known], limit=1e-5)
    largest = float(np.abs(gradient[known]).max(initial=0.0))
    report.close(f"gradient {level}", ours[known], gradient[known], atol=1e-5 * largest)


def _check_matches(report: Report, call: _Call, case: Mapping[str, Any], level: int) -> None:
    """Compare the matches after sorting them into the reference's order (neighbour, anchor, label)."""
    _, anchors, rows, columns, _ = case[f"pred_{level}"].shape
    targets = case["targets"]
    batch, _, entries = call.cells.shape
    slots = entries // (5 * anchors)
    listed = np.full((batch, slots), -1)
    for number in range(batch):
        of_image = np.flatnonzero(targets[:, 0] == number)
        listed[number, : len(of_image)] = of_image
    cell = call.cells[:, level].reshape(batch, 5, anchors, slots)
    boxes = call.boxes[:, level].reshape(batch, 5, anchors, slots, 4)
    image, neighbour, anchor, slot = np.nonzero(cell >= 0)
    label: npt.NDArray[np.int64] = listed[image, slot]
    order = np.lexsort((label, anchor, neighbour))
    image, neighbour, anchor, slot, label = (index[order] for index in (image, neighbour, anchor, slot, label))
    found = cell[image, neighbour, anchor, slot]
    for name, ours in (
        ("index_image", image),
        ("index_anchor", found // (rows * columns)),
        ("index_gj", found // columns % rows),
        ("index_gi", found % columns),
        ("tcls", targets[label, 1].astype(np.int64)),
        ("anch", case["anchors_grid"][level][anchor]),
    ):
        report.exact(f"{name} {level}", ours, case[f"{name}_{level}"])
    report.close(f"tbox {level}", boxes[image, neighbour, anchor, slot], case[f"tbox_{level}"], atol=1e-5)


SUBJECT = Subject(
    ("loss_*.npz",),
    check,
    companions=("loss_elements*.npz",),
    information=("image_hw", "ssi", "duplicate_cells"),
)

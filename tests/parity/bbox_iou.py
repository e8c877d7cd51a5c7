"""Parity of box overlap: matched pairs with the CIoU gradient, and all pairs as in the metrics, which use NumPy."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from graph_train.metrics.average_precision import pairwise_iou
from kernels.framework.module_graph import gradients_of
from kernels.ops.bbox_iou.function import IouKind, bbox_iou
from kernels.runtime import Tensor, flow
from tests.parity.harness import Mode, Report, Subject, recorded

_FORMATS = ("xywh", "xyxy")
_WIDE_GROUPS = ("tiny", "huge_aspect")
_Array = npt.NDArray[np.float32]


def check(path: Path, report: Report, mode: Mode) -> None:
    """Compare all rows of all groups, special ones (zero area, ties) only where they are defined."""
    data = report.open(path)
    for box_format in _FORMATS:
        _check_format(data, box_format, report, mode)
    pairs = pairwise_iou(data["pair_box1"], data["pair_box2"])
    report.close("pair_box_iou", pairs, data["pair_box_iou"], atol=2e-6)


def _check_format(data: Mapping[str, Any], box_format: str, report: Report, mode: Mode) -> None:
    groups = np.array([str(name) for name in data["group_names"]])[data["group"].astype(np.int64)]
    wide = np.array([name.startswith(_WIDE_GROUPS) for name in groups]) & (box_format == "xywh")
    usual_atol = 5e-5 if box_format == "xywh" else 2e-6
    box1, box2 = data[f"{box_format}_box1"], data[f"{box_format}_box2"]
    for kind in get_args(IouKind):
        values, gradient = _evaluate(box1, box2, kind, box_format == "xywh", mode)
        wanted = recorded(data, f"{box_format}_{kind}")
        report.close(f"{box_format} {kind}", values[~wide], wanted[~wide], atol=usual_atol)
        if wide.any():
            report.close(f"{box_format} {kind}, tiny and huge aspect", values[wide], wanted[wide], atol=1e-3)
    # The loop ends with CIoU, the kind whose gradient the vectors hold.
    wanted = data[f"{box_format}_ciou_grad_box1"]
    comparable = ~(data[f"{box_format}_degenerate"].astype(bool) | data[f"{box_format}_grad_tie"].astype(bool))
    largest = np.abs(wanted[comparable]).max(axis=1, keepdims=True)
    scale = np.where(largest == 0, 1, largest)
    report.close(f"{box_format} ciou gradient", gradient[comparable] / scale, wanted[comparable] / scale, atol=1e-4)


class _Overlap(flow.nn.Module):
    """A module with box1 as parameter, so that a graph can compute its gradient."""

    def __init__(self, box1: _Array, kind: IouKind, xywh: bool) -> None:
        super().__init__()
        self.box1 = flow.nn.Parameter(flow.tensor(box1))
        self._kind: IouKind = kind
        self._xywh = xywh

    def forward(self, box2: Tensor) -> Tensor:
        return bbox_iou(self.box1, box2, kind=self._kind, xywh=self._xywh)


class _OverlapGraph(flow.nn.Graph):
    def __init__(self, overlap: _Overlap) -> None:
        super().__init__()
        self.overlap = overlap
        self.config._train(True)

    def build(self, box2: Tensor) -> tuple[Tensor, Tensor]:
        values = self.overlap(box2)
        return values, gradients_of(values.sum(), [self.overlap.box1])[0]


def _evaluate(box1: _Array, box2: _Array, kind: IouKind, xywh: bool, mode: Mode) -> tuple[_Array, _Array]:
    """Return overlaps (n,) and the gradient (n, 4) of their sum with respect to box1."""
    overlap = _Overlap(box1, kind, xywh)
    if mode == "graph":
        values, gradient = _OverlapGraph(overlap)(flow.tensor(box2))
        return values.numpy(), gradient.numpy()
    values = overlap(flow.tensor(box2))
    values.sum().backward()
    return values.numpy(), overlap.box1.grad.numpy()


SUBJECT = Subject(("bbox_iou*.npz",), check)

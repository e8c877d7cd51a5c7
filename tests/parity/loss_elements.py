"""Parity of the element losses with `loss_elements.npz`."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from kernels.runtime import Tensor, flow
from models.cross_entropy import BinaryCrossEntropy, FocalLoss, smooth_targets
from tests.parity.harness import Mode, Report, Subject
from tests.parity.loss_variants import BlurredCrossEntropy, QualityFocalLoss

_RTOL, _ATOL = 1e-5, 1e-7


def _losses() -> Mapping[str, flow.nn.Module]:
    return {
        "focal_g1.5_a0.25": FocalLoss(BinaryCrossEntropy()),
        "qfocal_g1.5_a0.25": QualityFocalLoss(BinaryCrossEntropy()),
        "focal_g2_a0.6": FocalLoss(BinaryCrossEntropy(), gamma=2.0, alpha=0.6),
        "bce": BinaryCrossEntropy(),
        "bce_pos_weight_1.7": BinaryCrossEntropy(1.7),
        "bce_blur_a0.05": BlurredCrossEntropy(BinaryCrossEntropy(), alpha=0.05),
    }


class _CapturedElements(flow.nn.Graph):
    def __init__(self, losses: Mapping[str, flow.nn.Module]) -> None:
        super().__init__()
        self.losses = flow.nn.ModuleList(list(losses.values()))

    def build(self, logits: Tensor, targets: Tensor) -> list[Tensor]:
        return [loss(logits, targets) for loss in self.losses]


def check(path: Path, report: Report, mode: Mode) -> None:
    """Compare all recorded losses, elementwise or reduced to sum or mean."""
    case = report.open(path)
    logits, targets = flow.tensor(case["pred"]), flow.tensor(case["true"])
    losses = _losses()
    if mode == "graph":
        results = _CapturedElements(losses)(logits, targets)
    else:
        results = [loss(logits, targets) for loss in losses.values()]
    for name, result in zip(losses, results, strict=True):
        elements = result.numpy().astype(np.float64)
        reduced = {"_none": elements, "_sum": elements.sum(), "_mean": elements.mean(), "": elements.mean()}
        recorded = {suffix: value for suffix, value in reduced.items() if name + suffix in case}
        report.exact(f"{name}: recorded", bool(recorded), True)
        for suffix, value in recorded.items():
            report.close(name + suffix, value, case[name + suffix], rtol=_RTOL, atol=_ATOL)
    report.close("smooth_bce_0.1", smooth_targets(0.1), case["smooth_bce_0.1"], rtol=_RTOL, atol=_ATOL)


SUBJECT = Subject(("loss_elements*.npz",), check)

"""Element losses that YOLOv5 defines but does not train with; parity has recorded values of them."""

from kernels.runtime import Tensor, flow
from models.cross_entropy import FocalLoss, class_weight


class QualityFocalLoss(FocalLoss):
    """Quality focal loss, for targets such as an IoU: the loss times `alpha_t * |t - p| ** gamma`.

    Source: arXiv:2006.04388, eq. 4, with the class weight of the focal loss as in YOLOv5.
    """

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each element; logits and targets are float32 of the same shape, targets in [0, 1]."""
        distance = flow.abs(targets - flow.sigmoid(logits))
        return self.base(logits, targets) * class_weight(targets, self._alpha) * flow.pow(distance, self._gamma)


class BlurredCrossEntropy(flow.nn.Module):
    """Cross-entropy with less weight on confident predictions with target 0, as labels are often missing.

    Args:
        base: the element loss, which is multiplied by `1 - exp((p - t - 1) / (alpha + 1e-4))`.
        alpha: width of the reduction around the worst case (p = 1, t = 0).
    """

    def __init__(self, base: flow.nn.Module, alpha: float = 0.05) -> None:
        super().__init__()
        self.base = base
        self._alpha = alpha

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each element; logits and targets are float32 of the same shape, targets in [0, 1]."""
        excess = flow.sigmoid(logits) - targets
        return self.base(logits, targets) * (1.0 - flow.exp((excess - 1.0) / (self._alpha + 1e-4)))

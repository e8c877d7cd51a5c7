"""Element losses that YOLOv5 defines but does not train with; the recorded values of parity cover them."""

from kernels.runtime import Tensor, flow
from models.cross_entropy import class_weight


class QualityFocalLoss(flow.nn.Module):
    """Focal loss for targets that are themselves qualities (an IoU): times `alpha_t * |t - p| ** gamma`.

    Source: arXiv:2006.04388, eq. 4, with the class weight of the focal loss as in YOLOv5.
    """

    def __init__(self, base: flow.nn.Module, gamma: float = 1.5, alpha: float = 0.25) -> None:
        super().__init__()
        self.base = base
        self._gamma, self._alpha = gamma, alpha

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each element; logits and targets of one shape, float32, targets in [0, 1]."""
        distance = flow.abs(targets - flow.sigmoid(logits))
        return self.base(logits, targets) * class_weight(targets, self._alpha) * flow.pow(distance, self._gamma)


class BlurredCrossEntropy(flow.nn.Module):
    """Cross-entropy that forgives confident predictions where the target is 0: such labels are often just missing.

    Args:
        base: the element loss to modulate, times `1 - exp((p - t - 1) / (alpha + 1e-4))`.
        alpha: how far from the worst case (p = 1, t = 0) elements are forgiven.
    """

    def __init__(self, base: flow.nn.Module, alpha: float = 0.05) -> None:
        super().__init__()
        self.base = base
        self._alpha = alpha

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each element; logits and targets of one shape, float32, targets in [0, 1]."""
        excess = flow.sigmoid(logits) - targets
        return self.base(logits, targets) * (1.0 - flow.exp((excess - 1.0) / (self._alpha + 1e-4)))

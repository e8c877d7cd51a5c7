"""Elementwise binary cross-entropy and its variants for the objectness and class losses.

Every module takes logits and targets of the same shape and returns the unreduced loss of each element.
"""

from kernels.ops.detection_loss.function import FOCAL_ALPHA
from kernels.runtime import Tensor, flow


def smooth_targets(label_smoothing: float) -> tuple[float, float]:
    """Return the target values of the positive and of the negative class; 0 gives (1, 0).

    Source: arXiv:1902.04103, section 3.2, for two classes.
    """
    return 1.0 - 0.5 * label_smoothing, 0.5 * label_smoothing


class BinaryCrossEntropy(flow.nn.Module):
    """`-(w * t * log(p) + (1 - t) * log(1 - p))` with `p = sigmoid(logit)`, computed without overflow.

    Args:
        positive_weight: w, above 0; more than 1 favours recall. It is not part of the state dictionary.
    """

    def __init__(self, positive_weight: float = 1.0) -> None:
        super().__init__()
        # The op without the weight is cheaper.
        weight = None if positive_weight == 1.0 else flow.tensor([positive_weight], dtype=flow.float32)
        self.register_buffer("positive_weight", weight, persistent=False)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each element; logits and targets are float32 of the same shape, targets in [0, 1]."""
        return flow._C.binary_cross_entropy_with_logits_loss(
            logits, targets, weight=None, pos_weight=self.positive_weight, reduction="none"
        )


class FocalLoss(flow.nn.Module):
    """Focal loss: cross-entropy times `alpha_t * (1 - p_t) ** gamma`, which down-weights easy elements.

    Args:
        base: the element loss to modulate.
        gamma: focusing parameter; larger values down-weight easy elements more.
        alpha: weight of positive elements; negative ones have 1 - alpha.
    Source: arXiv:1708.02002, eq. 5, with `p_t` interpolated for targets between 0 and 1 as in YOLOv5.
    """

    def __init__(self, base: flow.nn.Module, gamma: float = 1.5, alpha: float = FOCAL_ALPHA) -> None:
        super().__init__()
        self.base = base
        self._gamma, self._alpha = gamma, alpha

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each element; logits and targets are float32 of the same shape, targets in [0, 1]."""
        probability = flow.sigmoid(logits)
        p_t = targets * probability + (1 - targets) * (1 - probability)
        return self.base(logits, targets) * class_weight(targets, self._alpha) * flow.pow(1.0 - p_t, self._gamma)


def class_weight(targets: Tensor, alpha: float) -> Tensor:
    """Return the focal loss's weight of each element: `alpha` for target 1, `1 - alpha` for 0, linear in between."""
    return targets * alpha + (1 - targets) * (1 - alpha)

import math

import numpy as np
import pytest

from kernels.runtime import flow
from models.cross_entropy import BinaryCrossEntropy, FocalLoss, smooth_targets

LOG2 = math.log(2)
# Logit 0 has the probability 1/2 and the cross-entropy log 2 for any target.
CASES = [
    (BinaryCrossEntropy(), 1.0, LOG2),
    (BinaryCrossEntropy(), 0.0, LOG2),
    (BinaryCrossEntropy(3.0), 1.0, 3 * LOG2),
    (BinaryCrossEntropy(3.0), 0.0, LOG2),
    (FocalLoss(BinaryCrossEntropy(), gamma=2.0, alpha=0.25), 1.0, 0.25 * 0.5**2 * LOG2),
    (FocalLoss(BinaryCrossEntropy(), gamma=2.0, alpha=0.25), 0.0, 0.75 * 0.5**2 * LOG2),
]


@pytest.mark.parametrize(("loss", "target", "expected"), CASES)
def test_losses_at_probability_half(loss: flow.nn.Module, target: float, expected: float) -> None:
    value = loss(flow.zeros(1), flow.tensor([target])).numpy()
    np.testing.assert_allclose(value, [expected], rtol=1e-6)  # float32


def test_label_smoothing_is_symmetric() -> None:
    assert smooth_targets(0.0) == (1.0, 0.0)
    assert smooth_targets(0.1) == pytest.approx((0.95, 0.05))


def test_huge_logits_stay_finite() -> None:
    logits = flow.tensor([-1000.0, 1000.0, -1000.0, 1000.0])
    value = BinaryCrossEntropy(2.0)(logits, flow.tensor([0.0, 0.0, 1.0, 1.0])).numpy()
    np.testing.assert_allclose(value, [0, 1000, 2000, 0])


def test_constants_are_not_in_state_dict() -> None:
    assert not BinaryCrossEntropy(2.0).state_dict()

import math

import numpy as np
import pytest

from kernels.runtime import flow
from models.cross_entropy import BinaryCrossEntropy
from tests.parity.loss_variants import BlurredCrossEntropy, QualityFocalLoss

LOG2 = math.log(2)
# Logit 0 has the probability 1/2 and the cross-entropy log 2 for any target.
CASES = [
    (QualityFocalLoss(BinaryCrossEntropy(), gamma=2.0, alpha=0.25), 0.75, (0.75 * 0.25 + 0.25 * 0.75) * 0.25**2 * LOG2),
    (BlurredCrossEntropy(BinaryCrossEntropy(), alpha=0.5), 0.0, (1 - math.exp(-0.5 / 0.5001)) * LOG2),
]


@pytest.mark.parametrize(("loss", "target", "expected"), CASES)
def test_losses_at_probability_half(loss: flow.nn.Module, target: float, expected: float) -> None:
    value = loss(flow.zeros(1), flow.tensor([target])).numpy()
    np.testing.assert_allclose(value, [expected], rtol=1e-6)  # float32

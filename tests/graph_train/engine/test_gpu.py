"""A step on a CUDA device supported by OneFlow's wheel (sm_60 to sm_89) agrees with the CPU."""

import numpy as np
import pytest

from graph_train.engine.state import TrainingState
from graph_train.engine.step import EagerStep, GraphStep, StepConfig
from graph_train.ranks.placement import Placement
from kernels.runtime import flow
from models.loss import DetectionLoss
from models.loss_config import LossConfig
from tests.graph_train.tiny import random_batch, tiny_network, tiny_schedule

pytestmark = pytest.mark.gpu
_STEPS = 4


def _losses(kind: type[EagerStep] | type[GraphStep], device: str) -> list[float]:
    placement, network = Placement(device), tiny_network()
    state = TrainingState(
        placement.replicate_module(network), placement.replicate_module(tiny_network()), rule="sgd", placement=placement
    )
    criterion = placement.replicate_module(DetectionLoss(network.head_geometry, LossConfig()))
    schedule = tiny_schedule()
    step = kind(state, criterion, StepConfig(schedule.weight_decays, placement=placement))
    losses = []
    for number in range(_STEPS):
        images, labels = (flow.tensor(array).to(device) for array in random_batch(number, side=64, labels=4))
        losses.append(step(images, labels, schedule.at(number, 0)).total)
    return losses


@pytest.mark.parametrize("kind", [EagerStep, GraphStep])
def test_gpu_losses_match_cpu(kind: type[EagerStep] | type[GraphStep]) -> None:
    np.testing.assert_allclose(_losses(kind, "cuda:0"), _losses(kind, "cpu"), rtol=1e-3)

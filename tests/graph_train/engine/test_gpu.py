"""Losses of steps on a GPU agree with the CPU's in float32, in each activation type; so do emulated 16-bit steps."""

import numpy as np
import pytest

from graph_train.engine.precision import compute_device
from graph_train.engine.state import Counters, TrainingState
from graph_train.engine.step import EagerStep, GraphStep, StepConfig
from graph_train.ranks.placement import Placement
from kernels.framework.activation_type import ActivationType
from kernels.plugin import emulates_cuda, is_loaded
from kernels.runtime import flow
from models.loss import DetectionLoss
from models.loss_config import LossConfig
from tests.graph_train.tiny import random_batch, tiny_network, tiny_schedule

STEPS = 4
TOLERANCES = {ActivationType.FLOAT32: 1e-3, ActivationType.FLOAT16: 1e-3, ActivationType.BFLOAT16: 5e-3}
"""Relative to the total loss. On the emulated device, float16 differs by 1e-4 and bfloat16 by 7e-4 at most."""
KINDS = pytest.mark.parametrize("kind", [EagerStep, GraphStep])


def losses(kind: type[EagerStep] | type[GraphStep], device: str, activation_type: ActivationType) -> list[float]:
    placement = Placement(device)
    network, average = (tiny_network().compute_in(activation_type) for _ in range(2))
    state = TrainingState(
        placement.replicate_module(network), placement.replicate_module(average), rule="sgd", placement=placement
    )
    if activation_type is ActivationType.FLOAT16:
        state.counters = Counters(loss_scale=1024.0)  # so small that no gradient overflows
    criterion = placement.replicate_module(DetectionLoss(network.head_geometry, LossConfig()))
    schedule = tiny_schedule()
    step = kind(state, criterion, StepConfig(schedule.weight_decays, placement=placement))
    results = []
    for number in range(STEPS):
        images, labels = (flow.tensor(array).to(device) for array in random_batch(number, side=64, labels=4))
        results.append(step(images, labels, schedule.at(number, 0)))
    assert all(result.finite for result in results) and any(result.updated for result in results)
    return [result.total for result in results]


@pytest.mark.gpu
@KINDS
@pytest.mark.parametrize("activation_type", ActivationType)
def test_gpu_losses_match_cpu(kind: type[EagerStep] | type[GraphStep], activation_type: ActivationType) -> None:
    best = compute_device("cuda:0", plugin=is_loaded()).activation_type(None)
    if activation_type not in (ActivationType.FLOAT32, best):
        pytest.skip(f"the GPU trains in {best.name.lower()}")
    ours, cpu = losses(kind, "cuda:0", activation_type), losses(kind, "cpu", ActivationType.FLOAT32)
    np.testing.assert_allclose(ours, cpu, rtol=TOLERANCES[activation_type])


@pytest.mark.skipif(not emulates_cuda(), reason="needs the emulated device: --kernels emulated-cuda")
@KINDS
@pytest.mark.parametrize("activation_type", [ActivationType.BFLOAT16, ActivationType.FLOAT16])
def test_emulated_losses_match_float32(
    kind: type[EagerStep] | type[GraphStep], activation_type: ActivationType
) -> None:
    exact = losses(EagerStep, "cpu", ActivationType.FLOAT32)
    rounded = losses(kind, "cpu", activation_type)
    np.testing.assert_allclose(rounded, exact, rtol=TOLERANCES[activation_type])

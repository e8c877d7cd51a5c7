import subprocess
import sys

import numpy as np
import pytest

from graph_train.engine.schedule import ema_decay
from graph_train.engine.step import EagerStep, GraphStep, StepResult
from kernels.runtime import flow
from kernels.update import UpdateRule
from tests.bfloat16 import computing_in_bfloat16
from tests.graph_train.tiny import random_batch, tiny_schedule, tiny_step

STEPS = 24
# Two image sizes and two label buckets; the iterations cross the warm-up (12), epochs of 6 and accumulation.
BATCHES = [{"side": 96 if number % 5 == 4 else 64, "labels": 20 if number % 7 == 3 else 5} for number in range(STEPS)]


def run(
    kind: type[EagerStep] | type[GraphStep], rule: UpdateRule
) -> tuple[list[StepResult], dict[str, np.ndarray], object]:
    step = tiny_step(kind, rule=rule)
    schedule = tiny_schedule(optimizer={"sgd": "SGD", "adam": "Adam", "adamw": "AdamW"}[rule])
    results = []
    for number, sizes in enumerate(BATCHES):
        if number % schedule.batches_per_epoch == 0:
            step.state.drop_pending_gradients()
        images, labels = random_batch(number, **sizes)
        settings = schedule.at(number, number // schedule.batches_per_epoch)
        results.append(step(flow.tensor(images), flow.tensor(labels), settings))
    step.state.flush()
    return results, step.state.arrays(), step


def assert_graph_equals_eager(rule: UpdateRule) -> None:
    eager, eager_arrays, _ = run(EagerStep, rule)
    graph, graph_arrays, step = run(GraphStep, rule)
    assert [(r.total, r.box, r.objectness, r.classes, r.updated) for r in eager] == [
        (r.total, r.box, r.objectness, r.classes, r.updated) for r in graph
    ]
    assert eager_arrays.keys() == graph_arrays.keys()
    different = [name for name in eager_arrays if not np.array_equal(eager_arrays[name], graph_arrays[name])]
    assert not different
    assert isinstance(step, GraphStep)
    assert len(step.compilations) == len({(b["side"], b["labels"]) for b in BATCHES})
    assert step.replayed == STEPS - len(step.compilations)


@pytest.mark.parametrize("rule", ["sgd", "adamw"])
def test_graph_equals_eager_bit_for_bit(rule: UpdateRule) -> None:
    assert_graph_equals_eager(rule)


def test_graph_equals_eager_in_bfloat16() -> None:
    with computing_in_bfloat16():
        assert_graph_equals_eager("sgd")


def test_graph_equals_eager_without_the_plugin() -> None:
    # The plugin cannot be unloaded, so the stock kernels need a process of their own.
    code = "from tests.graph_train.engine.test_step import assert_graph_equals_eager; assert_graph_equals_eager('sgd')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_training_lowers_the_loss() -> None:
    step, schedule = tiny_step(EagerStep), tiny_schedule()
    images, labels = random_batch(0, side=64, labels=3)
    losses = [step(flow.tensor(images), flow.tensor(labels), schedule.at(n, n // 6)).total for n in range(40)]
    assert losses[-1] < 0.8 * losses[0]


def test_non_finite_gradient_skips_the_update() -> None:
    step, schedule = tiny_step(EagerStep), tiny_schedule(batch_size=16)
    images, labels = random_batch(0, side=64, labels=3)
    weight = next(step.state.network.parameters())
    saved = weight.numpy().copy()
    with flow.no_grad():
        weight.copy_(flow.full(weight.shape, float("inf")))
    before = {name: value for name, value in step.state.arrays().items() if "running" not in name}
    result = step(flow.tensor(images), flow.tensor(labels), schedule.at(0, 0))
    after = step.state.arrays()
    assert not result.updated
    assert step.state.counters.skipped == 1
    assert step.state.counters.updates == 0
    assert all(np.array_equal(before[name], after[name]) for name in before if "tracked" not in name)
    with flow.no_grad():
        weight.copy_(flow.tensor(saved))


def test_gradients_of_small_batches_add_up() -> None:
    # Two batches accumulated give the update of their summed gradients; BatchNorm is per batch in both.
    schedule = tiny_schedule()
    images, labels = random_batch(0, side=64, labels=3)
    step = tiny_step(EagerStep)
    later = [schedule.at(number, number // 6) for number in range(13, 24)]
    wait = next(settings for settings in later if not settings.update)
    update = next(settings for settings in later if settings.update)
    step(flow.tensor(images), flow.tensor(labels), wait)
    once = step.state.arrays()
    pending = {name: value for name, value in once.items() if name.startswith("gradient_sum/")}
    assert any(np.abs(value).max() > 0 for value in pending.values())
    result = step(flow.tensor(images), flow.tensor(labels), update)
    assert result.updated
    done = step.state.arrays()
    assert all(not value.any() for name, value in done.items() if name.startswith("gradient_sum/"))
    assert all(np.abs(done[name]).max() > 0 for name in done if name.startswith("first_moment/"))


def test_average_follows_the_weights() -> None:
    step, schedule = tiny_step(EagerStep), tiny_schedule(batch_size=16)
    images, labels = random_batch(0, side=64, labels=3)
    name = "model.0.bn.running_mean"
    average = step.state.arrays()[f"ema/{name}"].astype(np.float64)
    for number in range(3):
        settings = schedule.at(number, 0)
        step(flow.tensor(images), flow.tensor(labels), settings)
        step.state.flush()
        arrays = step.state.arrays()
        decay = ema_decay(number + 1)
        average = average * decay + arrays[f"model/{name}"] * (1 - decay)
        np.testing.assert_allclose(arrays[f"ema/{name}"], average, rtol=1e-5, atol=1e-9)  # float32 arithmetic

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import astuple, replace

import numpy as np
import pytest

from graph_train.engine.schedule import ema_decay
from graph_train.engine.state import LOSS_SCALE_GROWTH_INTERVAL, Counters
from graph_train.engine.step import EagerStep, GraphStep, StepResult, TrainStep
from kernels.framework import eager_runs as eager_runs_module
from kernels.framework.activation_type import ActivationType
from kernels.ops.update.function import UpdateRule
from kernels.plugin import load_plugin
from kernels.runtime import Tensor, flow
from tests.graph_train.tiny import Step, random_batch, tiny_schedule, tiny_step
from tests.python_process import run_python

STEPS = 24
# Two image sizes and two label buckets; the iterations cross the warm-up (12), epochs of 6 and accumulation.
BATCHES = [{"side": 96 if number % 5 == 4 else 64, "labels": 20 if number % 7 == 3 else 5} for number in range(STEPS)]


def run(
    kind: type[Step], rule: UpdateRule, activation_type: ActivationType
) -> tuple[list[StepResult], dict[str, np.ndarray], Step]:
    step = tiny_step(kind, rule=rule, activation_type=activation_type)
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


def assert_graph_equals_eager(rule: UpdateRule, activation_type: ActivationType = ActivationType.FLOAT32) -> None:
    eager, eager_arrays, _ = run(EagerStep, rule, activation_type)
    graph, graph_arrays, step = run(GraphStep, rule, activation_type)
    assert [(r.total, r.box, r.objectness, r.classes, r.updated) for r in eager] == [
        (r.total, r.box, r.objectness, r.classes, r.updated) for r in graph
    ]
    assert eager_arrays.keys() == graph_arrays.keys()
    different = [name for name in eager_arrays if not np.array_equal(eager_arrays[name], graph_arrays[name])]
    assert not different
    assert len(step.compilations) == len({(b["side"], b["labels"]) for b in BATCHES})
    assert step.replayed == STEPS - len(step.compilations)


def test_only_graph_step_reports_compile_time() -> None:
    shapes, settings = ((4, 3, 64, 64), (4, 16, 5)), tiny_schedule().at(0, 0)
    for kind in (EagerStep, GraphStep):
        step: TrainStep = tiny_step(kind)
        assert (step.compile_seconds, step.summary()) == (0, "")
        step.prepare(*shapes, settings)
        assert (step.compile_seconds > 0) == step.compiles == ("1 compiled" in step.summary()) == (kind is GraphStep)
        assert len(step.jobs()) == step.compiles


@pytest.mark.parametrize("rule", ["sgd", "adam", "adamw"])
def test_graph_matches_eager_bitwise(rule: UpdateRule) -> None:
    assert_graph_equals_eager(rule)


def test_frequent_smaller_batches_are_compiled() -> None:
    """Graph and eager steps alternate while a step is pending, and give the same bits as graph steps only."""
    load_plugin("require")
    schedule = tiny_schedule()

    def trained(eager_runs: int) -> tuple[list[StepResult], dict[str, np.ndarray], GraphStep]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(eager_runs_module, "EAGER_RUNS", eager_runs)
            step = tiny_step(GraphStep)
            results = []
            for number in range(9):
                images, labels = random_batch(number, side=64, labels=5)
                size = 2 if number % 2 else 4
                step.start(flow.tensor(images[:size]), flow.tensor(labels[:size]), schedule.at(number, 0))
                if number:
                    results.append(step.finish())
            results.append(step.finish())
        step.state.flush()
        return results, step.state.arrays(), step

    results, arrays, mixed = trained(3)
    assert (len(mixed.compilations), mixed.eager, mixed.replayed) == (2, 3, 4)
    assert "3 smaller batches op by op" in mixed.summary()
    expected, expected_arrays, compiled = trained(0)
    assert (len(compiled.compilations), compiled.eager, compiled.replayed) == (2, 0, 7)
    np.testing.assert_array_equal([astuple(result) for result in results], [astuple(result) for result in expected])
    assert [name for name in arrays if not np.array_equal(arrays[name], expected_arrays[name])] == []


def test_graph_matches_eager_in_bfloat16() -> None:
    load_plugin("require")
    assert_graph_equals_eager("sgd", ActivationType.BFLOAT16)


@pytest.mark.parametrize("kind", [EagerStep, GraphStep])
def test_bfloat16_step_does_not_affect_float32_step(kind: type[EagerStep] | type[GraphStep]) -> None:
    """The data type belongs to the network: two steps that alternate train as they would separately."""
    load_plugin("require")
    settings = replace(tiny_schedule().at(20, 3), update=True)
    types = (ActivationType.FLOAT32, ActivationType.BFLOAT16)

    def trained(*activation_types: ActivationType) -> dict[ActivationType, dict[str, np.ndarray]]:
        steps = {one: tiny_step(kind, activation_type=one) for one in activation_types}
        for number in range(4):
            images, labels = map(flow.tensor, random_batch(number, side=64, labels=5))
            for step in steps.values():
                assert step(images, labels, settings).updated
        return {one: step.state.arrays() for one, step in steps.items()}

    together = trained(*types)
    for one in types:
        for name, array in trained(one)[one].items():
            np.testing.assert_array_equal(together[one][name], array, err_msg=name)
    name = "model/model.0.conv.weight"
    assert not np.array_equal(together[types[0]][name], together[types[1]][name])


def test_graph_matches_eager_without_plugin() -> None:
    # The plugin cannot be unloaded, so stock kernels need a child process.
    code = "from tests.graph_train.engine.test_step import assert_graph_equals_eager; assert_graph_equals_eager('sgd')"
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr[-3000:]


@contextmanager
def overflow(step: EagerStep | GraphStep) -> Iterator[None]:
    """Make activations overflow in the steps started within the context."""
    scale = step.state.network.model[1].bn.weight
    sound = flow.tensor(scale.numpy().copy())
    with flow.no_grad():
        scale.fill_(3e38)
    yield
    with flow.no_grad():
        scale.copy_(sound)


@pytest.mark.parametrize("kind", [EagerStep, GraphStep])
@pytest.mark.parametrize("activation_type", [ActivationType.FLOAT32, ActivationType.FLOAT16])
def test_pipelined_steps_match_bitwise(
    kind: type[EagerStep] | type[GraphStep], activation_type: ActivationType, request: pytest.FixtureRequest
) -> None:
    """Include a skipped update, which changes the scalars of a step that has already started."""
    if activation_type is ActivationType.FLOAT16 and request.config.getoption("--kernels") != "emulated-cuda":
        pytest.skip("float16 activations are CUDA's: run with --kernels emulated-cuda")
    schedule = tiny_schedule()

    def trained(*, ahead: bool) -> tuple[list[StepResult], list[Counters], dict[str, np.ndarray]]:
        step = tiny_step(kind, rule="adam", activation_type=activation_type)
        step.state.counters = Counters(loss_scale=1024.0 if activation_type is ActivationType.FLOAT16 else 1.0)
        results: list[StepResult] = []
        counters: list[Counters] = []
        for number in range(16):
            images, labels = map(flow.tensor, random_batch(number, side=64, labels=5))
            settings = replace(schedule.at(number, 0), update=number % 3 != 1)
            with overflow(step) if number in (3, 7, 8) else nullcontext():
                step.start(images, labels, settings)
            while len(results) <= number - ahead:
                results.append(step.finish())
                counters.append(step.state.counters)
        if ahead:
            results.append(step.finish())
            counters.append(step.state.counters)
        step.state.flush()
        return results, counters, step.state.arrays()

    at_once, ahead = trained(ahead=False), trained(ahead=True)
    assert [result.skipped for result in at_once[0]] == [number in (3, 8) for number in range(16)]
    np.testing.assert_array_equal([*map(astuple, ahead[0])], [*map(astuple, at_once[0])])
    assert ahead[1] == at_once[1]
    for name, value in at_once[2].items():
        np.testing.assert_array_equal(ahead[2][name], value, err_msg=name)
        assert np.isfinite(value).all(), name


def test_at_most_two_steps_in_flight() -> None:
    step = tiny_step(EagerStep)
    images, labels = map(flow.tensor, random_batch(0, side=64, labels=5))
    for _ in range(2):
        step.start(images, labels, tiny_schedule().at(0, 0))
    with pytest.raises(RuntimeError, match="finish the older one first"):
        step.start(images, labels, tiny_schedule().at(0, 0))
    assert step.finish() != step.finish()


def test_training_lowers_loss() -> None:
    step, schedule = tiny_step(EagerStep), tiny_schedule()
    images, labels = random_batch(0, side=64, labels=3)
    losses = [step(flow.tensor(images), flow.tensor(labels), schedule.at(n, n // 6)).total for n in range(40)]
    assert losses[-1] < 0.8 * losses[0]


def test_non_finite_gradient_skips_update() -> None:
    step, schedule = tiny_step(EagerStep), tiny_schedule(batch_size=16)
    images, labels = random_batch(0, side=64, labels=3)
    weight = next(step.state.network.parameters())
    with flow.no_grad():
        weight.copy_(flow.full(weight.shape, float("inf")))
    before = {name: value for name, value in step.state.arrays().items() if "running" not in name}
    result = step(flow.tensor(images), flow.tensor(labels), schedule.at(0, 0))
    after = step.state.arrays()
    assert not result.updated
    assert step.state.counters.skipped == 1
    assert step.state.counters.updates == 0
    assert all(np.array_equal(before[name], after[name]) for name in before if "tracked" not in name)


def test_loss_scale_known_values() -> None:
    """The scale is halved after an overflow, doubled after 2000 good updates, and unchanged by accumulation."""
    update, wait = (replace(tiny_schedule().at(0, 0), update=update) for update in (True, False))
    counters = Counters(loss_scale=1024.0, good_updates=LOSS_SCALE_GROWTH_INTERVAL - 2)
    counters = counters.after(update, updated=True, scaled=True)
    assert (counters.loss_scale, counters.good_updates, counters.updates) == (1024, LOSS_SCALE_GROWTH_INTERVAL - 1, 1)
    waiting = counters.after(wait, updated=False, scaled=True)
    assert waiting == replace(counters, pending_decay=1.0)
    grown = counters.after(update, updated=True, scaled=True)
    assert (grown.loss_scale, grown.good_updates, grown.updates) == (2048, 0, 2)
    halved = grown.after(update, updated=False, scaled=True)
    assert (halved.loss_scale, halved.skipped, halved.skipped_in_row, halved.updates) == (1024, 1, 1, 2)
    again = halved.after(update, updated=False, scaled=True)
    assert (again.loss_scale, again.skipped_in_row) == (512, 2)
    assert again.after(update, updated=True, scaled=True).skipped_in_row == 0
    # Without a loss scale, nothing changes.
    unscaled = replace(counters, loss_scale=1.0)
    assert [unscaled.after(update, updated=updated, scaled=False).loss_scale for updated in (True, False)] == [1, 1]


def test_gradients_accumulate() -> None:
    """BatchNorm is per batch, so accumulating A and B gives the sum of both gradients."""
    schedule = tiny_schedule()
    batches = [tuple(map(flow.tensor, random_batch(number, side=64, labels=3))) for number in (0, 1)]
    later = [schedule.at(number, number // 6) for number in range(13, 24)]
    wait = next(settings for settings in later if not settings.update)
    update = next(settings for settings in later if settings.update)

    def sums(*given: tuple[Tensor, ...]) -> tuple[EagerStep | GraphStep, dict[str, np.ndarray]]:
        step = tiny_step(EagerStep)
        for images, labels in given:
            step(images, labels, wait)
        found = {name: value for name, value in step.state.arrays().items() if name.startswith("gradient_sum/")}
        assert all(np.abs(value).max() > 0 for value in found.values())
        return step, found

    step, both = sums(*batches)
    alone = [sums(batch)[1] for batch in batches]
    for name, value in both.items():
        np.testing.assert_allclose(value, alone[0][name] + alone[1][name], rtol=1e-5, atol=1e-6, err_msg=name)
        assert not np.allclose(alone[0][name], alone[1][name], rtol=1e-3)
    images, labels = batches[0]
    assert step(images, labels, update).updated
    done = step.state.arrays()
    assert all(not value.any() for name, value in done.items() if name.startswith("gradient_sum/"))
    assert all(np.abs(done[name]).max() > 0 for name in done if name.startswith("first_moment/"))


def test_ema_follows_weights() -> None:
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

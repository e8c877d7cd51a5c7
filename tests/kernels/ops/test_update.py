"""Parameter update: PyTorch's formulas in NumPy float64, fused against composed, graph against eager."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import pytest

from kernels.framework import dispatch
from kernels.ops.update.function import (
    HyperIndex,
    UpdateRule,
    UpdateSettings,
    UpdateState,
    update_parameters,
    update_parameters_reference,
)
from kernels.runtime import Tensor, flow
from tests.kernels.ops.launches import launches_of, shuffle_threads

_SHAPES = ((7,), (4, 3, 3, 3), (5,), (1,), (33, 17))
_GROUPS = (0, 1, 2, 0, 1)
_RULES: tuple[UpdateRule, ...] = ("sgd", "adam", "adamw")
_MAX_NORM = 10.0
_Array = npt.NDArray[np.float64]
_Update = Callable[..., Tensor]
_IMPLEMENTATIONS = [
    pytest.param(update_parameters_reference, id="composed"),
    pytest.param(update_parameters, id="fused"),
]


class _Store(flow.nn.Module):
    """Parameters with their buffers, registered as in the trainer."""

    def __init__(self, rule: UpdateRule, values: Sequence[_Array], groups: Sequence[int] = _GROUPS) -> None:
        super().__init__()
        self._shapes = [value.shape for value in values]
        parameters = []
        for index, value in enumerate(values):
            parameters.append(flow.nn.Parameter(flow.tensor(value.astype(np.float32))))
            self.register_parameter(f"parameter_{index}", parameters[-1])
        names = ["gradient_sum", "first_moment", *([] if rule == "sgd" else ["second_moment"])]
        flats = {name: flow.zeros(sum(value.size for value in values)) for name in names}
        flats["average"] = flow.tensor(np.concatenate([value.reshape(-1) for value in values]).astype(np.float32))
        for name, flat in flats.items():
            self.register_buffer(name, flat)
        self.state = UpdateState(parameters, groups, **flats)

    def arrays(self) -> dict[str, npt.NDArray[np.float32]]:
        """Return the arrays by name and parameter number."""
        arrays = {}
        for name, tensor in self.state_dict().items():
            if not name.startswith("parameter"):
                ends = np.cumsum([int(np.prod(shape)) for shape in self._shapes])
                for index, part in enumerate(np.split(tensor.numpy(), ends[:-1])):
                    arrays[f"{name}_{index}"] = part.reshape(self._shapes[index])
            else:
                arrays[name] = tensor.numpy()
        return arrays


def assert_same_arrays(
    first: Mapping[str, npt.NDArray[np.float32]], second: Mapping[str, npt.NDArray[np.float32]]
) -> None:
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name], err_msg=name)


class _UpdateGraph(flow.nn.Graph):
    def __init__(self, store: _Store, rule: UpdateRule, update: _Update) -> None:
        super().__init__()
        self.store = store
        self._update = update
        self._update_state = store.state
        self._rule: UpdateRule = rule

    def build(self, hyper: Tensor, *gradients: Tensor) -> Tensor:
        return self._update(self._rule, self._update_state, gradients, hyper, max_norm=_MAX_NORM)


@dataclass
class _Expected:
    """The state in float64, updated by PyTorch's formulas."""

    rule: UpdateRule
    parameter: list[_Array]
    updates: int = 0
    gradient_sum: list[_Array] = field(init=False)
    first_moment: list[_Array] = field(init=False)
    second_moment: list[_Array] = field(init=False)
    average: list[_Array] = field(init=False)

    def __post_init__(self) -> None:
        self.gradient_sum = [np.zeros_like(value) for value in self.parameter]
        self.first_moment = [np.zeros_like(value) for value in self.parameter]
        self.second_moment = [np.zeros_like(value) for value in self.parameter]
        self.average = [value.copy() for value in self.parameter]

    def step(self, gradients: Sequence[_Array], settings: UpdateSettings) -> tuple[float, float]:
        self.gradient_sum = [total + gradient for total, gradient in zip(self.gradient_sum, gradients, strict=True)]
        if not settings.update:
            return np.nan, 0.0
        unscaled = [total / settings.loss_scale for total in self.gradient_sum]
        self.gradient_sum = [np.zeros_like(value) for value in self.parameter]
        norm = float(np.sqrt(sum(float((gradient**2).sum()) for gradient in unscaled)))
        if not np.isfinite(norm):
            return norm, 0.0
        self.updates += 1
        clip = min(1.0, _MAX_NORM / (norm + 1e-6))
        for index, gradient in enumerate(unscaled):
            self._update(index, gradient * clip, settings)
            decay = settings.ema_decay
            self.average[index] = decay * self.average[index] + (1 - decay) * self.parameter[index]
        return norm, 1.0

    def _update(self, index: int, gradient: _Array, settings: UpdateSettings) -> None:
        rate, decay = settings.learning_rates[_GROUPS[index]], settings.weight_decays[_GROUPS[index]]
        value, momentum, beta2 = self.parameter[index], settings.momentum, 0.999
        if self.rule == "adamw":
            value = value * (1 - rate * decay)
        else:
            gradient = gradient + decay * value
        if self.rule == "sgd":
            self.first_moment[index] = momentum * self.first_moment[index] + gradient
            self.parameter[index] = value - rate * (gradient + momentum * self.first_moment[index])
            return
        self.first_moment[index] = momentum * self.first_moment[index] + (1 - momentum) * gradient
        self.second_moment[index] = beta2 * self.second_moment[index] + (1 - beta2) * gradient**2
        mean = self.first_moment[index] / (1 - momentum**self.updates)
        root = np.sqrt(self.second_moment[index] / (1 - beta2**self.updates))
        self.parameter[index] = value - rate * mean / (root + 1e-8)


def _hyper(settings: UpdateSettings, adam_step: int = 1) -> Tensor:
    return flow.tensor(replace(settings, adam_step=adam_step).vector())


def _settings(step: int) -> UpdateSettings:
    """Return settings that vary per step; every third step only accumulates."""
    return UpdateSettings(
        learning_rates=(0.1 / (step + 1), 0.01 * (step + 1), 0.02),
        weight_decays=(0.0, 0.05, 0.0),
        momentum=0.8 + 0.01 * step,
        ema_decay=0.9999 * (1 - np.exp(-(step + 1) / 2000)),
        update=step % 3 != 1,
        loss_scale=float(2 ** (step % 4)),
    )


_NAN_STEP = 4
_STEPS = 10


def _gradients(step: int, generator: np.random.Generator) -> list[_Array]:
    # The loss scale must be constant while gradients accumulate, so both steps of such a pair use that of the second.
    scale = _settings(step + 1 if step % 3 == 1 else step).loss_scale
    # Alternately below and above the clipping norm; rounded, so that float32 holds them exactly.
    size = scale * (0.1 if step % 2 else 3.0)
    gradients = [(generator.standard_normal(shape) * size).astype(np.float32).astype(np.float64) for shape in _SHAPES]
    if step == _NAN_STEP:
        gradients[2][1] = np.nan
    return gradients


def _initial(generator: np.random.Generator) -> list[_Array]:
    return [generator.standard_normal(shape).astype(np.float32).astype(np.float64) for shape in _SHAPES]


def test_vector_keeps_precision_of_small_differences() -> None:
    hyper = UpdateSettings(
        learning_rates=(0.1, 0.01, 0.02),
        weight_decays=(0.0, 5e-4, 0.0),
        momentum=0.9,
        ema_decay=0.9999,
        update=True,
        loss_scale=1024.0,
        adam_step=2,
    ).vector()
    assert hyper.dtype == np.float32
    assert hyper[HyperIndex.LEARNING_RATE_0] == np.float32(0.1)
    assert hyper[HyperIndex.WEIGHT_DECAY_1] == np.float32(5e-4)
    assert hyper[HyperIndex.ONE_MINUS_EMA_DECAY] == np.float32(1e-4)
    assert hyper[HyperIndex.ONE_MINUS_BETA2] == np.float32(1e-3)
    assert hyper[HyperIndex.BIAS_CORRECTION1] == np.float32(0.19)
    assert hyper[HyperIndex.INVERSE_LOSS_SCALE] == 2.0**-10
    assert hyper[HyperIndex.UPDATE] == 1


@pytest.mark.parametrize("update", _IMPLEMENTATIONS)
def test_single_sgd_step_known_values(update: _Update) -> None:
    # One weight 2, momentum buffer 1, gradient 4 of a loss scaled by 2, decay 0.5, rate 0.25, momentum 0.5, EMA 2.
    # g = 2; d = 2 + 0.5 * 2 = 3; m = 0.5 * 1 + 3 = 3.5; step = 3 + 0.5 * 3.5 = 4.75; p = 2 - 0.25 * 4.75 = 0.8125
    # EMA with decay 0.75: 0.75 * 2 + 0.25 * 0.8125 = 1.703125. All exact in binary.
    store = _Store("sgd", [np.array([2.0])], [1])
    store.state.first_moment.copy_(flow.tensor([1.0]))
    hyper = _hyper(UpdateSettings((0.0, 0.25, 0.0), (0.0, 0.5, 0.0), 0.5, 0.75, True, 2.0))
    result = update("sgd", store.state, [flow.tensor([4.0])], hyper)
    arrays = store.arrays()
    assert arrays["parameter_0"][0] == 0.8125
    assert arrays["first_moment_0"][0] == 3.5
    assert arrays["average_0"][0] == 1.703125
    assert arrays["gradient_sum_0"][0] == 0.0
    assert result.numpy().tolist() == [2.0, 1.0]


@pytest.mark.parametrize("update", _IMPLEMENTATIONS)
@pytest.mark.parametrize("rule", _RULES)
def test_ten_steps_match_float64_formulas(rule: UpdateRule, update: _Update) -> None:
    generator = np.random.default_rng(7)
    start = _initial(generator)
    store, expected = _Store(rule, start), _Expected(rule, [value.copy() for value in start])
    for step in range(_STEPS):
        settings, gradients = _settings(step), _gradients(step, generator)
        result = update(
            rule,
            store.state,
            [flow.tensor(gradient.astype(np.float32)) for gradient in gradients],
            _hyper(settings, expected.updates + 1),
            max_norm=_MAX_NORM,
        )
        norm, updated = expected.step(gradients, settings)
        np.testing.assert_allclose(result.numpy(), [norm, updated], rtol=1e-6)
    arrays = store.arrays()
    assert expected.updates == 6  # ten steps, three of which accumulate only, one not finite
    for index in range(len(_SHAPES)):
        # float32 rounding of about ten operations in each of six updates, on values near 1
        for name in ("parameter", "first_moment", "average"):
            np.testing.assert_allclose(arrays[f"{name}_{index}"], getattr(expected, name)[index], rtol=2e-5, atol=3e-6)


@pytest.mark.parametrize("update", _IMPLEMENTATIONS)
@pytest.mark.parametrize("rule", _RULES)
def test_graph_matches_eager_bitwise(rule: UpdateRule, update: _Update) -> None:
    generator = np.random.default_rng(11)
    start = _initial(generator)
    eager, captured = _Store(rule, start), _Store(rule, start)
    graph = _UpdateGraph(captured, rule, update)
    for step in range(_STEPS):
        gradients = [flow.tensor(gradient.astype(np.float32)) for gradient in _gradients(step, generator)]
        hyper = _hyper(_settings(step), step + 1)
        ours = update(rule, eager.state, gradients, hyper, max_norm=_MAX_NORM)
        theirs = graph(hyper, *gradients)
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
        assert_same_arrays(eager.arrays(), captured.arrays())


@pytest.mark.parametrize("rule", _RULES)
def test_fused_matches_composed_bitwise(rule: UpdateRule) -> None:
    # Both round every product and sum alike; only the order of the squares in the (float64) norm differs.
    generator = np.random.default_rng(13)
    start = _initial(generator)
    fused, composed = _Store(rule, start), _Store(rule, start)
    for step in range(_STEPS):
        gradients = [flow.tensor(gradient.astype(np.float32)) for gradient in _gradients(step, generator)]
        hyper = _hyper(_settings(step), step + 1)
        ours = update_parameters(rule, fused.state, gradients, hyper, max_norm=_MAX_NORM)
        with flow.no_grad():
            theirs = update_parameters_reference(rule, composed.state, gradients, hyper, max_norm=_MAX_NORM)
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
        assert_same_arrays(fused.arrays(), composed.arrays())


@pytest.mark.parametrize("update", _IMPLEMENTATIONS)
@pytest.mark.parametrize("rule", _RULES)
def test_gradients_as_one_flat_tensor(rule: UpdateRule, update: _Update) -> None:
    generator = np.random.default_rng(17)
    start, gradients = _initial(generator), _initial(generator)
    whole, apart = _Store(rule, start), _Store(rule, start)
    flat = flow.tensor(np.concatenate([gradient.ravel() for gradient in gradients]).astype(np.float32))
    ours = update(rule, whole.state, [flat], _hyper(_settings(0)))
    theirs = update(rule, apart.state, [flow.tensor(g.astype(np.float32)) for g in gradients], _hyper(_settings(0)))
    np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
    assert_same_arrays(whole.arrays(), apart.arrays())
    assert all(array.any() for name, array in whole.arrays().items() if not name.startswith("gradient_sum"))


@pytest.mark.parametrize("update", _IMPLEMENTATIONS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e38])
@pytest.mark.parametrize("rule", _RULES)
def test_nonfinite_gradient_resets_only_accumulation(rule: UpdateRule, bad: float, update: _Update) -> None:
    generator = np.random.default_rng(3)
    store = _Store(rule, _initial(generator))
    before = store.arrays()
    gradients = [flow.tensor(value.astype(np.float32)) for value in _initial(generator)]
    gradients[4][:, 0] = bad  # a norm of several 3e38 overflows float32, the numbers themselves do not
    result = update(rule, store.state, gradients, _hyper(_settings(0))).numpy()
    assert not np.isfinite(result[0])
    assert result[1] == 0
    assert_same_arrays(store.arrays(), before)


@pytest.mark.parametrize("update", _IMPLEMENTATIONS)
def test_accumulation_adds_gradients_and_reports_no_norm(update: _Update) -> None:
    store = _Store("sgd", [np.array([1.0, 2.0])], [0])
    hyper = _hyper(_settings(1))
    for total in ([3.0, -1.0], [6.0, -2.0]):
        result = update("sgd", store.state, [flow.tensor([3.0, -1.0])], hyper).numpy()
        assert np.isnan(result[0])
        assert result[1] == 0
        assert store.arrays()["gradient_sum_0"].tolist() == total
    assert store.arrays()["parameter_0"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize("update", _IMPLEMENTATIONS)
def test_norm_of_millions_of_elements_is_accurate(update: _Update) -> None:
    values = np.random.default_rng(5).random(5_000_000).astype(np.float32)
    store = _Store("sgd", [np.zeros(values.shape)], [1])
    result = update("sgd", store.state, [flow.tensor(values)], _hyper(_settings(0))).numpy()
    assert result[0] == pytest.approx(np.linalg.norm(values.astype(np.float64)), rel=3e-7)


def test_wrong_arguments_raise() -> None:
    store = _Store("sgd", [np.zeros(2)], [0])
    hyper, gradient = _hyper(_settings(0)), flow.zeros(2)
    with pytest.raises(ValueError, match="adagrad"):
        update_parameters("adagrad", store.state, [gradient], hyper)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="1 parameters, but 2 gradients"):
        update_parameters("sgd", store.state, [gradient, gradient], hyper)
    with pytest.raises(ValueError, match="second moment"):
        update_parameters("adam", store.state, [gradient], hyper)
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        update_parameters("sgd", store.state, [flow.zeros(3)], hyper)
    with pytest.raises(ValueError, match="group 3"):
        _Store("sgd", [np.zeros(2)], [3])
    with pytest.raises(ValueError, match="1 parameters and 2 groups"):
        _Store("sgd", [np.zeros(2)], [0, 0])
    state = store.state
    with pytest.raises(ValueError, match=r"first_moment of shape \(3,\)"):
        UpdateState(state.parameters, state.groups, state.average, state.gradient_sum, flow.zeros(3))
    with pytest.raises(ValueError, match="adam_step=0"):
        _hyper(_settings(0), 0)


_Shapes = dict[str, list[tuple[int, ...]]]


def _fused_call(rule: int, shapes: _Shapes, floats: Sequence[float]) -> None:
    op = "graph_train_update_adam" if "second_moment" in shapes else "graph_train_update_sgd"
    built = dispatch.build_op(op, tuple((name, len(row)) for name, row in shapes.items()))
    tensors = [flow.zeros(*shape) for row in shapes.values() for shape in row]
    dispatch.call(built, tensors, integers=(rule, 0), floats=floats)


def test_op_rejects_out_of_bounds_shapes() -> None:
    fitting: _Shapes = {
        "parameter": [(2, 3), (4,)],
        "ema": [(10,)],
        "gradient_sum": [(10,)],
        "first_moment": [(10,)],
        "gradient": [(2, 3), (4,)],
        "hyper": [(17,)],
    }
    adam = {name: fitting[name] for name in ("parameter", "ema", "gradient_sum", "first_moment")}
    adam |= {"second_moment": [(10,)], "gradient": fitting["gradient"], "hyper": fitting["hyper"]}
    floats = (_MAX_NORM, 0.0, 2.0)
    _fused_call(0, fitting, floats)
    _fused_call(1, adam, floats)
    wrong: list[tuple[int, _Shapes, Sequence[float]]] = [
        (0, {**fitting, "gradient": [(10,), (4,)]}, floats),
        (0, {**fitting, "gradient": [(4,), (2, 3)]}, floats),  # as many elements, in another order
        (0, {**fitting, "gradient": [(2, 5)]}, floats),
        (0, {**fitting, "ema": [(9,)]}, floats),
        (0, fitting, floats[:2]),
        (0, fitting, (*floats, 1.0)),
        (0, fitting, (_MAX_NORM, 0.0, 3.0)),
        (1, fitting, floats),
        (0, adam, floats),
        (1, {**adam, "second_moment": [(9,)]}, floats),
    ]
    for rule, shapes, given in wrong:
        with pytest.raises(RuntimeError, match="check_failed_error"):
            _fused_call(rule, shapes, given)


@pytest.mark.parametrize("rule", _RULES)
def test_many_small_parameters_and_an_empty_one(rule: UpdateRule) -> None:
    # More elements than a thread's share, in pieces of all sizes.
    generator = np.random.default_rng(23)
    shapes = [(int(size),) for size in generator.integers(1, 300, 900)] + [(40_000,), (0,), (7,)]
    start, gradients = ([generator.standard_normal(shape) for shape in shapes] for _ in range(2))
    fused, composed = (_Store(rule, start, [0] * len(shapes)) for _ in range(2))
    given = [flow.tensor(gradient.astype(np.float32)) for gradient in gradients]
    ours = update_parameters(rule, fused.state, given, _hyper(_settings(0)))
    with flow.no_grad():
        theirs = update_parameters_reference(rule, composed.state, given, _hyper(_settings(0)))
    np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
    assert_same_arrays(fused.arrays(), composed.arrays())


@pytest.mark.parametrize("rule", _RULES)
def test_single_launch_on_cuda(rule: UpdateRule, request: pytest.FixtureRequest) -> None:
    generator = np.random.default_rng(31)
    store = _Store(rule, _initial(generator))
    gradients = [flow.tensor(gradient.astype(np.float32)) for gradient in _gradients(0, generator)]
    emulated = request.config.getoption("--kernels") == "emulated-cuda"
    for step in (0, 1):  # one that updates, one that accumulates
        hyper = _hyper(_settings(step))
        launches = launches_of(partial(update_parameters, rule, store.state, gradients, hyper))
        assert launches == ({"update_parameters": 1} if emulated else {})


def test_results_do_not_depend_on_thread_order() -> None:
    outcomes = []
    for seed in (0, 1, 2):
        shuffle_threads(seed)
        generator = np.random.default_rng(37)
        store = _Store("adamw", [generator.standard_normal((9000,)), generator.standard_normal((64, 3))], [1, 2])
        gradients = [flow.tensor(generator.standard_normal(shape).astype(np.float32)) for shape in ((9000,), (64, 3))]
        result = update_parameters("adamw", store.state, gradients, _hyper(_settings(0))).numpy()
        outcomes.append({"result": result, **store.arrays()})
    shuffle_threads(0)
    for outcome in outcomes[1:]:
        assert_same_arrays(outcome, outcomes[0])

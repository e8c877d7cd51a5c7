"""The fused loss against the composed one and the recorded vectors; graph against eager."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from kernels.framework.module_graph import ModuleGraph
from kernels.ops.detection_loss.function import LossSetting, detection_loss, rebalance
from kernels.runtime import Tensor, flow
from models.loss import DetectionLoss, fused_settings
from models.loss_config import LossConfig
from models.padded_labels import label_capacity, pad_labels
from models.targets import HeadGeometry
from tests.distributed.jobs import free_port
from tests.kernels.ops.launches import launches_of, shuffle_threads

_Array = npt.NDArray[np.float32]
_ANCHORS = np.array([[[1.25, 1.625], [2, 3.75]], [[1.875, 3.8125], [3.875, 2.8125]]], np.float32)


def _channels_last(raw_map: _Array) -> _Array:
    """Reorder (B, anchors, rows, columns, outputs) to (B, rows, columns, anchors * outputs)."""
    batch, anchors, rows, columns, outputs = raw_map.shape
    return np.ascontiguousarray(raw_map.transpose(0, 2, 3, 1, 4)).reshape(batch, rows, columns, anchors * outputs)


class _Head(flow.nn.Module):
    """Maps as parameters, with everything that the loss needs."""

    def __init__(
        self, maps: list[_Array], anchors: _Array, config: LossConfig, balance: npt.ArrayLike, scale: float = 1.0
    ) -> None:
        super().__init__()
        self.levels, self._anchors = len(maps), anchors.shape[1]
        for level, raw_map in enumerate(maps):
            self.register_parameter(f"map{level}", flow.nn.Parameter(flow.tensor(_channels_last(raw_map))))
        self.register_buffer("settings", flow.tensor(fused_settings(anchors, config)))
        self.register_buffer("balance", flow.tensor(np.asarray(balance, np.float32)))
        self.register_buffer("scale", flow.tensor(np.array([scale, 0.5], np.float32)))

    def forward(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the total (1,) and the parts (3 + levels,)."""
        maps = [getattr(self, f"map{level}") for level in range(self.levels)]
        return detection_loss(maps, labels, self.settings, self.balance, self.scale)

    def maps(self) -> list[Tensor]:
        return [getattr(self, f"map{level}") for level in range(self.levels)]

    def gradients(self) -> list[_Array]:
        """Return the gradients, (B, anchors, rows, columns, outputs) each."""
        return [
            grad.reshape(*grad.shape[:3], self._anchors, -1).transpose(0, 3, 1, 2, 4)
            for grad in (raw_map.grad.numpy() for raw_map in self.maps())
        ]


class _DescentGraph(flow.nn.Graph):
    """A step of gradient descent with rate 1, which subtracts the gradient from each map."""

    def __init__(self, head: _Head) -> None:
        super().__init__()
        self.head = head
        self.add_optimizer(flow.optim.SGD(head.maps(), lr=1.0))

    def build(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        total, parts = self.head(labels)
        total.backward()
        return total, parts


def _fused(head: _Head, labels: _Array) -> tuple[float, _Array, list[_Array]]:
    total, parts = head(flow.tensor(labels))
    total.backward()
    return float(total.numpy()[0]), parts.numpy(), head.gradients()


def _random_labels(classes: int, batch: int, max_labels: int, seed: int = 0) -> _Array:
    generator = np.random.default_rng(seed)
    labels = np.zeros((batch, max(16, max_labels), 5), np.float32)
    labels[..., 0] = -1
    for image in range(batch):
        count = int(generator.integers(0, max_labels + 1))
        labels[image, :count, 0] = generator.integers(0, classes, count)
        labels[image, :count, 1:3] = generator.uniform(0, 1, (count, 2))
        labels[image, :count, 3:] = generator.uniform(0.03, 0.6, (count, 2))
    return labels


def _random_case(
    classes: int, batch: int = 3, seed: int = 0, max_labels: int = 9
) -> tuple[list[_Array], _Array, HeadGeometry]:
    generator = np.random.default_rng(seed)
    maps = [
        generator.standard_normal((batch, 2, rows, columns, 5 + classes)).astype(np.float32)
        for rows, columns in ((12, 16), (6, 8))
    ]
    labels = _random_labels(classes, batch, max_labels, seed)
    return maps, labels, HeadGeometry(_ANCHORS, (8.0, 16.0), classes)


def _composed(
    maps: list[_Array], labels: _Array, geometry: HeadGeometry, config: LossConfig
) -> tuple[list[float], list[_Array]]:
    tensors = [flow.tensor(raw_map, requires_grad=True) for raw_map in maps]
    parts = DetectionLoss(geometry, config).details(tensors, flow.tensor(labels)).parts
    parts.total.backward()
    values = [float(part.numpy()) for part in (parts.total, *parts.parts)]
    return values, [tensor.grad.numpy() for tensor in tensors]


_CONFIGS = {
    "plain": LossConfig(),
    "weights": LossConfig(cls_pw=1.7, obj_pw=0.6, label_smoothing=0.1),
    "half objectness": LossConfig(gr=0.4),
    "best wins": LossConfig(sort_obj_iou=True, gr=0.7),
    "narrow": LossConfig(anchor_t=2.0),
    "focal": LossConfig(fl_gamma=1.5),
    "focal and weights": LossConfig(fl_gamma=0.5, cls_pw=1.7, obj_pw=0.6, label_smoothing=0.1, gr=0.4),
}


def test_image_without_labels_known_values() -> None:
    # All logits 0: every objectness element is log 2, its derivative sigmoid(0) = 1/2 over the number of cells (2 * 2
    # anchors and cells), times gain 0.5 and balance 4; nothing else has a gradient.
    config = LossConfig(objectness=0.5)
    head = _Head([np.zeros((1, 2, 1, 2, 7), np.float32)], _ANCHORS[:1], config, [4.0])
    labels = np.zeros((1, 16, 5), np.float32)
    labels[..., 0] = -1
    total, parts, (gradient,) = _fused(head, labels)
    np.testing.assert_allclose(total, 0.5 * 4 * np.log(2), rtol=1e-6)
    np.testing.assert_allclose(parts, [0, 0.5 * 4 * np.log(2), 0, np.log(2)], rtol=1e-6)
    expected = np.zeros_like(gradient)
    expected[..., 4] = 0.5 * 4 * 0.5 / 4
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)


def test_label_in_cell_centre_known_values() -> None:
    # One cell, one anchor of the label's size; logits 0 predict centre 0.5 and sides 1 * anchor: a perfect box, CIoU 1.
    # Box loss 0; objectness target 1: log 2; two classes, each log 2. Batch of 1, gains 1.
    config = LossConfig(box=1, objectness=1, classes=1)
    head = _Head([np.zeros((1, 1, 1, 1, 7), np.float32)], np.ones((1, 1, 2), np.float32), config, [1.0])
    labels = np.zeros((1, 16, 5), np.float32)
    labels[..., 0] = -1
    labels[0, 3] = [1, 0.5, 0.5, 1, 1]
    total, parts, (gradient,) = _fused(head, labels)
    np.testing.assert_allclose(parts, [0, np.log(2), np.log(2), np.log(2)], atol=1e-6)
    np.testing.assert_allclose(total, 2 * np.log(2), rtol=1e-6)
    np.testing.assert_allclose(gradient[0, 0, 0, 0, 4:], [-0.5, 0.25, -0.25], atol=1e-6)


def _check_equal_to_composed(
    maps: list[_Array], labels: _Array, geometry: HeadGeometry, config: LossConfig, rtol: float = 2e-6
) -> None:
    """Assert equality up to float32 rounding; the fused op accumulates in double."""
    expected, gradients = _composed(maps, labels, geometry, config)
    balance = DetectionLoss(geometry, config).balance.numpy()
    total, parts, ours = _fused(_Head(maps, geometry.anchors_cells, config, balance), labels)
    np.testing.assert_allclose([total, *parts[:3]], expected, rtol=rtol)
    np.testing.assert_allclose((parts[3:] * balance).sum() * config.objectness, expected[2], rtol=rtol)
    for mine, theirs in zip(ours, gradients, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=rtol * np.abs(theirs).max())


@pytest.mark.parametrize("classes", [1, 3, 80])
@pytest.mark.parametrize("name", _CONFIGS)
def test_fused_matches_composed(name: str, classes: int) -> None:
    # The composed focal loss computes 1 - p_t from a rounded p_t.
    rtol = 2e-5 if "focal" in name else 2e-6
    _check_equal_to_composed(*_random_case(classes), _CONFIGS[name], rtol)


@pytest.mark.parametrize("levels", [1, 2, 3, 4, 5])
def test_any_number_of_levels(levels: int) -> None:
    generator = np.random.default_rng(levels)
    sizes = ((11, 9), (6, 5), (3, 3), (2, 1), (1, 1))[:levels]
    maps = [generator.standard_normal((2, 3, rows, columns, 7)).astype(np.float32) for rows, columns in sizes]
    anchors = generator.uniform(0.8, 4, (levels, 3, 2)).astype(np.float32)
    geometry = HeadGeometry(anchors, tuple(8.0 * 2**level for level in range(levels)), 2)
    _check_equal_to_composed(maps, _random_labels(2, 2, 9), geometry, LossConfig())


def test_more_labels_than_threads_per_block() -> None:
    maps, _, geometry = _random_case(3, batch=2)
    labels = _random_labels(3, 2, 150, seed=3)
    for config in (LossConfig(), LossConfig(sort_obj_iou=True)):
        _check_equal_to_composed(maps, labels, geometry, config, rtol=1e-5)


@pytest.mark.parametrize("best_wins", [False, True])
def test_many_labels_in_one_cell(best_wins: bool) -> None:
    # With equal centres and similar sizes, a cell that matches one label matches all. The last one in build order, or
    # the best one, sets the objectness target; all of them contribute to the gradient.
    maps, labels, geometry = _random_case(3, max_labels=0)
    generator = np.random.default_rng(4)
    labels[1, :16, 0] = generator.integers(0, 3, 16)
    labels[1, :16, 1:3] = (0.41, 0.58)
    labels[1, :16, 3:] = generator.uniform(0.15, 0.3, (16, 2))
    _check_equal_to_composed(maps, labels, geometry, LossConfig(sort_obj_iou=best_wins))


def test_no_labels_at_all() -> None:
    maps, labels, geometry = _random_case(3, max_labels=0)
    _check_equal_to_composed(maps, labels, geometry, LossConfig())
    head = _Head(maps, _ANCHORS, LossConfig(), [4.0, 1.0])
    with_slots, _, gradients = _fused(head, labels)
    for raw_map in head.maps():
        raw_map.grad = None
    without, _, same = _fused(head, labels[:, :0])
    assert with_slots == without
    np.testing.assert_array_equal(gradients[0], same[0])


def test_focal_loss_that_vanishes() -> None:
    # Certain and correct logits: loss and derivative vanish, where the composed form divides 0 by 0.
    config = LossConfig(fl_gamma=0.5)
    maps = [np.full((1, 2, 3, 4, 8), -200, np.float32)]
    labels = np.full((1, 16, 5), -1, np.float32)
    total, _, (gradient,) = _fused(_Head(maps, _ANCHORS[:1], config, [4.0]), labels)
    assert 0 <= total < 1e-10
    assert np.abs(gradient).max() < 1e-10


class _Criterion(flow.nn.Module):
    """`DetectionLoss` on maps that are parameters."""

    def __init__(self, maps: list[_Array], loss: DetectionLoss) -> None:
        super().__init__()
        self.loss = loss
        self.levels = len(maps)
        for level, raw_map in enumerate(maps):
            self.register_parameter(f"map{level}", flow.nn.Parameter(flow.tensor(raw_map)))

    def forward(self, labels: Tensor) -> tuple[Tensor, ...]:
        parts = self.loss([getattr(self, f"map{level}") for level in range(self.levels)], labels)
        return parts.total, parts.parts


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
def test_loss_module_is_same_with_and_without_plugin(graph: bool) -> None:
    # With autobalance, both must also update the balance equally in every call.
    maps, labels, geometry = _random_case(3)
    config = LossConfig(autobalance=True)
    fused, composed = (
        _Criterion(maps, DetectionLoss(geometry, config, fused_iou=fused_iou)) for fused_iou in (True, False)
    )
    run = ModuleGraph(fused) if graph else fused
    for _ in range(3):
        ours, theirs = run(flow.tensor(labels)), composed(flow.tensor(labels))
        assert ours[0].numel() == theirs[0].numel() == 1
        np.testing.assert_allclose(ours[0].numpy().item(), theirs[0].numpy().item(), rtol=2e-6)
        np.testing.assert_allclose(ours[1].numpy()[:3], theirs[1].numpy(), rtol=2e-6)
        np.testing.assert_allclose(fused.loss.balance.numpy(), composed.loss.balance.numpy(), rtol=1e-6)
    assert not np.array_equal(fused.loss.balance.numpy(), DetectionLoss(geometry, config).balance.numpy())


def test_large_logits_do_not_overflow() -> None:
    maps, labels, geometry = _random_case(3)
    for raw_map in maps:
        raw_map[..., 4:] *= 60  # not the sides: a box of no area has no CIoU
    _check_equal_to_composed(maps, labels, geometry, LossConfig(), rtol=1e-5)


def test_nonfinite_map_gives_nonfinite_loss() -> None:
    maps, labels, _ = _random_case(3)
    maps[0][1, 1, 2, 3, 4] = np.nan
    total, _, gradients = _fused(_Head(maps, _ANCHORS, LossConfig(), [4.0, 1.0]), labels)
    assert np.isnan(total)
    assert np.isnan(gradients[0][1, 1, 2, 3, 4])


def test_scale_applies_to_gradient_only() -> None:
    maps, labels, _ = _random_case(3)
    plain, scaled = (_Head(maps, _ANCHORS, LossConfig(), [4.0, 1.0], scale) for scale in (1.0, 1024.0))
    total, parts, gradients = _fused(plain, labels)
    scaled_total, scaled_parts, scaled_gradients = _fused(scaled, labels)
    assert total == scaled_total
    np.testing.assert_array_equal(parts, scaled_parts)
    for first, second in zip(gradients, scaled_gradients, strict=True):
        np.testing.assert_array_equal(first * 1024, second)


def test_results_are_deterministic() -> None:
    _, labels, _ = _random_case(3, max_labels=16)
    generator = np.random.default_rng(0)
    maps = [
        generator.standard_normal((3, 2, rows, columns, 8)).astype(np.float32) for rows, columns in ((29, 37), (6, 8))
    ]
    outcomes = []
    for seed in (0, 1, 2, 3):
        shuffle_threads(seed)
        outcomes.append(_fused(_Head(maps, _ANCHORS, LossConfig(), [4.0, 1.0]), labels))
    shuffle_threads(0)
    for total, parts, gradients in outcomes[1:]:
        assert total == outcomes[0][0]
        np.testing.assert_array_equal(parts, outcomes[0][1])
        for first, second in zip(gradients, outcomes[0][2], strict=True):
            np.testing.assert_array_equal(first, second)


def test_single_cuda_launch_forward_and_none_backward(request: pytest.FixtureRequest) -> None:
    maps, labels, _ = _random_case(3)
    head = _Head(maps, _ANCHORS, LossConfig(), [4.0, 1.0])
    total = flow.ones(1)

    def forward() -> None:
        nonlocal total
        total, _ = head(flow.tensor(labels))

    emulated = request.config.getoption("--kernels") == "emulated-cuda"
    assert launches_of(forward) == ({"detection_loss": 1} if emulated else {})
    backward = launches_of(total.backward)
    assert not {name for name in backward if name != "fill_f32"}  # the gradient of the total itself is 1


@pytest.mark.parametrize("levels", [1, 3])
def test_rebalance_matches_composed(levels: int) -> None:
    generator = np.random.default_rng(1)
    start = generator.uniform(0.1, 4, levels).astype(np.float32)
    balance, expected = flow.tensor(start), start.astype(np.float64)
    for _ in range(5):
        parts = generator.uniform(0.01, 1, 3 + levels).astype(np.float32)
        copy = rebalance(balance, flow.tensor(parts), levels - 1)
        expected = expected * 0.9999 + 0.0001 / parts[3:]
        expected /= expected[levels - 1]
        np.testing.assert_array_equal(copy.numpy(), balance.numpy())
    np.testing.assert_allclose(balance.numpy(), expected, rtol=1e-6)


def test_graph_matches_eager_bitwise() -> None:
    maps, labels, _ = _random_case(3)
    captured = _Head(maps, _ANCHORS, LossConfig(), [4.0, 1.0])
    eager = _Head(maps, _ANCHORS, LossConfig(), [4.0, 1.0])
    graph_total, graph_parts = _DescentGraph(captured)(flow.tensor(labels))
    optimizer = flow.optim.SGD(eager.maps(), lr=1.0)
    total, parts = eager(flow.tensor(labels))
    total.backward()
    optimizer.step()
    np.testing.assert_array_equal(graph_total.numpy(), total.numpy())
    np.testing.assert_array_equal(graph_parts.numpy(), parts.numpy())
    for ours, theirs in zip(captured.maps(), eager.maps(), strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


def test_recorded_cases(goldens: Path) -> None:
    checked = 0
    for path in sorted(goldens.glob("loss_*.npz")):
        with np.load(path, allow_pickle=False) as vectors:
            case: dict[str, Any] = dict(vectors)
        if "hyp_json" not in case:
            continue  # a file of element losses
        _check_recorded(path.name, case)
        checked += 1
    assert checked > 10


def _check_recorded(name: str, case: dict[str, Any]) -> None:
    hyp = json.loads(str(case["hyp_json"]))
    levels = len(case["stride"])
    config = LossConfig(
        **{key: hyp[key] for key in ("box", "cls_pw", "obj_pw", "anchor_t", "label_smoothing", "fl_gamma")},
        objectness=hyp["obj"],
        classes=hyp["cls"],
        gr=float(case["gr"]),
        sort_obj_iou=bool(case["sort_obj_iou"]),
    )
    maps, targets = [case[f"pred_{level}"] for level in range(levels)], case["targets"]
    capacity = label_capacity(int(np.bincount(targets[:, 0].astype(int), minlength=1).max()))
    # The last of several calls: its gradient is recorded, with the balance that stood before it.
    balance = case["balance"][-2][:levels]
    head = _Head(maps, case["anchors_grid"], config, balance)
    total, parts, gradients = _fused(head, pad_labels(targets, maps[0].shape[0], capacity))
    np.testing.assert_allclose(total, case["total_loss"][-1], rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(parts[:3], case["loss_items"][-1], rtol=1e-5, err_msg=name)
    for level, gradient in enumerate(gradients):
        expected = case[f"grad_{level}"]
        assert np.linalg.norm(gradient - expected) <= 1e-5 * np.linalg.norm(expected), f"{name} level {level}"
        np.testing.assert_allclose(gradient, expected, atol=1e-5 * np.abs(expected).max(), err_msg=name)


def test_random_labels_match_composed() -> None:
    # Labels on a grid of half cells: most lie exactly on a border that decides which cells they belong to.
    generator = np.random.default_rng(2)
    maps, labels, geometry = _random_case(3, max_labels=0)
    labels[:, :12, 0] = 1
    labels[:, :12, 1] = generator.integers(0, 33, (3, 12)) / 32
    labels[:, :12, 2] = generator.integers(0, 25, (3, 12)) / 24
    labels[:, :12, 3:] = generator.choice([0.05, 0.1, 0.3125, 0.5], (3, 12, 2))
    for config in (LossConfig(), replace(LossConfig(), anchor_t=2.0)):
        _check_equal_to_composed(maps, labels, geometry, config)


def test_settings_vector_layout() -> None:
    settings = fused_settings(_ANCHORS, LossConfig(box=1, objectness=2, classes=3, label_smoothing=0.5))
    assert settings.dtype == np.float32
    assert settings[LossSetting.CLASS_GAIN] == 3
    assert settings[LossSetting.POSITIVE_TARGET] == 0.75
    assert settings[LossSetting.NEGATIVE_TARGET] == 0.25
    assert settings[LossSetting.FOCAL_ALPHA] == 0.25
    np.testing.assert_array_equal(settings[len(LossSetting) :], _ANCHORS.ravel())


def test_wrong_shapes_raise() -> None:
    settings, balance, scale = flow.tensor(fused_settings(_ANCHORS[:1], LossConfig())), flow.ones(1), flow.ones(1)
    labels = flow.ones(1, 16, 5)
    with pytest.raises(ValueError, match=r"map \(1, 4, 4, 14\): must be \(2, rows"):
        detection_loss([flow.ones(1, 4, 4, 14)], flow.ones(2, 16, 5), settings, balance, scale)
    with pytest.raises(ValueError, match=r"map \(1, 4, 4, 15\): must be"):
        detection_loss([flow.ones(1, 4, 4, 15)], labels, settings, balance, scale)
    with pytest.raises(ValueError, match=r"must be \(12 \+ 2"):
        detection_loss([flow.ones(1, 4, 4, 14)] * 2, labels, settings, balance, scale)
    with pytest.raises(ValueError, match=r"map \(0, 4, 4, 14\): is empty"):
        detection_loss([flow.ones(0, 4, 4, 14)], flow.ones(0, 16, 5), settings, balance, scale)
    with pytest.raises(ValueError, match="1 to 5 levels"):
        detection_loss([], labels, settings, balance, scale)


@pytest.mark.distributed
@pytest.mark.parametrize("ranks", [2, 3])
def test_images_sharded_over_ranks(ranks: int, request: pytest.FixtureRequest) -> None:
    mode = "emulated-cuda" if request.config.getoption("--kernels") == "emulated-cuda" else "require"
    command = [sys.executable, "-m", "tests.kernels.ops.detection_loss_job", mode]
    job = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(ranks),
        "OMP_NUM_THREADS": "1",
    }
    started = [
        subprocess.Popen(
            command,
            env={**os.environ, **job, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in range(ranks)
    ]
    outputs = [process.communicate(timeout=500)[0].decode() for process in started]
    assert [process.returncode for process in started] == [0] * ranks, outputs

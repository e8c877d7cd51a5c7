"""The fused loss against the composed one and against the vectors of the reference; graph against eager."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from kernels.ops.detection_loss.function import LevelSetting, level_loss, level_settings
from kernels.plugin import load_plugin
from kernels.runtime import Tensor, flow
from models.loss import DetectionLoss
from models.loss_config import LossConfig
from models.padded_labels import label_capacity, pad_labels
from models.targets import HeadGeometry

_Array = npt.NDArray[np.float32]
_ANCHORS = np.array([[[1.25, 1.625], [2, 3.75]], [[1.875, 3.8125], [3.875, 2.8125]]], np.float32)


@pytest.fixture(scope="module", autouse=True)
def _plugin() -> None:
    assert load_plugin("require").loaded


def _settings(anchors: _Array, config: LossConfig) -> Tensor:
    return flow.tensor(
        level_settings(
            anchors,
            box_gain=config.box,
            objectness_gain=config.objectness,
            class_gain=config.classes,
            class_positive_weight=config.cls_pw,
            objectness_positive_weight=config.obj_pw,
            anchor_t=config.anchor_t,
            label_smoothing=config.label_smoothing,
            gr=config.gr,
            best_iou_wins=config.sort_obj_iou,
        )
    )


class _Head(flow.nn.Module):
    """Maps as parameters and all that the loss of every level needs."""

    def __init__(self, maps: list[_Array], anchors: _Array, config: LossConfig, balance: npt.ArrayLike) -> None:
        super().__init__()
        self.levels = len(maps)
        for level, raw_map in enumerate(maps):
            self.register_parameter(f"map{level}", flow.nn.Parameter(flow.tensor(raw_map)))
            self.register_buffer(f"settings{level}", _settings(anchors[level], config))
        self.register_buffer("balance", flow.tensor(np.asarray(balance, np.float32)))

    def forward(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The total (1,) and the parts of all levels (levels, 3)."""
        totals, parts = [], []
        for level in range(self.levels):
            of_level = level_loss(
                getattr(self, f"map{level}"),
                labels,
                getattr(self, f"settings{level}"),
                self.balance[level : level + 1],
            )
            totals.append(of_level[0])
            parts.append(of_level[1])
        return flow.cat(totals).sum(), flow.stack(parts)

    def maps(self) -> list[Tensor]:
        return [getattr(self, f"map{level}") for level in range(self.levels)]


class _DescentGraph(flow.nn.Graph):
    """One step of gradient descent with rate 1: each map loses exactly its gradient."""

    def __init__(self, head: _Head) -> None:
        super().__init__()
        self.head = head
        self.add_optimizer(flow.optim.SGD(head.maps(), lr=1.0))

    def build(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        total, parts = self.head(labels)
        total.backward()
        return total, parts


def _fused(head: _Head, labels: _Array) -> tuple[_Array, _Array, list[_Array]]:
    total, parts = head(flow.tensor(labels))
    total.backward()
    return total.numpy(), parts.numpy(), [raw_map.grad.numpy() for raw_map in head.maps()]


def _random_case(
    classes: int, batch: int = 3, seed: int = 0, most_labels: int = 9
) -> tuple[list[_Array], _Array, HeadGeometry]:
    generator = np.random.default_rng(seed)
    maps = [
        generator.standard_normal((batch, 2, rows, columns, 5 + classes)).astype(np.float32)
        for rows, columns in ((12, 16), (6, 8))
    ]
    labels = np.zeros((batch, 16, 5), np.float32)
    labels[..., 0] = -1
    for image in range(batch):
        count = int(generator.integers(0, most_labels + 1))
        labels[image, :count, 0] = generator.integers(0, classes, count)
        labels[image, :count, 1:3] = generator.uniform(0, 1, (count, 2))
        labels[image, :count, 3:] = generator.uniform(0.03, 0.6, (count, 2))
    return maps, labels, HeadGeometry(_ANCHORS, (8.0, 16.0), classes)


def _composed(
    maps: list[_Array], labels: _Array, geometry: HeadGeometry, config: LossConfig
) -> tuple[list[float], list[_Array]]:
    tensors = [flow.tensor(raw_map, requires_grad=True) for raw_map in maps]
    parts = DetectionLoss(geometry, config).details(tensors, flow.tensor(labels)).parts
    parts.total.backward()
    return [float(part.numpy()) for part in parts], [tensor.grad.numpy() for tensor in tensors]


_CONFIGS = {
    "plain": LossConfig(),
    "weights": LossConfig(cls_pw=1.7, obj_pw=0.6, label_smoothing=0.1),
    "half objectness": LossConfig(gr=0.4),
    "best wins": LossConfig(sort_obj_iou=True, gr=0.7),
    "narrow": LossConfig(anchor_t=2.0),
}


def test_an_image_without_labels_by_hand() -> None:
    # All logits 0: every objectness element is log 2, its derivative sigmoid(0) = 1/2 over the number of cells (2 * 2
    # anchors and cells), times gain 0.5 and balance 4; nothing else has a gradient.
    config = LossConfig(objectness=0.5)
    head = _Head([np.zeros((1, 2, 1, 2, 7), np.float32)], _ANCHORS[:1], config, [4.0])
    labels = np.zeros((1, 16, 5), np.float32)
    labels[..., 0] = -1
    total, parts, (gradient,) = _fused(head, labels)
    np.testing.assert_allclose(total, 0.5 * 4 * np.log(2), rtol=1e-6)
    np.testing.assert_allclose(parts, [[0, np.log(2), 0]], rtol=1e-6)
    expected = np.zeros_like(gradient)
    expected[..., 4] = 0.5 * 4 * 0.5 / 4
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)


def test_a_label_in_the_middle_of_one_cell_by_hand() -> None:
    # One cell, one anchor of the label's size; logits 0 predict centre 0.5 and sides 1 * anchor: a perfect box, CIoU 1.
    # Box loss 0; objectness target 1: log 2; two classes, each log 2. Batch of 1, gains 1.
    config = LossConfig(box=1, objectness=1, classes=1)
    head = _Head([np.zeros((1, 1, 1, 1, 7), np.float32)], np.ones((1, 1, 2), np.float32), config, [1.0])
    labels = np.zeros((1, 16, 5), np.float32)
    labels[..., 0] = -1
    labels[0, 3] = [1, 0.5, 0.5, 1, 1]
    total, parts, (gradient,) = _fused(head, labels)
    np.testing.assert_allclose(parts, [[0, np.log(2), np.log(2)]], atol=1e-6)
    np.testing.assert_allclose(total, 2 * np.log(2), rtol=1e-6)
    np.testing.assert_allclose(gradient[0, 0, 0, 0, 4:], [-0.5, 0.25, -0.25], atol=1e-6)


@pytest.mark.parametrize("classes", [1, 3, 80])
@pytest.mark.parametrize("name", _CONFIGS)
def test_fused_equals_composed(name: str, classes: int) -> None:
    config = _CONFIGS[name]
    maps, labels, geometry = _random_case(classes)
    expected, gradients = _composed(maps, labels, geometry, config)
    balance = DetectionLoss(geometry, config).balance.numpy()
    total, parts, ours = _fused(_Head(maps, _ANCHORS, config, balance), labels)
    # Roundings of float32; the fused op adds in double.
    np.testing.assert_allclose(total, expected[0], rtol=2e-6)
    np.testing.assert_allclose(parts[:, 0].sum(), expected[1], rtol=2e-6)
    np.testing.assert_allclose((parts[:, 1] * balance).sum() * config.objectness, expected[2], rtol=2e-6)
    np.testing.assert_allclose(parts[:, 2].sum(), expected[3], rtol=2e-6)
    for mine, theirs in zip(ours, gradients, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=2e-6 * np.abs(theirs).max())


class _Criterion(flow.nn.Module):
    """A whole `DetectionLoss` on maps that are parameters."""

    def __init__(self, maps: list[_Array], loss: DetectionLoss) -> None:
        super().__init__()
        self.loss = loss
        self.levels = len(maps)
        for level, raw_map in enumerate(maps):
            self.register_parameter(f"map{level}", flow.nn.Parameter(flow.tensor(raw_map)))

    def forward(self, labels: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.loss([getattr(self, f"map{level}") for level in range(self.levels)], labels))


class _CriterionGraph(flow.nn.Graph):
    def __init__(self, criterion: _Criterion) -> None:
        super().__init__()
        self.criterion = criterion

    def build(self, labels: Tensor) -> tuple[Tensor, ...]:
        return self.criterion(labels)


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
def test_the_loss_module_gives_the_same_either_way(graph: bool) -> None:
    # With autobalance: both must also move the balance alike, call after call.
    maps, labels, geometry = _random_case(3)
    config = LossConfig(autobalance=True)
    fused, composed = (
        _Criterion(maps, DetectionLoss(geometry, config, fused_iou=fused_iou)) for fused_iou in (True, False)
    )
    run = _CriterionGraph(fused) if graph else fused
    for _ in range(3):
        ours, theirs = run(flow.tensor(labels)), composed(flow.tensor(labels))
        for mine, reference in zip(ours, theirs, strict=True):
            assert mine.shape == reference.shape
            np.testing.assert_allclose(mine.numpy(), reference.numpy(), rtol=2e-6)
        np.testing.assert_allclose(fused.loss.balance.numpy(), composed.loss.balance.numpy(), rtol=1e-6)
    assert not np.array_equal(fused.loss.balance.numpy(), DetectionLoss(geometry, config).balance.numpy())


def test_large_logits_do_not_overflow() -> None:
    maps, labels, geometry = _random_case(3)
    for raw_map in maps:
        raw_map[..., 4:] *= 60  # not the sides: a box of no area has no CIoU
    expected, gradients = _composed(maps, labels, geometry, LossConfig())
    balance = DetectionLoss(geometry, LossConfig()).balance.numpy()
    total, _, ours = _fused(_Head(maps, _ANCHORS, LossConfig(), balance), labels)
    np.testing.assert_allclose(total, expected[0], rtol=1e-5)
    for mine, theirs in zip(ours, gradients, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5 * np.abs(theirs).max())


def test_a_map_that_is_not_finite_is_not_hidden() -> None:
    maps, labels, _ = _random_case(3)
    maps[0][1, 1, 2, 3, 4] = np.nan
    total, _, gradients = _fused(_Head(maps, _ANCHORS, LossConfig(), [4.0, 1.0]), labels)
    assert np.isnan(total)
    assert np.isnan(gradients[0][1, 1, 2, 3, 4])


def test_the_gradient_is_scaled_with_the_loss() -> None:
    maps, labels, _ = _random_case(3)
    plain, scaled = (_Head(maps, _ANCHORS, LossConfig(), [4.0, 1.0]) for _ in range(2))
    (plain(flow.tensor(labels))[0]).backward()
    (scaled(flow.tensor(labels))[0] * 1024.0).backward()
    for first, second in zip(plain.maps(), scaled.maps(), strict=True):
        np.testing.assert_array_equal(first.grad.numpy() * 1024, second.grad.numpy())


def test_graph_equals_eager_bit_for_bit() -> None:
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


def test_the_recorded_cases(goldens: Path) -> None:
    checked = 0
    for path in sorted(goldens.glob("loss_*.npz")):
        with np.load(path, allow_pickle=False) as vectors:
            case: dict[str, Any] = dict(vectors)
        if "hyp_json" not in case or json.loads(str(case["hyp_json"]))["fl_gamma"] > 0:
            continue  # the file of single elements; the focal loss is composed
        _check_recorded(path.name, case)
        checked += 1
    assert checked > 10


def _check_recorded(name: str, case: dict[str, Any]) -> None:
    hyp = json.loads(str(case["hyp_json"]))
    levels = len(case["stride"])
    config = LossConfig(
        **{key: hyp[key] for key in ("box", "cls_pw", "obj_pw", "anchor_t", "label_smoothing")},
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
    items = [parts[:, 0].sum(), (parts[:, 1] * balance).sum() * config.objectness, parts[:, 2].sum()]
    np.testing.assert_allclose(items, case["loss_items"][-1], rtol=1e-5, err_msg=name)
    for level, gradient in enumerate(gradients):
        expected = case[f"grad_{level}"]
        assert np.linalg.norm(gradient - expected) <= 1e-5 * np.linalg.norm(expected), f"{name} level {level}"
        np.testing.assert_allclose(gradient, expected, atol=1e-5 * np.abs(expected).max(), err_msg=name)


def test_random_labels_are_assigned_as_composed() -> None:
    # Labels on a grid of half cells: most lie exactly on a border that decides which cells they belong to.
    generator = np.random.default_rng(2)
    maps, labels, geometry = _random_case(3, most_labels=0)
    labels[:, :12, 0] = 1
    labels[:, :12, 1] = generator.integers(0, 33, (3, 12)) / 32
    labels[:, :12, 2] = generator.integers(0, 25, (3, 12)) / 24
    labels[:, :12, 3:] = generator.choice([0.05, 0.1, 0.3125, 0.5], (3, 12, 2))
    for config in (LossConfig(), replace(LossConfig(), anchor_t=2.0)):
        expected, gradients = _composed(maps, labels, geometry, config)
        balance = DetectionLoss(geometry, config).balance.numpy()
        total, _, ours = _fused(_Head(maps, _ANCHORS, config, balance), labels)
        np.testing.assert_allclose(total, expected[0], rtol=2e-6)
        for mine, theirs in zip(ours, gradients, strict=True):
            np.testing.assert_allclose(mine, theirs, atol=2e-6 * np.abs(theirs).max())


def test_settings_keep_their_places() -> None:
    settings = level_settings(_ANCHORS[0], box_gain=1, objectness_gain=2, class_gain=3, label_smoothing=0.5)
    assert settings.dtype == np.float32
    assert settings[LevelSetting.CLASS_GAIN] == 3
    assert settings[LevelSetting.POSITIVE_TARGET] == 0.75
    assert settings[LevelSetting.NEGATIVE_TARGET] == 0.25
    np.testing.assert_array_equal(settings[len(LevelSetting) :], _ANCHORS[0].ravel())


def test_shapes_that_do_not_fit_are_named() -> None:
    settings, balance = _settings(_ANCHORS[0], LossConfig()), flow.ones(1)
    with pytest.raises(ValueError, match=r"labels \(2, 16, 5\)"):
        level_loss(flow.ones(1, 2, 4, 4, 7), flow.ones(2, 16, 5), settings, balance)
    with pytest.raises(ValueError, match=r"must be \(16,\)"):
        level_loss(flow.ones(1, 3, 4, 4, 7), flow.ones(1, 16, 5), settings, balance)
    with pytest.raises(ValueError, match=r"map \(0, 2, 4, 4, 7\): empty"):
        level_loss(flow.ones(0, 2, 4, 4, 7), flow.ones(0, 16, 5), settings, balance)

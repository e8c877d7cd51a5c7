import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from kernels.framework.module_graph import ModuleGraph, gradients_of
from kernels.runtime import Tensor, flow
from models.loss import DetectionLoss
from models.loss_config import LossConfig
from models.padded_labels import pad_labels
from models.targets import HeadGeometry

Maps = list[npt.NDArray[np.float32]]
HEAD = HeadGeometry(
    np.array([[[1, 1], [2, 1], [1, 2]], [[1, 1], [2, 2], [3, 1]], [[1, 2], [2, 1], [1, 1]]], np.float32),
    (8.0, 16.0, 32.0),
    3,
)
ONE_CELL_SQUARE = HeadGeometry(np.array([[[1, 1]]], np.float32), (16.0,), 2)
ALL_SETTINGS = LossConfig(
    cls_pw=0.7, obj_pw=1.4, fl_gamma=1.5, label_smoothing=0.1, gr=0.7, autobalance=True, sort_obj_iou=True
)


def random_maps(head: HeadGeometry, batch: int = 4, pixels: int = 64, seed: int = 0) -> Maps:
    generator = np.random.default_rng(seed)
    sizes = [pixels // int(stride) for stride in head.stride]
    shapes = [(batch, head.anchors, size, size, 5 + head.num_classes) for size in sizes]
    return [generator.normal(0, 1, shape).astype(np.float32) for shape in shapes]


def random_rows(count: int, batch: int = 4, seed: int = 1) -> npt.NDArray[np.float64]:
    generator = np.random.default_rng(seed)
    return np.column_stack(
        [
            generator.integers(0, batch, count),
            generator.integers(0, 3, count),
            generator.random((count, 2)),
            generator.uniform(0.1, 0.6, (count, 2)),
        ]
    )


class LossAndGradients(flow.nn.Module):
    def __init__(self, criterion: DetectionLoss, maps: Maps) -> None:
        super().__init__()
        self.criterion = criterion
        self.names = [f"map{level}" for level in range(len(maps))]
        for name, raw in zip(self.names, maps, strict=True):
            self.register_parameter(name, flow.nn.Parameter(flow.tensor(raw)))

    def forward(self, labels: Tensor) -> tuple[Tensor, ...]:
        maps = [getattr(self, name) for name in self.names]
        parts = self.criterion(maps, labels)
        return (parts.total, parts.parts, *gradients_of(parts.total, maps))


def loss_and_gradients(
    criterion: DetectionLoss, maps: Maps, labels: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float32], Maps]:
    """Return (4,) total, box, objectness and class loss; the gradients of the maps."""
    outputs = [output.numpy() for output in LossAndGradients(criterion, maps)(flow.tensor(labels))]
    return np.append(outputs[0], outputs[1][:3]), outputs[2:]


def test_loss_without_labels_is_objectness_only() -> None:
    config = LossConfig(box=0.05, objectness=2.0, classes=0.5)
    maps = [np.zeros_like(raw) for raw in random_maps(HEAD)]
    parts, gradients = loss_and_gradients(DetectionLoss(HEAD, config), maps, pad_labels(np.zeros((0, 6)), 4, 16))
    # Probability 1/2 costs log 2 in every cell; the levels' weights are 4, 1 and 0.4; the batch has 4 images.
    objectness = 2.0 * (4 + 1 + 0.4) * math.log(2)
    np.testing.assert_allclose(parts, [4 * objectness, 0, objectness, 0], rtol=1e-6)
    for weight, gradient in zip((4, 1, 0.4), gradients, strict=True):
        cells = gradient[..., 4].size
        np.testing.assert_allclose(gradient[..., 4], 4 * 2.0 * weight * 0.5 / cells, rtol=1e-5)
        assert not np.delete(gradient, 4, axis=-1).any()


def test_exact_prediction_of_one_label() -> None:
    # A label of one cell in the middle of cell (1, 1): no neighbours. Zeros decode to just that box for anchor (1, 1).
    maps = [np.zeros((1, 1, 4, 4, 7), np.float32)]
    labels = pad_labels(np.array([[0, 1, 1.5 / 4, 1.5 / 4, 0.25, 0.25]]), 1, 16)
    criterion = DetectionLoss(ONE_CELL_SQUARE, LossConfig(box=1.0, objectness=1.0, classes=1.0))
    details = criterion.details([flow.tensor(maps[0])], flow.tensor(labels))
    expected = np.zeros((1, 16), np.float32)
    expected[0, 5] = 1
    np.testing.assert_allclose(details.objectness_targets[0].numpy(), expected, atol=1e-6)  # eps in the IoU
    log2 = math.log(2)
    parts = [details.parts.total.numpy().item(), *details.parts.parts.numpy()]
    assert parts == pytest.approx([4 * log2 + log2, 0, 4 * log2, log2], abs=1e-5)


@pytest.mark.parametrize(("sort", "winner"), [(False, "last"), (True, "best")])
@pytest.mark.parametrize("best_first", [True, False])
def test_objectness_target_of_shared_cell(sort: bool, winner: str, best_first: bool) -> None:
    best, worse = [0, 1, 1.5 / 4, 1.5 / 4, 0.25, 0.25], [0, 1, 1.5 / 4, 1.5 / 4, 0.5, 0.5]
    rows = np.array([best, worse] if best_first else [worse, best])
    criterion = DetectionLoss(ONE_CELL_SQUARE, LossConfig(sort_obj_iou=sort))
    zeros = flow.zeros(1, 1, 4, 4, 7)
    target = criterion.details([zeros], flow.tensor(pad_labels(rows, 1, 16))).objectness_targets[0].numpy()[0, 5]
    # Concentric squares of 1 and 2 cells: IoU 1/4, no distance, same aspect.
    expected = 1.0 if winner == "best" or not best_first else 0.25
    assert target == pytest.approx(expected, abs=1e-6)


def test_gr_moves_objectness_target_towards_one() -> None:
    rows = np.array([[0, 1, 1.5 / 4, 1.5 / 4, 0.5, 0.5]])
    criterion = DetectionLoss(ONE_CELL_SQUARE, LossConfig(gr=0.4))
    details = criterion.details([flow.zeros(1, 1, 4, 4, 7)], flow.tensor(pad_labels(rows, 1, 16)))
    assert details.objectness_targets[0].numpy()[0, 5] == pytest.approx(0.6 + 0.4 * 0.25, abs=1e-6)


@pytest.mark.parametrize("config", [LossConfig(), replace(ALL_SETTINGS, autobalance=False)])
def test_padding_does_not_change_loss(config: LossConfig) -> None:
    maps, rows = random_maps(HEAD), random_rows(30)
    few = loss_and_gradients(DetectionLoss(HEAD, config), maps, pad_labels(rows, 4, 16))
    many = loss_and_gradients(DetectionLoss(HEAD, config), maps, pad_labels(rows, 4, 128))
    np.testing.assert_allclose(many[0], few[0], rtol=1e-6)  # sums of other lengths round differently
    for ours, theirs in zip(many[1], few[1], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-9)


def test_loss_scales_with_batch_size() -> None:
    maps, rows = random_maps(HEAD), random_rows(30)
    once, _ = loss_and_gradients(DetectionLoss(HEAD, LossConfig()), maps, pad_labels(rows, 4, 16))
    labels = np.concatenate([pad_labels(rows, 4, 16)] * 2)
    twice, _ = loss_and_gradients(
        DetectionLoss(HEAD, LossConfig()), [np.concatenate([raw] * 2) for raw in maps], labels
    )
    np.testing.assert_allclose(twice, once * [2, 1, 1, 1], rtol=1e-6)


@pytest.mark.parametrize("config", [LossConfig(), ALL_SETTINGS])
def test_graph_matches_eager_bitwise(config: LossConfig) -> None:
    maps, labels = random_maps(HEAD), flow.tensor(pad_labels(random_rows(40), 4, 16))
    eager = LossAndGradients(DetectionLoss(HEAD, config), maps)
    module = LossAndGradients(DetectionLoss(HEAD, config), maps)
    captured = ModuleGraph(module, differentiates=True)
    for _ in range(3):
        for ours, theirs in zip(captured(labels), eager(labels), strict=True):
            np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
        np.testing.assert_array_equal(module.criterion.balance.numpy(), eager.criterion.balance.numpy())


def test_autobalance_evens_out_levels() -> None:
    criterion = DetectionLoss(HEAD, LossConfig(autobalance=True))
    maps = [flow.zeros(1, 3, 64 // int(stride), 64 // int(stride), 8) for stride in HEAD.stride]
    labels = flow.tensor(pad_labels(np.zeros((0, 6)), 1, 16))
    criterion.eval()
    criterion(maps, labels)
    np.testing.assert_array_equal(criterion.balance.numpy(), np.array([4, 1, 0.4], np.float32))
    criterion.train()
    criterion(maps, labels)
    # Every level costs log 2, so each weight moves by 1e-4 / log 2; then the one of stride 16 is set to 1 again.
    moved = np.array([4, 1, 0.4]) * 0.9999 + 0.0001 / math.log(2)
    np.testing.assert_allclose(criterion.balance.numpy(), moved / moved[1], rtol=1e-6)


def test_balance_is_the_only_state() -> None:
    assert list(DetectionLoss(HEAD, ALL_SETTINGS).state_dict()) == ["balance"]


def test_vanishing_unmatched_box_keeps_gradient_finite() -> None:
    # Entries without a match read cell 0, whose box has no area: CIoU and its gradient would be NaN.
    maps, rows = random_maps(HEAD), random_rows(1)
    rows[:, 2:4] = 0.7
    for raw in maps:
        raw[:, 0, 0, 0, 2:4] = -500.0
    parts, gradients = loss_and_gradients(DetectionLoss(HEAD, LossConfig()), maps, pad_labels(rows, 4, 16))
    assert parts[1] > 0
    assert np.isfinite(parts).all()
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_gradient_step_lowers_loss() -> None:
    # Central difference along the gradient, in float32: the slope is the norm of the gradient.
    maps, labels = random_maps(HEAD), pad_labels(random_rows(30), 4, 16)
    # The targets depend on the predictions but count as constants: leave the objectness out.
    criterion = DetectionLoss(HEAD, LossConfig(objectness=0.0))
    _, gradients = loss_and_gradients(criterion, maps, labels)
    norm = math.sqrt(sum(float((gradient.astype(np.float64) ** 2).sum()) for gradient in gradients))
    step = 0.05 / norm
    ahead, behind = (
        loss_and_gradients(
            criterion, [raw + sign * step * slope for raw, slope in zip(maps, gradients, strict=True)], labels
        )[0][0]
        for sign in (1, -1)
    )
    assert (float(ahead) - float(behind)) / (2 * step) == pytest.approx(norm**2, rel=5e-3)


def test_one_class_has_no_class_loss() -> None:
    head = replace(HEAD, num_classes=1)
    rows = random_rows(20)
    rows[:, 1] = 0
    parts, gradients = loss_and_gradients(DetectionLoss(head, LossConfig()), random_maps(head), pad_labels(rows, 4, 16))
    assert parts[3] == 0
    assert not any(gradient[..., 5:].any() for gradient in gradients)


def test_gains_scale_with_levels_classes_and_image_size() -> None:
    scaled = LossConfig(box=0.05, objectness=1.0, classes=0.5, anchor_t=3.0).scaled(heads=4, classes=20, image_px=320)
    assert (scaled.box, scaled.objectness, scaled.classes) == pytest.approx((0.0375, 0.1875, 0.09375))
    assert scaled.anchor_t == 3.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"box": -1},
        {"fl_gamma": -0.5},
        {"obj_pw": 0},
        {"anchor_t": 1},
        {"gr": 1.5},
        {"label_smoothing": -0.1},
        {"box": math.nan},
    ],
)
def test_impossible_settings_raise(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
        LossConfig(**wrong)  # type: ignore[arg-type]


def test_unsupported_heads_raise() -> None:
    six = HeadGeometry(np.ones((6, 3, 2), np.float32), (4.0, 8.0, 16.0, 32.0, 64.0, 128.0), 1)
    with pytest.raises(ValueError, match="6 levels"):
        DetectionLoss(six, LossConfig())
    with pytest.raises(ValueError, match="stride 16"):
        DetectionLoss(HeadGeometry(np.ones((1, 3, 2), np.float32), (8.0,), 1), LossConfig(autobalance=True))


def test_wrong_shapes_raise() -> None:
    criterion = DetectionLoss(ONE_CELL_SQUARE, LossConfig())
    labels = flow.tensor(pad_labels(np.zeros((0, 6)), 1, 16))
    with pytest.raises(ValueError, match="map"):
        criterion([flow.zeros(1, 1, 4, 4, 8)], labels)
    with pytest.raises(ValueError, match="expected 1 maps"):
        criterion([], labels)
    with pytest.raises(ValueError, match="labels"):
        criterion([flow.zeros(1, 1, 4, 4, 7)], labels[:, :, :4])


def _gradients_of(
    criterion: DetectionLoss, maps: Maps, scale: Tensor | None = None
) -> tuple[list[npt.NDArray[np.float32]], Maps]:
    """Return total, (3,) parts; gradients of the maps."""
    leaves = [flow.tensor(raw, requires_grad=True) for raw in maps]
    loss = criterion(leaves, flow.tensor(pad_labels(random_rows(30), 4, 16)), scale)
    loss.total.backward()
    parts = flow.stack([loss.box, loss.objectness, loss.classes])
    return [loss.total.detach().numpy().reshape(1), parts.numpy()], [leaf.grad.numpy() for leaf in leaves]


@pytest.mark.parametrize("fused", [True, False])
def test_channels_last_maps(fused: bool) -> None:
    """Maps (B, rows, columns, anchors * outputs) give the same loss bitwise."""
    maps = random_maps(HEAD)
    raw = [
        np.ascontiguousarray(one.transpose(0, 2, 3, 1, 4)).reshape(*one.shape[:1], *one.shape[2:4], -1) for one in maps
    ]
    cells, gradients = _gradients_of(DetectionLoss(HEAD, LossConfig(), fused_iou=fused), maps)
    same, raw_gradients = _gradients_of(DetectionLoss(HEAD, LossConfig(), fused_iou=fused), raw)
    np.testing.assert_array_equal(np.concatenate(cells), np.concatenate(same))
    for one, other in zip(gradients, raw_gradients, strict=True):
        batch, anchors, rows, columns, outputs = one.shape
        np.testing.assert_array_equal(
            one, other.reshape(batch, rows, columns, anchors, outputs).transpose(0, 3, 1, 2, 4)
        )


@pytest.mark.parametrize("fused", [True, False])
def test_scale_applies_to_gradient_only(fused: bool) -> None:
    criterion = DetectionLoss(HEAD, LossConfig(), fused_iou=fused)
    plain, gradients = _gradients_of(criterion, random_maps(HEAD))
    # Only the first number counts; a power of two changes no digit.
    scaled, scaled_gradients = _gradients_of(criterion, random_maps(HEAD), flow.tensor([1024.0, 3.0]))
    np.testing.assert_array_equal(np.concatenate(plain), np.concatenate(scaled))
    for one, other in zip(gradients, scaled_gradients, strict=True):
        np.testing.assert_array_equal(1024 * one, other)

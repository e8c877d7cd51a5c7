"""Cases of `graph-bench kernels`: each kernel and its reference, on tensors of realistic sizes.

A case runs in one process with the plugin (ours) and in one without it (reference). Where both call the same op, only
the plugin makes the difference.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from benchmarks.step.ceilings_worker import parallel_copy
from benchmarks.step.kernels import CIOU, MEMCPY, UPDATE
from graph_train.detection.suppression import suppress
from kernels.ops.batch_norm.function import batch_norm
from kernels.ops.bbox_iou.function import bbox_iou, bbox_iou_reference
from kernels.ops.convolution.function import ConvolutionGeometry, convolution
from kernels.ops.pooling.function import max_pool, upsample
from kernels.ops.update.function import UpdateSettings, UpdateState, update_parameters, update_parameters_reference
from kernels.runtime import Tensor, flow
from models.loss import DetectionLoss
from models.loss_config import LossConfig
from models.network import DetectionModel
from models.spec import load_model_spec
from models.targets import HeadGeometry
from pipelines.pixels.colour import finish_picture

Work = Callable[[], object]
_functional = flow.nn.functional


@dataclass(frozen=True)
class CaseSettings:
    """The device and kernels of a case."""

    device: str
    threads: int

    def leaf(self, *shape: int, gradient: bool = True) -> Tensor:
        """Return a leaf tensor of normally distributed random numbers."""
        values = np.random.default_rng(list(shape)).standard_normal(shape).astype(np.float32)
        return flow.tensor(values, device=self.device, requires_grad=gradient)


@dataclass(frozen=True)
class Case:
    """Two implementations of the same result; each function prepares its inputs and returns the work to time."""

    size: str
    ours: Callable[[CaseSettings], Work]
    reference: Callable[[CaseSettings], Work]
    only_cpu: bool = False


def _differentiated(function: Callable[..., Tensor], *leaves: Tensor) -> Work:
    """Return a function that runs forward and backward, with a constant incoming gradient."""
    weight = flow.ones_like(function(*leaves)).detach()

    def work() -> None:
        function(*leaves).backward(weight)
        for leaf in leaves:
            leaf.grad = None

    return work


# --- boxes and loss ---------------------------------------------------------------------------------------------------


def _overlap(function: Callable[..., Tensor]) -> Callable[[CaseSettings], Work]:
    def build(setting: CaseSettings) -> Work:
        random = np.random.default_rng(0)
        boxes = [random.uniform((0, 0, 1, 1), (20, 20, 9, 9), (20_000, 4)).astype(np.float32) for _ in range(2)]
        predicted = flow.tensor(boxes[0], device=setting.device, requires_grad=True)
        target = flow.tensor(boxes[1], device=setting.device)
        return _differentiated(lambda box: 1.0 - function(box, target, kind="ciou"), predicted)

    return build


def _loss(*, fused: bool) -> Callable[[CaseSettings], Work]:
    def build(setting: CaseSettings) -> Work:
        spec = load_model_spec("yolov5s")
        strides = tuple(float(stride) for stride in spec.strides)
        anchors = np.asarray(spec.anchors_px, np.float32) / np.asarray(strides, np.float32).reshape(-1, 1, 1)
        head = HeadGeometry(anchors, strides, spec.num_classes)
        config = LossConfig().scaled(heads=3, classes=spec.num_classes, image_px=320)
        criterion = DetectionLoss(head, config, fused_iou=fused).to(setting.device)
        # The layout of the head's output: channels are last with the plugin only.
        sides, outputs = [320 // px for px in spec.strides], spec.num_classes + 5
        maps = [setting.leaf(*((4, n, n, 3 * outputs) if fused else (4, 3, n, n, outputs))) for n in sides]
        labels = flow.tensor(_labels(4, 32, spec.num_classes), device=setting.device)
        return _differentiated(lambda *levels: criterion(list(levels), labels).total, *maps)

    return build


def _labels(batch: int, slots: int, classes: int) -> np.ndarray:
    random = np.random.default_rng(1)
    labels = random.uniform(0.2, 0.6, (batch, slots, 5)).astype(np.float32)
    labels[..., 0] = random.integers(0, classes, (batch, slots))
    return labels


# --- update -----------------------------------------------------------------------------------------------------------


def _parameter_shapes() -> list[tuple[int, ...]]:
    network = DetectionModel(load_model_spec("yolov5s"), seed=None)
    return [tuple(parameter.shape) for parameter in network.parameters()]


def _update(function: Callable[..., Tensor]) -> Callable[[CaseSettings], Work]:
    def build(setting: CaseSettings) -> Work:
        shapes = _parameter_shapes()
        parameters, gradients = ([setting.leaf(*shape, gradient=False) for shape in shapes] for _ in range(2))
        elements = sum(parameter.numel() for parameter in parameters)
        flat = [setting.leaf(elements, gradient=False) for _ in ("average", "gradient_sum", "first_moment")]
        groups = sorted(number % 3 for number in range(len(shapes)))
        state = UpdateState(parameters, groups, *flat)
        hyper = flow.tensor(
            UpdateSettings(
                learning_rates=(1e-4,) * 3, weight_decays=(0.0, 5e-4, 0.0), momentum=0.9, ema_decay=0.999, update=True
            ).vector(),
            device=setting.device,
        )
        return lambda: function("sgd", state, gradients, hyper)

    return build


def _memcpy(setting: CaseSettings) -> Work:
    """Copy as much memory as the update reads and writes.

    It reads five arrays (weights, gradient, its sum, momentum, average) and writes four: 9 x 4 bytes per parameter; a
    copy of n bytes touches 2 n.
    """
    parameters = sum(int(np.prod(shape)) for shape in _parameter_shapes())
    source = np.ones(parameters * 9 * 4 // 2, np.uint8)
    destination, pool = np.zeros_like(source), ThreadPoolExecutor(setting.threads)
    return lambda: parallel_copy(destination, source, pool, setting.threads)


# --- layers -----------------------------------------------------------------------------------------------------------


def _convolution(channels: int, kernel: int, side: int) -> Callable[[CaseSettings], Work]:
    def build(setting: CaseSettings) -> Work:
        x, weight = setting.leaf(4, channels, side, side), setting.leaf(channels, channels, kernel, kernel)
        return _differentiated(lambda a, b: _functional.conv2d(a, b, padding=kernel // 2), x, weight)

    return build


def _convolution_last(channels: int, kernel: int, side: int) -> Callable[[CaseSettings], Work]:
    def build(setting: CaseSettings) -> Work:
        geometry = ConvolutionGeometry(padding=(kernel // 2, kernel // 2))
        x, weight = setting.leaf(4, side, side, channels), setting.leaf(channels, channels, kernel, kernel)
        return _differentiated(lambda a, b: convolution(a, b, geometry), x, weight)

    return build


def _norm_silu(setting: CaseSettings) -> Work:
    x, gamma, beta = setting.leaf(4, 64, 80, 80), setting.leaf(64), setting.leaf(64)
    mean, variance = flow.zeros(64, device=setting.device), flow.ones(64, device=setting.device)

    def layer(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        y = flow._C.normalization(a, mean, variance, b, c, axis=1, epsilon=1e-3, momentum=0.03, is_training=True)
        return _functional.silu(y)

    return _differentiated(layer, x, gamma, beta)


def _norm_silu_last(setting: CaseSettings) -> Work:
    x, gamma, beta = setting.leaf(4, 80, 80, 64), setting.leaf(64), setting.leaf(64)
    mean, variance = flow.zeros(64, device=setting.device), flow.ones(64, device=setting.device)
    return _differentiated(
        lambda a, b, c: batch_norm(a, b, c, mean, variance, eps=1e-3, momentum=0.03, training=True, silu=True),
        x,
        gamma,
        beta,
    )


def _of(function: Callable[[Tensor], Tensor], *shape: int) -> Callable[[CaseSettings], Work]:
    return lambda setting: _differentiated(function, setting.leaf(*shape))


def _pool(x: Tensor) -> Tensor:
    return flow.nn.MaxPool2d(5, 1, 2)(x)


def _upsample(x: Tensor) -> Tensor:
    return flow.nn.UpsamplingNearest2d(scale_factor=2)(x)


def _concat(setting: CaseSettings) -> Work:
    parts = [setting.leaf(4, 128, 40, 40) for _ in range(4)]
    return _differentiated(lambda *tensors: flow.cat(list(tensors), dim=1), *parts)


# --- outside the step -------------------------------------------------------------------------------------------------


def _colour(setting: CaseSettings) -> Work:
    picture = np.random.default_rng(0).integers(0, 256, (640, 640, 3), np.uint8)
    planes = np.empty((3, 640, 640), np.uint8)
    return lambda: finish_picture([picture], 1.0, (1.01, 0.7, 1.2), planes)


def _nms_inputs() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    corners = random.uniform(0, 600, (2000, 2))
    boxes = np.concatenate((corners, corners + random.uniform(10, 120, (2000, 2))), axis=1).astype(np.float32)
    return boxes, random.random(2000, np.float32)


def _nms(setting: CaseSettings) -> Work:
    boxes, scores = _nms_inputs()
    return lambda: suppress(boxes, scores, 0.45)


def _nms_reference(setting: CaseSettings) -> Work:
    boxes, scores = _nms_inputs()
    return lambda: _greedy(boxes, scores, 0.45)


def _greedy(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> Sequence[int]:
    """Suppress boxes one by one, each compared with all remaining ones: the textbook implementation."""
    kept: list[int] = []
    left = np.argsort(-scores, kind="stable")
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    while left.size:
        first, rest = left[0], left[1:]
        kept.append(int(first))
        corner = np.maximum(boxes[first, :2], boxes[rest, :2])
        sides = np.clip(np.minimum(boxes[first, 2:], boxes[rest, 2:]) - corner, 0, None)
        overlap = sides[:, 0] * sides[:, 1]
        left = rest[overlap / (areas[first] + areas[rest] - overlap) <= threshold]
    return kept


def _both(build: Callable[[CaseSettings], Work], size: str, *, only_cpu: bool = False) -> Case:
    return Case(size, build, build, only_cpu)


_LAST = "channels-last"
CASES: Mapping[str, Case] = {
    CIOU: Case("20,000 pairs", _overlap(bbox_iou), _overlap(bbox_iou_reference)),
    "detection loss, forward + backward": Case(
        "yolov5s, 4 x 320 px, 128 labels", _loss(fused=True), _loss(fused=False)
    ),
    UPDATE: Case("yolov5s, 7.2 M", _update(update_parameters), _update(update_parameters_reference)),
    MEMCPY: _both(_memcpy, "yolov5s, 260 MB read and written", only_cpu=True),
    "convolution 3x3": _both(_convolution(64, 3, 80), "4 x 64 x 80 x 80"),
    "convolution 1x1": _both(_convolution(128, 1, 40), "4 x 128 x 40 x 40"),
    f"convolution 3x3, {_LAST}": Case("4 x 64 x 80 x 80", _convolution_last(64, 3, 80), _convolution(64, 3, 80)),
    f"convolution 1x1, {_LAST}": Case("4 x 128 x 40 x 40", _convolution_last(128, 1, 40), _convolution(128, 1, 40)),
    "BatchNorm + SiLU": _both(_norm_silu, "4 x 64 x 80 x 80"),
    f"BatchNorm + SiLU, {_LAST}": Case("4 x 64 x 80 x 80", _norm_silu_last, _norm_silu),
    "max-pool 5x5": _both(_of(_pool, 4, 256, 20, 20), "4 x 256 x 20 x 20"),
    f"max-pool 5x5, {_LAST}": Case(
        "4 x 256 x 20 x 20", _of(lambda x: max_pool(x, 5, 1, 2), 4, 20, 20, 256), _of(_pool, 4, 256, 20, 20)
    ),
    "upsample 2x": _both(_of(_upsample, 4, 128, 40, 40), "4 x 128 x 40 x 40"),
    f"upsample 2x, {_LAST}": Case(
        "4 x 128 x 40 x 40", _of(lambda x: upsample(x, 2), 4, 40, 40, 128), _of(_upsample, 4, 128, 40, 40)
    ),
    "concat": _both(_concat, "4 parts of 4 x 128 x 40 x 40"),
    "HSV gains and planes": _both(_colour, "640 x 640", only_cpu=True),
    "suppression (NMS)": Case("2,000 boxes", _nms, _nms_reference, only_cpu=True),
}
"""Cases by name."""

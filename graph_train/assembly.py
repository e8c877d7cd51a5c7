"""Puts a run together: data, network, loss, step, schedule, pipelines. The driver only runs what this builds."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from graph_train.autoanchor import AnchorRandom, check_anchors
from graph_train.devices import select_device
from graph_train.hyperparameters import Hyperparameters, load_hyperparameters
from graph_train.inference import Inference
from graph_train.options import TrainOptions
from graph_train.schedule import Schedule, check_image_size
from graph_train.state import LOSS_SCALE_START, Counters, TrainingState, frozen_layers
from graph_train.step import Compilation, EagerStep, GraphStep, TrainStep
from kernels.plugin import PluginStatus, load_plugin
from models.loss import DetectionLoss, LossConfig
from models.network import DetectionModel
from models.spec import ModelSpec, load_model_spec
from models.targets import HeadGeometry, label_capacity
from models.weights import LoadedWeights, load_weights, transfer
from pipelines.augment import AugmentConfig
from pipelines.dataset import Dataset, load_dataset
from pipelines.index import ImageIndex, index_images
from pipelines.train import TrainPipeline
from pipelines.val import ValPipeline

LOG = logging.getLogger("graph_train")
VAL_BATCH_FACTOR, VAL_PAD = 2, 0.5
"""As YOLOv5 validates while training: twice the batch, half a stride of border."""


@dataclass(frozen=True)
class Data:
    """The data set of a run, indexed."""

    dataset: Dataset
    train: ImageIndex
    val: ImageIndex

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name per class that is trained."""
        return self.train.class_names


@dataclass(frozen=True)
class Run:
    """Everything the driver needs."""

    options: TrainOptions
    hyp: Hyperparameters
    data: Data
    device: str
    image_px: int
    spec: ModelSpec
    state: TrainingState
    schedule: Schedule
    step: TrainStep
    inference: Inference
    train_pipeline: TrainPipeline
    val_pipeline: ValPipeline
    label_floor: int

    def close(self) -> None:
        """Ends the threads and buffers of the pipelines."""
        self.train_pipeline.close()
        self.val_pipeline.close()


def load_data(options: TrainOptions, *, cache_dir: Path | None = None) -> Data:
    """Finds and indexes the train and val split.

    Raises:
        ValueError: the data set is broken or empty; names what and where.
    """
    dataset = load_dataset(options.data.data)
    names = ("item",) if options.data.single_cls and len(dataset.class_names) != 1 else dataset.class_names
    splits = {
        split: index_images(
            sources,
            names if not options.data.single_cls else dataset.class_names,
            cache_dir=cache_dir,
            single_class=options.data.single_cls,
            workers=options.data.workers,
            progress=split,
            strict=options.data.strict,
        )
        for split, sources in (("train", dataset.train), ("val", dataset.val))
    }
    for split, index in splits.items():
        if not len(index):
            raise ValueError(f"{dataset.file}: no usable image in the {split} set; see the problems reported above")
    if options.data.single_cls:
        splits = {split: replace(index, class_names=names) for split, index in splits.items()}
    return Data(dataset=dataset, train=splits["train"], val=splits["val"])


def augmentation(hyp: Hyperparameters, *, rect: bool, quad: bool) -> AugmentConfig:
    """The part of the hyper-parameters that the pipeline uses."""
    names = (
        "hsv_h", "hsv_s", "hsv_v", "degrees", "translate", "scale", "shear", "perspective", "flipud", "fliplr",
        "mosaic", "mixup", "copy_paste",
    )  # fmt: skip
    return AugmentConfig(**{name: getattr(hyp, name) for name in names}, rect=rect, quad=quad)


def loss_config(hyp: Hyperparameters, *, levels: int, classes: int, image_px: int, smoothing: float) -> LossConfig:
    """The part of the hyper-parameters that the loss uses, scaled to this network and image size."""
    config = LossConfig(
        box=hyp.box,
        objectness=hyp.obj,
        classes=hyp.cls,
        cls_pw=hyp.cls_pw,
        obj_pw=hyp.obj_pw,
        anchor_t=hyp.anchor_t,
        fl_gamma=hyp.fl_gamma,
        label_smoothing=smoothing,
    )
    return config.scaled(heads=levels, classes=classes, image_px=image_px)


def head_geometry(network: DetectionModel) -> HeadGeometry:
    """What the loss must know of a network's head."""
    return HeadGeometry(network.anchors_cells, tuple(float(px) for px in network.stride), network.num_classes)


def _initial_weights(options: TrainOptions) -> LoadedWeights | None:
    return load_weights(Path(options.model.weights)) if options.model.weights else None


def _model_spec(options: TrainOptions, hyp: Hyperparameters, classes: int, weights: LoadedWeights | None) -> ModelSpec:
    cfg: str | Mapping[str, Any] = options.model.cfg
    if not cfg and weights is not None and weights.config is not None:
        cfg = weights.config
    if not cfg:
        raise ValueError("no network chosen: give --cfg (such as yolov5s.yaml), or --weights of a file that names one")
    return load_model_spec(cfg, num_classes=classes, anchors=hyp.anchors_per_level)


def _build_network(spec: ModelSpec, options: TrainOptions, data: Data, weights: LoadedWeights | None) -> DetectionModel:
    network = DetectionModel(spec, seed=options.optim.seed)
    network.names = list(data.class_names)
    if weights is not None:
        keep_anchors = bool(options.model.cfg)
        report = transfer(network, weights, exclude=("anchor",) if keep_anchors else ())
        LOG.info("%s", report)
    return network


def _fit_anchors(network: DetectionModel, options: TrainOptions, hyp: Hyperparameters, data: Data, px: int) -> None:
    """Auto-anchor: keeps the network's anchors if they reach nearly all boxes, else looks for better ones."""
    decision = check_anchors(
        data.train.sizes,
        [rows[:, 3:5] for rows in data.train.labels],
        network.anchors_cells * np.asarray(network.stride, np.float32).reshape(-1, 1, 1),
        network.stride,
        image_px=px,
        threshold=hyp.anchor_t,
        draws=AnchorRandom.from_seed(options.optim.seed),
        show_progress=True,
    )
    LOG.info(
        "AutoAnchor: %.2f anchors per box, best possible recall %.4f%s",
        decision.after.anchors_per_target,
        decision.after.best_possible_recall,
        f" (new anchors, was {decision.before.best_possible_recall:.4f})" if decision.replaced else "",
    )
    if decision.replaced:
        network.set_anchors_px(decision.anchors_px)


def typical_label_capacity(index: ImageIndex, tiles: int) -> int:
    """Capacity bucket that most batches fit: a mosaic shows about `tiles` images' worth of labels at most.

    Starting there, rather than at each batch's own need, keeps the number of compiled graphs small.
    """
    mean = sum(len(rows) for rows in index.labels) / max(len(index), 1)
    return label_capacity(int(np.ceil(mean * tiles)))


def load_kernels(options: TrainOptions) -> PluginStatus:
    """Loads the plugin as `--kernels` says, and reports it."""
    status = load_plugin(options.engine.kernels)  # type: ignore[arg-type]
    LOG.info("Kernels: %s", "plugin" if status.loaded else f"OneFlow's own ({status.reason})")
    return status


def assemble(options: TrainOptions, hyp: Hyperparameters, *, cache_dir: Path | None = None) -> Run:
    """Builds a run from its settings.

    Raises:
        ValueError, OSError: a setting or a file that cannot be used.
    """
    device = select_device(options.engine.device)
    load_kernels(options)
    weights = _initial_weights(options)
    data = load_data(options, cache_dir=cache_dir)
    spec = _model_spec(options, hyp, len(data.class_names), weights)
    image_px = check_image_size(options.data.imgsz, max(spec.strides), floor_px=2 * max(spec.strides))
    if image_px != options.data.imgsz:
        LOG.info("--imgsz %d is raised to %d, a multiple of the stride %d", options.data.imgsz, image_px, max(spec.strides))
    network = _build_network(spec, options, data, weights)
    if not options.model.noautoanchor:
        _fit_anchors(network, options, hyp, data, image_px)
    augment = augmentation(hyp, rect=options.data.rect, quad=options.data.quad)
    train_pipeline, val_pipeline = _pipelines(options, data, augment, image_px, max(spec.strides), device)
    return _with_step(options, hyp, data, device, image_px, spec, network, train_pipeline, val_pipeline, augment.tiles)


def _pipelines(
    options: TrainOptions, data: Data, augment: AugmentConfig, image_px: int, stride: int, device: str
) -> tuple[TrainPipeline, ValPipeline]:
    kind = "cuda" if device.startswith("cuda") else "cpu"
    train = TrainPipeline(
        data.train,
        augment,
        batch_size=min(options.optim.batch_size, len(data.train)),
        image_px=image_px,
        seed=options.optim.seed,
        workers=options.data.workers,
        device=kind,
        stride=stride,
        cache=options.data.cache or None,
    )
    val = ValPipeline(
        data.val,
        batch_size=options.optim.batch_size * VAL_BATCH_FACTOR,
        image_px=image_px,
        stride=stride,
        pad=VAL_PAD,
        rect=True,
        workers=options.data.workers,
        device=kind,
    )
    return train, val


def _report_compilation(event: Compilation) -> None:
    LOG.info(
        "Compiled the step for images %s, labels %s in %.1f s",
        "x".join(map(str, event.images)),
        "x".join(map(str, event.labels)),
        event.seconds,
    )


def _with_step(  # noqa: PLR0917 - one call, all parts named alike
    options: TrainOptions,
    hyp: Hyperparameters,
    data: Data,
    device: str,
    image_px: int,
    spec: ModelSpec,
    network: DetectionModel,
    train_pipeline: TrainPipeline,
    val_pipeline: ValPipeline,
    tiles: int,
) -> Run:
    average = DetectionModel(spec, seed=None)
    state = TrainingState(
        network.to(device),
        average.to(device),
        rule=options.optim.optimizer.lower(),
        freeze=frozen_layers(options.model.freeze),
    )
    config = loss_config(
        hyp,
        levels=len(spec.strides),
        classes=len(data.class_names),
        image_px=image_px,
        smoothing=options.optim.label_smoothing,
    )
    geometry = head_geometry(network)
    schedule = Schedule.from_hyperparameters(
        hyp,
        epochs=options.optim.epochs,
        batches_per_epoch=train_pipeline.batches_per_epoch,
        batch_size=options.optim.batch_size,
        optimizer=options.optim.optimizer,  # type: ignore[arg-type]
        cosine=options.optim.cos_lr,
    )
    on_gpu = device.startswith("cuda")
    amp = on_gpu if options.engine.amp is None else options.engine.amp
    if amp and on_gpu:
        state.counters = Counters(loss_scale=LOSS_SCALE_START)
    criterion = DetectionLoss(geometry, config).to(device)
    common: dict[str, Any] = {"weight_decays": schedule.weight_decays, "amp": amp and on_gpu}
    step: TrainStep = (
        GraphStep(state, criterion, on_compile=_report_compilation, **common)
        if options.engine.graph
        else EagerStep(state, criterion, **common)
    )
    floor = typical_label_capacity(data.train, tiles)
    inference = Inference(
        state.average, DetectionLoss(geometry, config).to(device), graph=options.engine.graph, label_floor=floor
    )
    return Run(
        options, hyp, data, device, image_px, spec, state, schedule, step, inference, train_pipeline, val_pipeline, floor
    )


def hyperparameters_of(options: TrainOptions) -> Hyperparameters:
    """The hyper-parameter file that `--hyp` names."""
    return load_hyperparameters(options.optim.hyp)

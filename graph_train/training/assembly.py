"""Assembly of a run: data, network, loss, step, schedule and pipelines."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from graph_train.detection.inference import Inference
from graph_train.engine.precision import ComputeDevice, checked_activation_type, load_kernels
from graph_train.engine.rank_devices import agree_on_type, common_type
from graph_train.engine.schedule import IterationSettings, Schedule, check_image_size
from graph_train.engine.state import LOSS_SCALE_START, Counters, TrainingState, frozen_layers
from graph_train.engine.step import Compilation, EagerStep, GraphStep, StepConfig, TrainStep
from graph_train.host.published_weights import located_weights
from graph_train.ranks.launcher import RankInfo
from graph_train.settings.hyperparameters import Hyperparameters
from graph_train.settings.train_options import TrainOptions
from graph_train.training.autoanchor import AnchorRandom, check_anchors
from graph_train.training.setup import Setup, load_data, run_device
from kernels.framework.activation_type import ActivationType
from models.loss import DetectionLoss
from models.loss_config import LossConfig
from models.network import DetectionModel
from models.padded_labels import typical_label_capacity
from models.spec import ModelSpec, load_model_spec
from models.weights import LoadedWeights, load_weights, transfer
from pipelines.settings import BatchSettings
from pipelines.train import TrainPipeline
from pipelines.val import ValPipeline

LOG = logging.getLogger("graph_train")
VAL_BATCH_FACTOR = 2
"""Validation batch size during training, relative to the training batch size; as in YOLOv5."""
QUAD_LOSS_FACTOR = 4.0
"""Factor on the loss of quad batches, which have a quarter of the images; as in YOLOv5."""


@dataclass(frozen=True)
class TrainingRun:
    """All parts of a run that `Trainer` needs."""

    setup: Setup
    state: TrainingState
    schedule: Schedule
    step: TrainStep
    inference: Inference
    train_pipeline: TrainPipeline
    val_pipeline: ValPipeline
    label_floor: int
    """Minimum label capacity of a batch. Most batches fit it, so that few shapes are compiled."""

    def close(self) -> None:
        """Stop the pipelines' threads and free their buffers."""
        self.train_pipeline.close()
        self.val_pipeline.close()


@dataclass(frozen=True)
class SavedNetwork:
    """The network configuration and the anchors that a resumed run takes from its checkpoint."""

    config: Mapping[str, Any]
    anchors_px: npt.NDArray[np.float32]


def _initial_weights(options: TrainOptions) -> LoadedWeights | None:
    given = options.model.weights
    return load_weights(located_weights(given, allow_download=options.data.allow_download)) if given else None


def assemble(
    options: TrainOptions,
    hyp: Hyperparameters,
    saved: SavedNetwork | None = None,
    *,
    rank: RankInfo = RankInfo(),  # noqa: B008 - a frozen value
    fit_anchors: bool = True,
) -> TrainingRun:
    """Build a run from its settings.

    Args:
        options, hyp: the settings.
        saved: network and anchors of the run that is resumed.
        rank: this process's rank; by default the only one.
        fit_anchors: whether to check and fit the anchors, which is not needed to measure memory.
    Raises:
        ValueError, OSError: a setting or a file is invalid.
    """
    device = run_device(options, rank)
    weights = _initial_weights(options) if saved is None else None
    cfg = _network_config(options, weights, saved)
    # Before the data are indexed, which takes minutes; a file was checked before the run folder was created.
    if isinstance(cfg, Mapping) and (rows := _rows(cfg)):
        frozen_layers(options.model.freeze, len(rows))
    data = load_data(options)
    spec = _model_spec(cfg, options, hyp, len(data.class_names), resumed=saved is not None)
    setup = Setup(options, hyp, data, device, _image_px(options.data.imgsz, spec.grid_px), rank)
    # After all checks of the settings, because the first use of the plugin compiles it for a minute.
    machine, activation_type = _load_kernels(options, device, rank)
    activation_type = agree_on_type(machine, activation_type, setup.exchange)
    network = DetectionModel(spec, seed=options.optim.seed)
    network.names = list(data.class_names)
    if machine.newer_than_oneflow:
        machine.reject_ops(_uncovered_ops(network, options))
    _load_weights_and_anchors(network, setup, weights, saved, fit_anchors=fit_anchors)
    checked = checked_activation_type(network, activation_type, device)
    network.compute_in(common_type(map(ActivationType, setup.exchange.all_gather([checked])[:, 0])))
    return _training_run(setup, network)


def _load_weights_and_anchors(
    network: DetectionModel,
    setup: Setup,
    weights: LoadedWeights | None,
    saved: SavedNetwork | None,
    *,
    fit_anchors: bool,
) -> None:
    """Load the initial weights, if any, and set the anchors: those of the resumed run, or those that fit the data."""
    if saved is not None:
        network.set_anchors_px(saved.anchors_px)
    elif weights is not None:
        # With --cfg, or `anchors` in the hyper-parameters, the anchors of the weights are not used.
        own_anchors = setup.options.model.cfg or setup.hyp.anchors_per_level
        LOG.info("%s", transfer(network, weights, exclude=("anchor",) if own_anchors else ()))
    if not fit_anchors:
        network.set_anchors_px(np.ones_like(anchors_px(network)))
    elif saved is None:
        _choose_anchors(network, setup)


def _uncovered_ops(network: DetectionModel, options: TrainOptions) -> list[str]:
    """Return the step's ops without a CUDA kernel in the plugin, found by building the step on the CPU."""
    state = TrainingState(network, DetectionModel(network.spec, seed=None), rule="sgd")
    criterion = DetectionLoss(network.head_geometry, LossConfig(), fused_iou=options.engine.bbox_iou_optim)
    step = EagerStep(state, criterion, StepConfig(weight_decays=(0.0, 0.0, 0.0)))
    side = 2 * network.spec.coarsest_stride
    settings = IterationSettings(lr_bias=0.0, lr_weight=0.0, lr_norm=0.0, momentum=0.0, update=True)
    return step.uncovered_ops((1, network.spec.channels, side, side), (1, 1, 5), settings)


def _load_kernels(options: TrainOptions, device: str, rank: RankInfo) -> tuple[ComputeDevice, ActivationType]:
    """Load the kernels as `load_kernels` does, and log which flags have no effect with them."""
    machine, chosen = load_kernels(options.engine.kernels, device, amp=options.engine.amp)  # type: ignore[arg-type]
    if options.engine.amp and chosen is ActivationType.FLOAT32:
        LOG.info("--amp: bfloat16 is no faster than float32 on this CPU; using float32")
    if options.engine.bbox_iou_optim and not machine.plugin:
        LOG.info("--bbox-iou-optim: has no effect without the kernel plugin")
    if options.optim.sync_bn and rank.single_rank:
        LOG.info("--sync-bn: has no effect with a single process")
    return machine, chosen


def _image_px(imgsz: int, stride: int) -> int:
    image_px = check_image_size(imgsz, stride, floor_px=2 * stride)
    if image_px != imgsz:
        LOG.info("--imgsz %d must be a multiple of the stride %d; using %d", imgsz, stride, image_px)
    return image_px


def _network_config(
    options: TrainOptions, weights: LoadedWeights | None, saved: SavedNetwork | None
) -> str | Mapping[str, Any]:
    """Return the model yaml or its content.

    Raises:
        ValueError: neither `--cfg` nor the weights have one.
    """
    # A resumed run uses the network in its checkpoint: the yaml may have changed or be gone.
    cfg = saved.config if saved else options.model.cfg or (weights.config if weights else None)
    if not cfg:
        raise ValueError(f"{options.model.weights}: has no network configuration; add --cfg, such as yolov5s.yaml")
    return cfg


def _rows(config: Mapping[str, Any]) -> list[Any]:
    """Return the layers of a network that is not checked yet."""
    parts = (config.get("backbone"), config.get("head"))
    return [row for part in parts if isinstance(part, list) for row in part]


def _model_spec(
    cfg: str | Mapping[str, Any], options: TrainOptions, hyp: Hyperparameters, classes: int, *, resumed: bool
) -> ModelSpec:
    source = "the checkpoint's network" if resumed else f"{options.model.weights}: its network"
    spec = load_model_spec(cfg, num_classes=classes, anchors=hyp.anchors_per_level, source=source)
    spec.require_rgb()
    return spec


def anchors_px(network: DetectionModel) -> npt.NDArray[np.float32]:
    """Return the anchors (levels, anchors, 2), width and height in px."""
    return network.anchors_cells * np.asarray(network.stride, np.float32).reshape(-1, 1, 1)


def _choose_anchors(network: DetectionModel, setup: Setup) -> None:
    """Run AutoAnchor, unless it is disabled or there are no labels.

    Raises:
        ValueError: AutoAnchor is disabled, and the network has no anchors.
    """
    no_labels = not setup.data.train.num_boxes
    if not setup.options.model.noautoanchor and not no_labels:
        _fit_anchors(network, setup)
        return
    if network.anchors_cells.min() <= 0:
        reason = "there are no labels to fit them to" if no_labels else "--noautoanchor disables fitting them"
        raise ValueError(
            f"anchors: {network.head.anchors_per_level} per level are configured, but {reason}; give their sizes in "
            "px in the model yaml" + ("" if no_labels else ", or remove --noautoanchor")
        )
    if no_labels:
        LOG.info("AutoAnchor: no labels; keeping the anchors")


def _fit_anchors(network: DetectionModel, setup: Setup) -> None:
    """Keep the network's anchors if they fit nearly all boxes, else fit new ones."""
    decision = check_anchors(
        setup.data.train.sizes,
        setup.data.train.labels,
        anchors_px(network),
        network.stride,
        image_px=setup.image_px,
        threshold=setup.hyp.anchor_t,
        rng=AnchorRandom.from_seed(setup.options.optim.seed),
    )
    LOG.info(
        "AutoAnchor: %.2f anchors per box, best possible recall %.4f%s",
        decision.after.anchors_per_target,
        decision.after.best_possible_recall,
        f" (new anchors; was {decision.before.best_possible_recall:.4f})" if decision.replaced else "",
    )
    if decision.replaced:
        network.set_anchors_px(decision.anchors_px)


def _training_state(setup: Setup, network: DetectionModel) -> TrainingState:
    options, placement = setup.options, setup.placement
    frozen = frozen_layers(options.model.freeze, len(network.model))
    average = DetectionModel(network.spec, seed=None).compute_in(network.activation_type)
    average.names = list(setup.data.class_names)
    network.synchronise_statistics(options.optim.sync_bn)
    return TrainingState(
        placement.replicate_module(network),
        placement.replicate_module(average),
        rule=options.optim.optimizer.lower(),  # type: ignore[arg-type]
        freeze=frozen,
        placement=placement,
    )


def _training_run(setup: Setup, network: DetectionModel) -> TrainingRun:
    """Build the state, step, schedule, loss and pipelines around a network."""
    options, placement = setup.options, setup.placement
    state = _training_state(setup, network)
    geometry, config = network.head_geometry, loss_config(setup, levels=len(network.stride))
    train_pipeline, val_pipeline = _pipelines(setup, network.spec.grid_px)
    schedule = Schedule.from_hyperparameters(
        setup.hyp,
        epochs=options.optim.epochs,
        batches_per_epoch=train_pipeline.batches_per_epoch,
        batch_size=options.optim.batch_size,
        optimizer=options.optim.optimizer,  # type: ignore[arg-type]
        cosine=options.optim.cos_lr,
    )
    floor = typical_label_capacity(setup.data.train.labels, setup.augment.tiles)
    criterion, val_criterion = (
        placement.replicate_module(DetectionLoss(geometry, config, fused_iou=options.engine.bbox_iou_optim))
        for _ in range(2)
    )
    return TrainingRun(
        setup=setup,
        state=state,
        schedule=schedule,
        step=_step(setup, state, criterion, schedule),
        inference=Inference(
            state.average,
            val_criterion,
            # On a GPU only graphs share their memory.
            graph=None if options.engine.graph and placement.single_cpu else options.engine.graph,
            label_floor=floor,
            placement=placement,
            exchange=setup.exchange,
        ),
        train_pipeline=train_pipeline,
        val_pipeline=val_pipeline,
        label_floor=floor,
    )


def _step(setup: Setup, state: TrainingState, criterion: DetectionLoss, schedule: Schedule) -> TrainStep:
    if state.network.activation_type is ActivationType.FLOAT16:
        state.counters = Counters(loss_scale=LOSS_SCALE_START)
    config = StepConfig(
        weight_decays=schedule.weight_decays,
        loss_factor=QUAD_LOSS_FACTOR if setup.options.data.quad else 1.0,
        placement=setup.placement,
        accumulates=schedule.accumulates,
    )
    if setup.options.engine.graph:
        return GraphStep(state, criterion, config, _report_compilation)
    return EagerStep(state, criterion, config)


def _report_compilation(event: Compilation) -> None:
    if not event.labels:
        LOG.info("Compiled the update of accumulated gradients in %.1f s", event.seconds)
        return
    images, labels = ("x".join(map(str, shape)) for shape in (event.images, event.labels))
    LOG.info("Compiled the step for images %s, labels %s in %.1f s", images, labels, event.seconds)


def _pipelines(setup: Setup, stride: int) -> tuple[TrainPipeline, ValPipeline]:
    optim = setup.options.optim
    settings = BatchSettings(
        batch_size=optim.batch_size,
        image_px=setup.image_px,
        workers=setup.threads,
        device=setup.device,
        stride=stride,
        shard=setup.shard,
        cache=setup.options.data.cache or None,  # type: ignore[arg-type]
    )
    val_batch_size = min(optim.batch_size * VAL_BATCH_FACTOR, len(setup.data.val))
    return (
        TrainPipeline(setup.data.train, setup.augment, settings, seed=optim.seed),
        ValPipeline(setup.data.val, replace(settings, batch_size=val_batch_size)),
    )


def loss_config(setup: Setup, *, levels: int) -> LossConfig:
    """Return the loss's hyper-parameters, scaled to this network and image size."""
    hyp = setup.hyp
    config = LossConfig(
        box=hyp.box,
        objectness=hyp.obj,
        classes=hyp.cls,
        cls_pw=hyp.cls_pw,
        obj_pw=hyp.obj_pw,
        anchor_t=hyp.anchor_t,
        fl_gamma=hyp.fl_gamma,
        label_smoothing=setup.options.optim.label_smoothing,
    )
    return config.scaled(heads=levels, classes=len(setup.data.class_names), image_px=setup.image_px)

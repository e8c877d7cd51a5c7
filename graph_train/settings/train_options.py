"""Settings of `graph-train`: flags, defaults and help as one frozen tree. Imports nothing heavy.

Names and defaults are those of YOLOv5's `train.py`; `docs/compatibility.md` lists the few that differ.
"""

import argparse
import importlib.util
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from typing import Any

from graph_train.ranks.team import DEFAULT_TIMEOUT
from graph_train.settings.flag_table import (
    DATA_DOWNLOAD_HELP,
    DOWNLOAD_HELP,
    KERNELS_HELP,
    NUMBERS,
    OPTIONAL_VALUE,
    SWITCH,
    add_flags,
    check_flags,
    check_range,
    check_ranges,
    dashed,
    flag,
    reject_empty,
    reject_unknown,
    typed,
)
from graph_train.settings.parser import CommandParser
from kernels.host.extras import install_command

AUTO_BATCH = -1
"""Value of `--batch-size` for AutoBatch, which finds the largest batch that fits in memory."""
LOGGERS = ("csv", "tensorboard", "wandb", "mlflow")
"""Values of `--loggers`; `csv` is always on, because resuming needs it."""
_EXTRAS = ("wandb", "mlflow")
WANDB_ONLY: Mapping[str, Any] = {"entity": "", "upload_dataset": "", "bbox_interval": -1}
"""Flags that only this logger uses, with their defaults."""
BUCKET_CLIENT = "gsutil"
"""The program that `--bucket` runs."""
MIN_IMAGE_PX, MAX_IMAGE_PX = 32, 1 << 14
MAX_BATCH = 1 << 16
MAX_LAYERS = 100_000
RANGES: Mapping[str, tuple[int, int]] = {
    "epochs": (1, 1_000_000),
    "imgsz": (MIN_IMAGE_PX, MAX_IMAGE_PX),
    "workers": (0, 4096),
    "patience": (0, 1 << 31),
    "seed": (0, (1 << 32) - 1),  # NumPy's range
    "evolve": (0, 1_000_000),
    "save_steps": (0, 1 << 31),
    "save_minutes": (0, 1_000_000),
    "keep_saves": (1, 1000),
    "max_nonfinite": (0, 1 << 31),
    "dist_timeout": (1, 1_000_000),
}
"""Allowed ranges; the upper bounds catch typing errors that would otherwise exhaust memory."""


@dataclass(frozen=True)
class ModelOptions:
    """Model and initial weights."""

    weights: str = flag("", "initial weights: .safetensors, .pt or a OneFlow folder; '' trains from scratch")
    cfg: str = flag("", "model yaml, a path or a shipped name such as yolov5n.yaml; '' takes it from the weights")
    freeze: tuple[int, ...] = flag(
        (0,), "layers to freeze: one number n freezes the first n, several are layer indices", kind=NUMBERS
    )
    noautoanchor: bool = flag(False, "disable AutoAnchor", kind=SWITCH)


@dataclass(frozen=True)
class DataOptions:
    """Data and augmentation."""

    data: str = flag("shapes", "dataset yaml, or `shapes` for the built-in set")
    imgsz: int = flag(640, "train and val image size in px", kind=int, aliases=("--img", "--img-size"))
    rect: bool = flag(False, "rectangular training batches", kind=SWITCH)
    cache: str = flag(
        "",
        "cache images in memory (ram) or on disk (disk)",
        kind=OPTIONAL_VALUE,
        const="ram",
        aliases=("--cache-images",),
    )
    image_weights: bool = flag(False, "sample images of classes with low mAP more often", kind=SWITCH)
    multi_scale: bool = flag(False, "vary the image size by up to 50%% per batch", kind=SWITCH)
    single_cls: bool = flag(False, "train multi-class data as single-class", kind=SWITCH)
    quad: bool = flag(False, "quad batches: join groups of four images into one of twice the size", kind=SWITCH)
    workers: int = flag(8, "data loading threads per rank, at most one per core", kind=int)
    strict: bool = flag(False, "stop on any problem in the data set", kind=SWITCH)
    allow_download: bool = flag(False, f"{DOWNLOAD_HELP}; and {DATA_DOWNLOAD_HELP}", kind=SWITCH)


@dataclass(frozen=True)
class OptimOptions:
    """Optimizer and schedule."""

    hyp: str = flag("hyp.scratch-low.yaml", "hyper-parameter yaml, a path or a shipped name")
    epochs: int = flag(100, "total training epochs", kind=int)
    batch_size: int = flag(16, "total batch size over all ranks; -1 for AutoBatch", kind=int, aliases=("--batch",))
    optimizer: str = flag("SGD", "optimizer", choices=("SGD", "Adam", "AdamW"))
    cos_lr: bool = flag(False, "cosine learning rate schedule", kind=SWITCH)
    max_nonfinite: int = flag(20, "stop after N consecutive non-finite updates; 0 never stops", kind=int)
    label_smoothing: float = flag(0.0, "label smoothing epsilon", kind=float)
    patience: int = flag(100, "early stopping: epochs without improvement; 0 never stops", kind=int)
    sync_bn: bool = flag(False, "synchronise BatchNorm statistics over all ranks", kind=SWITCH)
    seed: int = flag(0, "random seed", kind=int)
    evolve: int = flag(0, "evolve hyper-parameters for N generations", kind=OPTIONAL_VALUE, const=300)


@dataclass(frozen=True)
class EngineOptions:
    """Device and execution."""

    graph: bool = flag(True, "run the whole step as one compiled graph (default)", kind=SWITCH, off="--eager")
    amp: bool | None = flag(None, "mixed precision (default: on with CUDA, off on CPU)", kind=SWITCH, off="--no-amp")
    kernels: str = flag("auto", KERNELS_HELP, choices=("auto", "off", "require"))
    bbox_iou_optim: bool = flag(
        True, "use the fused box-IoU loss (default; needs the kernel plugin)", kind=SWITCH, off="--no-bbox-iou-optim"
    )
    device: str = flag("", "CUDA devices such as 0 or 0,1, or cpu; '' uses the GPU if there is one")
    local_rank: int = flag(-1, "set by the launcher; kept for compatibility", kind=int)


@dataclass(frozen=True)
class RunOptions:
    """Run folder and output files."""

    project: str = flag("runs/train", "save to project/name")
    name: str = flag("exp", "save to project/name")
    exist_ok: bool = flag(False, "reuse an existing project/name", kind=SWITCH)
    resume: str = flag(
        "", "resume the most recent run, or the given run folder or checkpoint", kind=OPTIONAL_VALUE, const="last"
    )
    nosave: bool = flag(False, "save only the final checkpoint", kind=SWITCH)
    noval: bool = flag(False, "validate only after the final epoch", kind=SWITCH, aliases=("--notest",))
    noplots: bool = flag(False, "do not save plots", kind=SWITCH)
    save_period: int = flag(-1, "save an additional checkpoint every N epochs; -1 disables it", kind=int)
    save_steps: int = flag(0, "also save a checkpoint every N batches, in the background; 0 disables it", kind=int)
    save_minutes: float = flag(0.0, "also save a checkpoint every N minutes; 0 disables it", kind=float)
    keep_saves: int = flag(2, "number of most recent checkpoints to keep", kind=int)
    on_save_error: str = flag(
        "stop", "if a file cannot be saved: stop, or continue and retry later", choices=("stop", "continue")
    )
    dist_timeout: float = flag(DEFAULT_TIMEOUT, "seconds to wait for all ranks to join", kind=float)
    debug: bool = flag(False, "show tracebacks", kind=SWITCH)
    loggers: str = flag("csv,tensorboard", f"comma-separated loggers: {', '.join(LOGGERS)}; csv is always on")
    bucket: str = flag("", "Google Cloud bucket to copy the results of --evolve to; requires gsutil")
    entity: str = flag("", "Weights & Biases: entity (user or team)")
    upload_dataset: str = flag(
        "", "Weights & Biases: upload the data set, or only its val split (val)", kind=OPTIONAL_VALUE, const="all"
    )
    bbox_interval: int = flag(-1, "Weights & Biases: epochs between logged images with boxes; -1 disables it", kind=int)
    artifact_alias: str = flag("latest", "Weights & Biases: data set version; only latest is supported")

    @property
    def logger_names(self) -> tuple[str, ...]:
        """The names in `loggers`, without duplicates."""
        return tuple(dict.fromkeys(name.strip() for name in self.loggers.split(",") if name.strip()))


@dataclass(frozen=True)
class TrainOptions:
    """All settings of a training run."""

    model: ModelOptions = field(default_factory=ModelOptions)
    data: DataOptions = field(default_factory=DataOptions)
    optim: OptimOptions = field(default_factory=OptimOptions)
    engine: EngineOptions = field(default_factory=EngineOptions)
    run: RunOptions = field(default_factory=RunOptions)

    @property
    def branches(self) -> tuple[Any, ...]:
        """The groups of settings, in the order of the help."""
        return (self.model, self.data, self.optim, self.engine, self.run)

    def as_flat_dict(self) -> dict[str, Any]:
        """Return all settings by flag name with underscores, as stored in `opt.yaml`."""
        return {
            item.name: list(value) if isinstance(value := getattr(branch, item.name), tuple) else value
            for branch in self.branches
            for item in fields(branch)
        }


_BRANCHES: Mapping[str, type] = {
    "model": ModelOptions,
    "data": DataOptions,
    "optim": OptimOptions,
    "engine": EngineOptions,
    "run": RunOptions,
}


def flag_fields() -> dict[str, Field[Any]]:
    """Return all flags by Python name, in the order of the help."""
    return {item.name: item for branch in _BRANCHES.values() for item in fields(branch)}


def options_from_flags(**flags: Any) -> TrainOptions:
    """Build the settings from the arguments of `train(...)`, flag names with underscores.

    Raises:
        ValueError: an unknown flag (with the nearest match), or an invalid value or combination.
    """
    known = flag_fields()
    reject_unknown(flags, known)
    values = {name: typed(known[name], value) for name, value in flags.items()}
    branches = {
        key: kind(**{item.name: values[item.name] for item in fields(kind) if item.name in values})
        for key, kind in _BRANCHES.items()
    }
    options = TrainOptions(**branches)
    _check(options)
    return options


def require_network(options: TrainOptions) -> None:
    """Reject a new run without a network.

    Raises:
        ValueError: there is neither `--cfg` nor `--weights`.
    """
    if not (options.model.cfg or options.model.weights or options.run.resume):
        raise ValueError("no network given: use --cfg, such as yolov5s.yaml, or --weights of a trained network")


def _check(options: TrainOptions) -> None:
    """Reject invalid values."""
    for branch in options.branches:
        check_flags(branch)
        reject_empty(branch, ("data", "hyp", "artifact_alias"))
        own = {item.name for item in fields(branch)}
        check_ranges(branch, {name: limits for name, limits in RANGES.items() if name in own})
    batch = options.optim.batch_size
    if batch < 1 and batch != AUTO_BATCH:
        raise ValueError(f"--batch-size {batch}: must be at least 1, or -1 for AutoBatch")
    check_range("batch_size", max(batch, 1), 1, MAX_BATCH)
    if not 0 <= options.optim.label_smoothing < 1:
        raise ValueError(f"--label-smoothing {options.optim.label_smoothing}: must be in [0, 1)")
    if options.data.cache not in ("", "ram", "disk"):
        raise ValueError(f"--cache {options.data.cache!r}: must be ram or disk")
    if min(options.model.freeze, default=0) < 0:
        raise ValueError(f"--freeze {list(options.model.freeze)}: layers count from 0")
    check_range("freeze", max(options.model.freeze, default=0), 0, MAX_LAYERS)
    _check_combinations(options)
    _check_loggers(options.run)
    _check_bucket(options)


def _check_combinations(options: TrainOptions) -> None:
    """Reject flags that cannot be used together."""
    data, batch = options.data, options.optim.batch_size
    for name in ("image_weights", "multi_scale", "quad"):
        if data.rect and getattr(data, name):
            raise ValueError(
                f"--rect cannot be used with {dashed(name)}, because it fixes the order and the size of the images; "
                "remove one of them"
            )
    if data.quad and batch != AUTO_BATCH and batch % 4:
        raise ValueError(f"--quad: --batch-size {batch} must be a multiple of 4")
    for name in ("save_steps", "save_minutes"):
        for other, set_ in (("nosave", options.run.nosave), ("evolve", options.optim.evolve)):
            if getattr(options.run, name) and set_:
                raise ValueError(
                    f"{dashed(name)} cannot be used with --{other}, which saves no checkpoints during training; "
                    "remove one of them"
                )
    if options.run.save_period > 0 and (options.run.nosave or options.optim.evolve):
        other = "nosave" if options.run.nosave else "evolve"
        raise ValueError(
            f"--save-period cannot be used with --{other}, which saves no checkpoints during training; remove one of "
            "them"
        )
    if options.optim.evolve and set(options.run.logger_names) & set(_EXTRAS):
        raise ValueError(
            f"--loggers {options.run.loggers}: not supported with --evolve, which trains in separate processes; "
            "remove it"
        )
    if options.run.resume and options.optim.evolve:
        raise ValueError("--resume: not supported with --evolve; to continue an evolution, use --name with --exist-ok")


def _check_loggers(run: RunOptions) -> None:
    """Reject unknown loggers, and flags of a logger that is not used."""
    for name in run.logger_names:
        if name not in LOGGERS:
            raise ValueError(f"--loggers {name!r}: must be one or more of {', '.join(LOGGERS)}, comma-separated")
        if name in _EXTRAS and importlib.util.find_spec(name) is None:
            raise ValueError(f"--loggers {name}: not installed; {install_command(name)}")
    if run.upload_dataset not in ("", "all", "val"):
        raise ValueError(f"--upload_dataset {run.upload_dataset!r}: must be all or val")
    if run.artifact_alias != "latest":
        raise ValueError(
            f"--artifact_alias {run.artifact_alias!r}: not supported, data sets are not read from W&B; give a path "
            "with --data"
        )
    if "wandb" not in run.logger_names:
        for name, unused in WANDB_ONLY.items():
            if getattr(run, name) != unused:
                raise ValueError(f"--{name} {getattr(run, name)!r}: requires --loggers wandb")


def _check_bucket(options: TrainOptions) -> None:
    """Reject a bucket without --evolve or without its client."""
    bucket = options.run.bucket
    if bucket and not options.optim.evolve:
        raise ValueError(
            f"--bucket {bucket!r}: requires --evolve; for a single training, copy the run folder when it is done"
        )
    if bucket and shutil.which(BUCKET_CLIENT) is None:
        raise ValueError(
            f"--bucket {bucket!r}: {BUCKET_CLIENT} (Google Cloud CLI) is not installed; install it, or copy the run "
            "folder when the evolution is done"
        )


_FORMER_FLAGS = {
    "--adam": "replaced by --optimizer Adam",
    "--linear-lr": "the linear schedule is the default; remove it, or use --cos-lr for the cosine schedule",
}
"""Flags of earlier versions of YOLOv5 that were removed."""


def _advice(flag: str) -> str:
    """Return what to use instead of a flag that does not exist, or ""."""
    # Imported here because only a mistake needs it.
    from graph_train.settings.hyperparameters import KNOWN_KEYS

    if flag[2:].replace("-", "_") in KNOWN_KEYS:
        return "a hyper-parameter, not a flag; write it to a yaml file and give that with --hyp"
    return _FORMER_FLAGS.get(flag, "")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; the namespace contains only the flags that were given."""
    parser = CommandParser(
        prog="graph-train",
        advice=_advice,
        description="Train YOLOv5-family detectors with the whole training step in one compiled graph.",
        epilog="Exit codes: 0 success, 1 internal error, 2 user error, 3 a file could not be saved, 4 diverged (too "
        "many non-finite updates), 5 another rank was lost, 130 interrupted (after saving).",
    )
    for branch in _BRANCHES.values():
        add_flags(parser.add_argument_group((branch.__doc__ or "").rstrip(".")), branch)
    return parser


def given_flags(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Parse a command line into the flags that were given. Exits with code 2 on an unknown flag or invalid value."""
    return vars(build_parser().parse_args(arguments))

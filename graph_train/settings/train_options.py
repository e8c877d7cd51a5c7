"""The settings of a training run: one frozen tree, whose fields are at once the flags, their defaults and their help.

Names and defaults are those of YOLOv5's `train.py`; `docs/compatibility.md` lists the few that differ. Nothing heavy
is imported here: `--help` and argument errors answer at once.
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
    NUMBERS,
    OPTIONAL_VALUE,
    SWITCH,
    add_flags,
    check_flags,
    check_range,
    check_ranges,
    dashed,
    flag,
    refuse_unknown,
    typed,
)
from graph_train.settings.parser import CommandParser
from kernels.host.extras import install_command

AUTO_BATCH = -1
"""`--batch-size` that stands for: as many images as memory holds."""
LOGGERS = ("csv", "tensorboard", "wandb", "mlflow")
"""What `--loggers` may name; `csv` is always written, since a resumed run reads it."""
_EXTRAS = ("wandb", "mlflow")
WANDB_ONLY: Mapping[str, Any] = {"entity": "", "upload_dataset": "", "bbox_interval": -1}
"""Flags that only this logger reads, with what they are without it."""
BUCKET_CLIENT = "gsutil"
"""The program that `--bucket` needs."""
MIN_IMAGE_PX, MAX_IMAGE_PX = 32, 1 << 14
MAX_BATCH = 1 << 16
RANGES: Mapping[str, tuple[int, int]] = {
    "epochs": (1, 1_000_000),
    "imgsz": (MIN_IMAGE_PX, MAX_IMAGE_PX),
    "workers": (0, 4096),
    "patience": (0, 1 << 31),
    "seed": (0, (1 << 32) - 1),  # what NumPy takes, and YOLOv5 with it
    "evolve": (0, 1_000_000),
    "save_steps": (0, 1 << 31),
    "save_minutes": (0, 1_000_000),
    "keep_saves": (1, 1000),
    "max_nonfinite": (0, 1 << 31),
    "dist_timeout": (1, 1_000_000),
}
"""Lowest and highest value of numbers; above them lie slips of the keyboard that would only run out of memory."""


@dataclass(frozen=True)
class ModelOptions:
    """Model and initial weights."""

    weights: str = flag("", "initial weights: .safetensors, .pt or a OneFlow folder; '' trains from scratch")
    cfg: str = flag("", "model yaml, a path or a shipped name such as yolov5n.yaml; '' takes it from the weights")
    freeze: tuple[int, ...] = flag(
        (0,), "layers to freeze: one number n freezes the first n, several name the layers", kind=NUMBERS
    )
    noautoanchor: bool = flag(False, "keep the anchors of the model yaml without a check", kind=SWITCH)


@dataclass(frozen=True)
class DataOptions:
    """Images and how they are fed."""

    data: str = flag("shapes", "dataset yaml, or `shapes` for the built-in set")
    imgsz: int = flag(640, "train and val image size in px", kind=int, aliases=("--img", "--img-size"))
    rect: bool = flag(False, "rectangular training batches", kind=SWITCH)
    cache: str = flag(
        "",
        "keep images in memory (ram) or on disk (disk)",
        kind=OPTIONAL_VALUE,
        const="ram",
        aliases=("--cache-images",),
    )
    image_weights: bool = flag(False, "draw images of badly found classes more often", kind=SWITCH)
    multi_scale: bool = flag(False, "vary the image size by up to 50 %% from batch to batch", kind=SWITCH)
    single_cls: bool = flag(False, "train several classes as one", kind=SWITCH)
    quad: bool = flag(
        False, "quad batches: every fourth image of a batch is joined into one of twice the size", kind=SWITCH
    )
    workers: int = flag(8, "data loading threads per rank, at most the machine's cores", kind=int)
    strict: bool = flag(False, "any problem in the data set ends the run", kind=SWITCH)
    allow_download: bool = flag(False, f"{DOWNLOAD_HELP}; and {DATA_DOWNLOAD_HELP}", kind=SWITCH)


@dataclass(frozen=True)
class OptimOptions:
    """Optimizer and schedule."""

    hyp: str = flag("hyp.scratch-low.yaml", "hyper-parameter yaml, a path or a shipped name")
    epochs: int = flag(100, "total training epochs", kind=int)
    batch_size: int = flag(
        16, "total batch size over all ranks; -1 finds one by measured memory", kind=int, aliases=("--batch",)
    )
    optimizer: str = flag("SGD", "optimizer", choices=("SGD", "Adam", "AdamW"))
    cos_lr: bool = flag(False, "cosine learning rate schedule", kind=SWITCH)
    max_nonfinite: int = flag(20, "stop after N consecutive non-finite updates; 0 never stops", kind=int)
    label_smoothing: float = flag(0.0, "label smoothing epsilon", kind=float)
    patience: int = flag(100, "epochs without improvement before the run stops; 0 never stops", kind=int)
    sync_bn: bool = flag(False, "BatchNorm statistics over all ranks", kind=SWITCH)
    seed: int = flag(0, "seed of every random draw", kind=int)
    evolve: int = flag(0, "evolve hyper-parameters for N generations", kind=OPTIONAL_VALUE, const=300)


@dataclass(frozen=True)
class EngineOptions:
    """On what, and in which way the step is executed."""

    graph: bool = flag(True, "run the whole step as one compiled graph (default)", kind=SWITCH, off="--eager")
    amp: bool | None = flag(None, "mixed precision (default: on with CUDA, off on CPU)", kind=SWITCH, off="--no-amp")
    kernels: str = flag("auto", "our kernel plugin", choices=("auto", "off", "require"))
    bbox_iou_optim: bool = flag(
        True, "use the fused box-IoU loss (default; needs the kernel plugin)", kind=SWITCH, off="--no-bbox-iou-optim"
    )
    device: str = flag("", "cuda device, i.e. 0 or 0,1, or cpu; '' takes the GPU where there is one")
    local_rank: int = flag(-1, "set by the launcher; kept for compatibility", kind=int)


@dataclass(frozen=True)
class RunOptions:
    """Run folder and output files."""

    project: str = flag("runs/train", "save to project/name")
    name: str = flag("exp", "save to project/name")
    exist_ok: bool = flag(False, "an existing project/name is used again", kind=SWITCH)
    resume: str = flag(
        "", "resume the most recent run, or the run or checkpoint named", kind=OPTIONAL_VALUE, const="last"
    )
    nosave: bool = flag(False, "save only the final checkpoint", kind=SWITCH)
    noval: bool = flag(False, "validate only after the final epoch", kind=SWITCH, aliases=("--notest",))
    noplots: bool = flag(False, "write no plots", kind=SWITCH)
    save_period: int = flag(-1, "save a checkpoint of its own every N epochs", kind=int)
    save_steps: int = flag(0, "save the whole state every N batches too, while training goes on; 0 does not", kind=int)
    save_minutes: float = flag(0.0, "save the whole state every N minutes too; 0 does not", kind=float)
    keep_saves: int = flag(2, "states that are kept: the newest, and those before it for when it is damaged", kind=int)
    on_save_error: str = flag(
        "stop", "when the disk refuses: end the run, or train on and try again", choices=("stop", "continue")
    )
    dist_timeout: float = flag(DEFAULT_TIMEOUT, "seconds in which the ranks of a job must have met", kind=float)
    debug: bool = flag(False, "show tracebacks", kind=SWITCH)
    loggers: str = flag("csv,tensorboard", f"what records the run, of {', '.join(LOGGERS)}; csv is always written")
    bucket: str = flag("", "Google Cloud bucket that keeps the table of --evolve too; needs its client, gsutil")
    entity: str = flag("", "Weights & Biases: who the run belongs to")
    upload_dataset: str = flag(
        "", "Weights & Biases: upload the data set, or only its val split (val)", kind=OPTIONAL_VALUE, const="all"
    )
    bbox_interval: int = flag(-1, "Weights & Biases: epochs between logged images with boxes; -1 logs none", kind=int)
    artifact_alias: str = flag("latest", "Weights & Biases: version of the data set; any other than latest is refused")

    @property
    def logger_names(self) -> tuple[str, ...]:
        """The names in `loggers`, each once."""
        return tuple(dict.fromkeys(name.strip() for name in self.loggers.split(",") if name.strip()))


@dataclass(frozen=True)
class TrainOptions:
    """All settings of a run; each part of the program receives only its own branch."""

    model: ModelOptions = field(default_factory=ModelOptions)
    data: DataOptions = field(default_factory=DataOptions)
    optim: OptimOptions = field(default_factory=OptimOptions)
    engine: EngineOptions = field(default_factory=EngineOptions)
    run: RunOptions = field(default_factory=RunOptions)

    @property
    def branches(self) -> tuple[Any, ...]:
        """All of them, in the order of the help."""
        return (self.model, self.data, self.optim, self.engine, self.run)

    def as_flat_dict(self) -> dict[str, Any]:
        """Return flag names (with underscores) and values, as `opt.yaml` stores them."""
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
    """Return every flag by its Python name, in the order of the help."""
    return {item.name: item for branch in _BRANCHES.values() for item in fields(branch)}


def options_from_flags(**flags: Any) -> TrainOptions:
    """Build the tree from flag names and values, as `train(...)` takes them.

    Raises:
        ValueError: a name that is no flag (with the nearest match), or a value out of its range.
    """
    known = flag_fields()
    refuse_unknown(flags, known)
    values = {name: typed(known[name], value) for name, value in flags.items()}
    branches = {
        key: kind(**{item.name: values[item.name] for item in fields(kind) if item.name in values})
        for key, kind in _BRANCHES.items()
    }
    options = TrainOptions(**branches)
    _check(options)
    return options


def _check(options: TrainOptions) -> None:
    """Refuse values that no run can use."""
    for branch in options.branches:
        check_flags(branch)
        own = {item.name for item in fields(branch)}
        check_ranges(branch, {name: limits for name, limits in RANGES.items() if name in own})
    batch = options.optim.batch_size
    if batch < 1 and batch != AUTO_BATCH:
        raise ValueError(f"--batch-size {batch}: must be at least 1, or -1 to find one by memory")
    check_range("batch_size", max(batch, 1), 1, MAX_BATCH)
    if not 0 <= options.optim.label_smoothing < 1:
        raise ValueError(f"--label-smoothing {options.optim.label_smoothing}: must lie in [0, 1)")
    if options.data.cache not in ("", "ram", "disk"):
        raise ValueError(f"--cache {options.data.cache!r}: choose ram or disk")
    if min(options.model.freeze, default=0) < 0:
        raise ValueError(f"--freeze {list(options.model.freeze)}: layers count from 0")
    _check_combinations(options)
    _check_loggers(options.run)
    _check_bucket(options)


def _check_combinations(options: TrainOptions) -> None:
    """Refuse flags that exclude each other, so that none of them is silently ignored."""
    data, batch = options.data, options.optim.batch_size
    for name in ("image_weights", "multi_scale", "quad"):
        if data.rect and getattr(data, name):
            raise ValueError(
                f"--rect and {dashed(name)} exclude each other: rectangular batches fix the "
                "order and the size of the images; leave one of them out"
            )
    if data.quad and batch != AUTO_BATCH and batch % 4:
        raise ValueError(f"--quad: joins four images each, so --batch-size {batch} must be a multiple of 4")
    for name in ("save_steps", "save_minutes"):
        for other, set_ in (("nosave", options.run.nosave), ("evolve", options.optim.evolve)):
            if getattr(options.run, name) and set_:
                raise ValueError(
                    f"{dashed(name)} and --{other} exclude each other: with --{other} no "
                    "state is saved on the way; leave one of them out"
                )
    if options.run.save_period > 0 and (options.run.nosave or options.optim.evolve):
        other = "nosave" if options.run.nosave else "evolve"
        raise ValueError(
            f"--save-period and --{other} exclude each other: with --{other} no epoch is saved; leave one of them out"
        )
    if options.optim.evolve and set(options.run.logger_names) & set(_EXTRAS):
        raise ValueError(
            f"--loggers {options.run.loggers}: not supported with --evolve, which trains in processes of "
            "their own; leave it out"
        )
    if options.run.resume and options.optim.evolve:
        raise ValueError("--evolve goes on by itself in the folder of --name with --exist-ok; leave --resume out")


def _check_loggers(run: RunOptions) -> None:
    """Refuse loggers that do not exist, and settings of a logger that is not asked for."""
    for name in run.logger_names:
        if name not in LOGGERS:
            raise ValueError(f"--loggers {name}: choose from {', '.join(LOGGERS)}, separated by commas")
        if name in _EXTRAS and importlib.util.find_spec(name) is None:
            raise ValueError(f"--loggers {name}: the package is not installed: {install_command(name)}")
    if run.upload_dataset not in ("", "all", "val"):
        raise ValueError(f"--upload_dataset {run.upload_dataset!r}: choose all or val")
    if run.artifact_alias != "latest":
        raise ValueError(
            f"--artifact_alias {run.artifact_alias}: data sets are read from the disk, never from W&B; "
            "give the path with --data"
        )
    if "wandb" not in run.logger_names:
        for name, unused in WANDB_ONLY.items():
            if getattr(run, name) != unused:
                raise ValueError(f"--{name} {getattr(run, name)}: belongs to Weights & Biases; add --loggers wandb")


def _check_bucket(options: TrainOptions) -> None:
    """Refuse a bucket that nothing would be copied to."""
    bucket = options.run.bucket
    if bucket and not options.optim.evolve:
        raise ValueError(
            f"--bucket {bucket}: keeps the table of an evolution; add --evolve, or copy the run folder "
            "when the training is done"
        )
    if bucket and shutil.which(BUCKET_CLIENT) is None:
        raise ValueError(
            f"--bucket {bucket}: its client {BUCKET_CLIENT} (Google Cloud CLI) is not installed; "
            "install it, or copy the folder of the evolution when it is done"
        )


_FORMER_FLAGS = {
    "--adam": "today it is --optimizer Adam",
    "--linear-lr": "the linear schedule is the default, leave it out; --cos-lr asks for the cosine one",
}
"""Flags of YOLOv5's earlier versions that are no flags any more."""


def build_parser(prog: str = "graph-train") -> argparse.ArgumentParser:
    """Return the parser of a training run; flags that are not given are left out of the namespace."""
    parser = CommandParser(
        prog=prog,
        former=_FORMER_FLAGS,
        description="Trains YOLOv5-family detectors with the whole step in one graph.",
        epilog="Exit codes: 0 done, 1 internal error, 2 user error, 3 the disk refused to be written, 4 numbers were "
        "not finite for too long, 5 another rank was lost, 130 interrupted (after saving).",
    )
    for branch in _BRANCHES.values():
        add_flags(parser.add_argument_group((branch.__doc__ or "").rstrip(".")), branch)
    return parser


def given_flags(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Parse a command line; only what was given is in the result. Exits with 2 on an unknown flag or a wrong value."""
    return vars(build_parser().parse_args(arguments))

"""The settings of a training run: one frozen tree, whose fields are at once the flags, their defaults and their help.

Names and defaults are those of YOLOv5's `train.py`; `docs/compatibility.md` lists the few that differ. Nothing heavy
is imported here: `--help` and argument errors answer at once.
"""

import argparse
import difflib
import importlib.util
import os
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any

from graph_train.cli.parser import CommandParser
from graph_train.team import DEFAULT_TIMEOUT

_SWITCH = "switch"
_OPTIONAL_VALUE = "optional value"
_LIST = "list"
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
}
"""Lowest and highest value of numbers; above them lie slips of the keyboard that would only run out of memory."""


def _flag(
    default: Any,
    help: str,
    *,
    kind: type | str = str,
    aliases: Sequence[str] = (),
    choices: Sequence[str] | None = None,
    const: Any = None,
    off: str = "",
) -> Any:
    """Declares one flag: kind is the type of its value, or one of the forms above; `off` names a switch's opposite."""
    metadata = {"help": help, "kind": kind, "aliases": aliases, "choices": choices, "const": const, "off": off}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class ModelOptions:
    """What is trained, and from which weights."""

    weights: str = _flag("", "initial weights: .safetensors, .pt or a OneFlow folder; '' trains from scratch")
    cfg: str = _flag("", "model yaml, a path or a shipped name such as yolov5n.yaml; '' takes it from the weights")
    freeze: tuple[int, ...] = _flag(
        (0,), "layers to freeze: one number n freezes the first n, several name the layers", kind=_LIST
    )
    noautoanchor: bool = _flag(False, "keep the anchors of the model yaml without a check", kind=_SWITCH)


@dataclass(frozen=True)
class DataOptions:
    """Which images, and how they are fed."""

    data: str = _flag("shapes", "dataset yaml, or `shapes` for the built-in set")
    imgsz: int = _flag(640, "train and val image size in px", kind=int, aliases=("--img", "--img-size"))
    rect: bool = _flag(False, "rectangular training batches", kind=_SWITCH)
    cache: str = _flag("", "keep images in memory (ram) or on disk (disk)", kind=_OPTIONAL_VALUE, const="ram")
    image_weights: bool = _flag(False, "draw images of badly found classes more often", kind=_SWITCH)
    multi_scale: bool = _flag(False, "vary the image size by up to 50 %% from batch to batch", kind=_SWITCH)
    single_cls: bool = _flag(False, "train several classes as one", kind=_SWITCH)
    quad: bool = _flag(False, "quad batches: every fourth image of a batch is joined into one of twice the size",
                       kind=_SWITCH)  # fmt: skip
    workers: int = _flag(8, "data loading threads per rank, at most the machine's cores", kind=int)
    strict: bool = _flag(False, "any problem in the data set ends the run", kind=_SWITCH)
    allow_download: bool = _flag(False, "fetch missing data from the yaml's `download`, if it gives a SHA-256",
                                 kind=_SWITCH)  # fmt: skip


@dataclass(frozen=True)
class OptimOptions:
    """How it is trained."""

    hyp: str = _flag("hyp.scratch-low.yaml", "hyper-parameter yaml, a path or a shipped name")
    epochs: int = _flag(100, "total training epochs", kind=int)
    batch_size: int = _flag(16, "total batch size over all ranks; -1 finds one by measured memory", kind=int,
                            aliases=("--batch",))  # fmt: skip
    optimizer: str = _flag("SGD", "optimizer", choices=("SGD", "Adam", "AdamW"))
    cos_lr: bool = _flag(False, "cosine learning rate schedule", kind=_SWITCH)
    max_nonfinite: int = _flag(
        20, "updates in a row left out for numbers that are not finite before the run stops; 0 never stops", kind=int
    )
    label_smoothing: float = _flag(0.0, "label smoothing epsilon", kind=float)
    patience: int = _flag(100, "epochs without improvement before the run stops; 0 never stops", kind=int)
    sync_bn: bool = _flag(False, "BatchNorm statistics over all ranks", kind=_SWITCH)
    seed: int = _flag(0, "seed of every random draw", kind=int)
    evolve: int = _flag(0, "evolve hyper-parameters for N generations", kind=_OPTIONAL_VALUE, const=300)


@dataclass(frozen=True)
class EngineOptions:
    """On what, and in which way the step is executed."""

    graph: bool = _flag(True, "run the whole step as one compiled graph (default)", kind=_SWITCH, off="--eager")
    amp: bool | None = _flag(None, "mixed precision (default: on with CUDA, off on CPU)", kind=_SWITCH, off="--no-amp")
    kernels: str = _flag("auto", "our kernel plugin", choices=("auto", "off", "require"))
    bbox_iou_optim: bool = _flag(True, "fused box-IoU kernel where the plugin is loaded", kind=_SWITCH,
                                 off="--no-bbox-iou-optim")  # fmt: skip
    device: str = _flag("", "cuda device, i.e. 0 or 0,1, or cpu; '' takes the GPU where there is one")
    local_rank: int = _flag(-1, "set by the launcher; kept for compatibility", kind=int)


@dataclass(frozen=True)
class RunOptions:
    """Where results go, and what is written."""

    project: str = _flag("runs/train", "save to project/name")
    name: str = _flag("exp", "save to project/name")
    exist_ok: bool = _flag(False, "an existing project/name is used again", kind=_SWITCH)
    resume: str = _flag(
        "", "resume the most recent run, or the run or checkpoint named", kind=_OPTIONAL_VALUE, const="last"
    )
    nosave: bool = _flag(False, "save only the final checkpoint", kind=_SWITCH)
    noval: bool = _flag(False, "validate only after the final epoch", kind=_SWITCH)
    noplots: bool = _flag(False, "write no plots", kind=_SWITCH)
    save_period: int = _flag(-1, "save a checkpoint of its own every N epochs", kind=int)
    save_steps: int = _flag(0, "save the whole state every N batches too, while training goes on; 0 does not", kind=int)
    save_minutes: float = _flag(0.0, "save the whole state every N minutes too; 0 does not", kind=float)
    keep_saves: int = _flag(2, "states that are kept: the newest, and those before it for when it is damaged", kind=int)
    on_save_error: str = _flag(
        "stop", "when the disk refuses: end the run, or train on and try again", choices=("stop", "continue")
    )
    dist_timeout: float = _flag(DEFAULT_TIMEOUT, "seconds in which the ranks of a job must have met", kind=float)
    debug: bool = _flag(False, "show tracebacks", kind=_SWITCH)
    loggers: str = _flag("csv,tensorboard", f"what records the run, of {', '.join(LOGGERS)}; csv is always written")
    bucket: str = _flag("", "Google Cloud bucket that keeps the table of --evolve too; needs its client, gsutil")
    entity: str = _flag("", "Weights & Biases: who the run belongs to")
    upload_dataset: str = _flag("", "Weights & Biases: upload the data set, or only its val split (val)",
                                kind=_OPTIONAL_VALUE, const="all")  # fmt: skip
    bbox_interval: int = _flag(-1, "Weights & Biases: epochs between logged images with boxes; -1 logs none", kind=int)
    artifact_alias: str = _flag("latest", "Weights & Biases: version of the data set; any other than latest is refused")

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

    def as_flat_dict(self) -> dict[str, Any]:
        """Flag names (with underscores) and values, as `opt.yaml` stores them."""
        return {
            item.name: list(value) if isinstance(value := getattr(branch, item.name), tuple) else value
            for branch in (self.model, self.data, self.optim, self.engine, self.run)
            for item in fields(branch)
        }


_BRANCHES: Mapping[str, type] = {
    "model": ModelOptions,
    "data": DataOptions,
    "optim": OptimOptions,
    "engine": EngineOptions,
    "run": RunOptions,
}


_KINDS: Mapping[type, str] = {int: "a whole number", float: "a number", str: "a text"}


def flag_fields() -> dict[str, Field[Any]]:
    """Every flag by its Python name, in the order of the help."""
    return {item.name: item for branch in _BRANCHES.values() for item in fields(branch)}


def options_from_flags(**flags: Any) -> TrainOptions:
    """Builds the tree from flag names and values, as `train(...)` takes them.

    Raises:
        ValueError: a name that is no flag (with the nearest match), or a value out of its range.
    """
    known = flag_fields()
    refuse_unknown(flags, known)
    values = {name: _typed(known[name], value) for name, value in flags.items()}
    branches = {
        key: kind(**{item.name: values[item.name] for item in fields(kind) if item.name in values})
        for key, kind in _BRANCHES.items()
    }
    options = TrainOptions(**branches)
    _check(options)
    return options


def refuse_unknown(names: Iterable[str], known: Collection[str]) -> None:
    """Refuses a name that is no flag, with the nearest one that is.

    Raises:
        ValueError: says which.
    """
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
            raise ValueError(f"unknown setting {name!r}{hint}")


def _typed(item: Field[Any], value: Any) -> Any:
    """The value as the command line would have given it: paths become text, one number a list, True a bare flag.

    Raises:
        ValueError: the value is of another kind.
    """
    kind = item.metadata["kind"]
    if kind == _OPTIONAL_VALUE:
        if value is None or isinstance(value, bool):
            return item.metadata["const"] if value else item.default
        kind = type(item.metadata["const"])
    if kind == _LIST:
        numbers = (value,) if isinstance(value, int) else tuple(value) if isinstance(value, list | tuple) else ("",)
        if numbers and all(isinstance(number, int) and not isinstance(number, bool) for number in numbers):
            return numbers
        raise ValueError(f"{item.name}={value!r}: give a whole number, or a list of them")
    if kind == _SWITCH:
        if isinstance(value, bool) or value is item.default:
            return value
        raise ValueError(f"{item.name}={value!r}: give True or False")
    if kind is str and isinstance(value, str | os.PathLike):
        return os.fspath(value)
    if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
        raise ValueError(f"{item.name}={value!r}: give {_KINDS[kind]}")
    return kind(value)


def _check(options: TrainOptions) -> None:
    """Refuses values that no run can use."""
    values = options.as_flat_dict()
    for name, item in flag_fields().items():
        choices = item.metadata["choices"]
        if choices and values[name] not in choices:
            raise ValueError(f"--{name.replace('_', '-')} {values[name]!r}: choose one of {', '.join(choices)}")
    for name, (lowest, highest) in RANGES.items():
        check_range(name, values[name], lowest, highest)
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


def check_range(name: str, value: float, lowest: int, highest: int) -> None:
    """Refuses a number out of its range, inclusive, under the flag's name.

    Raises:
        ValueError: it lies outside.
    """
    if not lowest <= value <= highest:
        bound = f"at least {lowest}" if value < lowest else f"at most {highest}"
        raise ValueError(f"--{name.replace('_', '-')} {value}: must be {bound}")


def _check_combinations(options: TrainOptions) -> None:
    """Refuses flags that exclude each other, so that none of them is silently ignored."""
    data, batch = options.data, options.optim.batch_size
    for name in ("image_weights", "multi_scale", "quad"):
        if data.rect and getattr(data, name):
            raise ValueError(f"--rect and --{name.replace('_', '-')} exclude each other: rectangular batches fix the "
                             "order and the size of the images; leave one of them out")  # fmt: skip
    if data.quad and batch != AUTO_BATCH and batch % 4:
        raise ValueError(f"--quad: joins four images each, so --batch-size {batch} must be a multiple of 4")
    for name in ("save_steps", "save_minutes"):
        for other, set_ in (("nosave", options.run.nosave), ("evolve", options.optim.evolve)):
            if getattr(options.run, name) and set_:
                raise ValueError(f"--{name.replace('_', '-')} and --{other} exclude each other: with --{other} no "
                                 "state is saved on the way; leave one of them out")  # fmt: skip
    if options.run.save_period > 0 and (options.run.nosave or options.optim.evolve):
        other = "nosave" if options.run.nosave else "evolve"
        raise ValueError(f"--save-period and --{other} exclude each other: with --{other} no epoch is saved; leave one "
                         "of them out")  # fmt: skip
    if options.optim.evolve and set(options.run.logger_names) & set(_EXTRAS):
        raise ValueError(f"--loggers {options.run.loggers}: hears nothing of an evolution: it trains in processes of "
                         "their own; leave it out")  # fmt: skip
    if options.run.resume and options.optim.evolve:
        raise ValueError("--evolve goes on by itself in the folder of --name with --exist-ok; leave --resume out")


def _check_loggers(run: RunOptions) -> None:
    """Refuses loggers that do not exist, and settings of a logger that is not asked for."""
    for name in run.logger_names:
        if name not in LOGGERS:
            raise ValueError(f"--loggers {name}: choose from {', '.join(LOGGERS)}, separated by commas")
        if name in _EXTRAS and importlib.util.find_spec(name) is None:
            raise ValueError(f"--loggers {name}: the package is not installed: pip install 'graph-train[{name}]'")
    if run.upload_dataset not in ("", "all", "val"):
        raise ValueError(f"--upload_dataset {run.upload_dataset!r}: choose all or val")
    if run.artifact_alias != "latest":
        raise ValueError(f"--artifact_alias {run.artifact_alias}: data sets are read from the disk, never from W&B; "
                         "give the path with --data")  # fmt: skip
    if "wandb" not in run.logger_names:
        for name, unused in WANDB_ONLY.items():
            if getattr(run, name) != unused:
                raise ValueError(f"--{name} {getattr(run, name)}: belongs to Weights & Biases; add --loggers wandb")


def _check_bucket(options: TrainOptions) -> None:
    """Refuses a bucket that nothing would be copied to."""
    bucket = options.run.bucket
    if bucket and not options.optim.evolve:
        raise ValueError(f"--bucket {bucket}: keeps the table of an evolution; add --evolve, or copy the run folder "
                         "when the training is done")  # fmt: skip
    if bucket and shutil.which(BUCKET_CLIENT) is None:
        raise ValueError(f"--bucket {bucket}: its client {BUCKET_CLIENT} (Google Cloud CLI) is not installed; "
                         "install it, or copy the folder of the evolution when it is done")  # fmt: skip


def _add_flag(group: "argparse._ArgumentGroup", item: Field[Any]) -> None:
    about = item.metadata
    dashed = "--" + item.name.replace("_", "-")
    names = list(dict.fromkeys([dashed, *about["aliases"], "--" + item.name]))
    common: dict[str, Any] = {"dest": item.name, "help": about["help"], "default": argparse.SUPPRESS}
    if about["kind"] == _SWITCH:
        group.add_argument(*names, action="store_true", **common)
        if about["off"]:
            group.add_argument(about["off"], action="store_false", dest=item.name, default=argparse.SUPPRESS,
                               help=f"the opposite of {dashed}")  # fmt: skip
    elif about["kind"] == _OPTIONAL_VALUE:
        group.add_argument(*names, nargs="?", const=about["const"], type=type(about["const"]), **common)
    elif about["kind"] == _LIST:
        group.add_argument(*names, nargs="+", type=int, **common)
    else:
        if item.default is not MISSING and item.default != "":
            common["help"] += f" (default: {item.default})"
        group.add_argument(*names, type=about["kind"], choices=about["choices"], **common)


def build_parser(prog: str = "graph-train") -> argparse.ArgumentParser:
    """The command line of a training run; flags that are not given are left out of the namespace."""
    parser = CommandParser(
        prog=prog,
        description="Trains YOLOv5-family detectors with the whole step in one graph.",
        epilog="Exit codes: 0 done, 1 internal error, 2 user error, 3 the disk refused to be written, 4 numbers were "
        "not finite for too long, 5 another rank was lost, 130 interrupted (after saving).",
    )
    for branch in _BRANCHES.values():
        group = parser.add_argument_group((branch.__doc__ or "").rstrip("."))
        for item in fields(branch):
            _add_flag(group, item)
    return parser


def given_flags(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Parses a command line; only what was given is in the result. Exits with 2 on an unknown flag or a wrong value."""
    flags = vars(build_parser().parse_args(arguments))
    if "freeze" in flags:
        flags["freeze"] = tuple(flags["freeze"])
    return flags

"""Experiment loggers: TensorBoard (built in), Weights & Biases and MLflow (extras).

Each logger is a `TrainingHooks`, and a failure disables only that logger. A logger that cannot start is an error before
the run begins.
"""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from graph_train.hooks.callbacks import Callbacks, TrainingHooks
from graph_train.hooks.tensorboard_events import EventFile
from graph_train.runs.results_csv import RESULT_KEYS, RESULTS, VALIDATION_KEYS
from kernels.host.extras import install_command
from kernels.host.files import write_atomically

LoggerName = Literal["tensorboard", "wandb", "mlflow"]
BEST_KEYS = ("best/epoch", "best/precision", "best/recall", "best/mAP_0.5", "best/mAP_0.5:0.95")
_PLOT_STEMS = ("results", "confusion_matrix", "F1_curve", "PR_curve", "P_curve", "R_curve")
_MAX_BOX_IMAGES = 16
_MLFLOW_VALUE_CHARACTERS = 500
_MLFLOW_LAST = "metrics/fitness"
"""The last metric logged for an epoch; if it exists, the epoch is complete."""


@dataclass(frozen=True)
class RunDescription:
    """Information about a run for its loggers."""

    folder: Path
    settings: Mapping[str, Any]
    """Flags and hyper-parameters by name."""
    first_epoch: int | None = None
    """First epoch of a resumed run; None for a new run."""
    entity: str = ""
    bbox_interval: int = -1
    """Epochs between logged validation images with boxes; -1 disables them."""
    dataset_files: Sequence[Path] = field(default_factory=tuple)
    """Data set files to upload."""


def _plots(folder: Path) -> list[Path]:
    return [path for stem in _PLOT_STEMS if (path := folder / f"{stem}.png").is_file()]


def _import_extra(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"package {module!r} is not installed ({error}): {install_command(extra)}") from error


class TensorBoardLogger(TrainingHooks):
    """TensorBoard: curves with YOLOv5's names, and the plots at the end."""

    def __init__(self, run: RunDescription) -> None:
        self._run = run
        self._events = EventFile(run.folder, run.first_epoch)

    def on_fit_epoch_end(self, vals: Sequence[float], epoch: int, best_fitness: float, fi: float) -> None:
        """Log the values of an epoch."""
        for key, value in zip(RESULT_KEYS, vals, strict=True):
            self._events.scalar(key, value, epoch)
        self._events.scalar("metrics/fitness", fi, epoch)
        self._events.flush()

    def on_train_end(self, last: Path, best: Path, epoch: int, results: Sequence[float]) -> None:
        """Log the plots."""
        for path in _plots(self._run.folder):
            self._events.png(path.stem, path.read_bytes(), epoch)
        self._events.flush()

    def teardown(self) -> None:
        """Close the file."""
        self._events.close()


class WandbLogger(TrainingHooks):
    """Weights & Biases: curves, best results, validation images with boxes, plots, and the best weights as artifact.

    `WANDB_MODE=offline` keeps everything in the run folder. A resumed run continues the W&B run whose id is in
    `wandb_id.txt`.
    """

    def __init__(self, run: RunDescription) -> None:
        """Start (or continue) the W&B run.

        Raises:
            ValueError: the package is missing.
        """
        self._wandb = _import_extra("wandb", "wandb")
        self._description = run
        self._epoch = run.first_epoch or 0
        self._images: list[Any] = []
        id_file = run.folder / "wandb_id.txt"
        resumed = run.first_epoch is not None and id_file.exists()
        previous = id_file.read_text().strip() if resumed else None
        self._run = self._wandb.init(
            project=run.folder.parent.name or "graph-train",
            name=run.folder.name,
            entity=run.entity or None,
            dir=str(run.folder),
            id=previous,
            resume="allow" if previous else None,
            config=dict(run.settings),
        )
        # W&B's own step counter only increases, so values repeated by a resumed run would be dropped.
        self._run.define_metric("epoch")
        self._run.define_metric("*", step_metric="epoch")
        write_atomically(id_file, f"{self._run.id}\n")

    def on_pretrain_routine_end(self, labels: np.ndarray, names: Sequence[str]) -> None:
        """Log the data set as an artifact, if requested."""
        if self._description.dataset_files:
            artifact = self._wandb.Artifact(f"run_{self._run.id}_dataset", type="dataset")
            for path in self._description.dataset_files:
                artifact.add_file(str(path), name=path.as_posix().lstrip("/"))
            self._run.log_artifact(artifact)

    def on_train_epoch_end(self, epoch: int) -> None:
        """Remember the epoch for its validation."""
        self._epoch, self._images = epoch, []

    def on_val_image_end(self, pred: np.ndarray, predn: np.ndarray, path: str, names: Sequence[str], im: Any) -> None:
        """Collect a few images with their boxes."""
        interval = self._description.bbox_interval
        if interval < 1 or self._epoch % interval or len(self._images) >= _MAX_BOX_IMAGES:
            return
        boxes = {
            "predictions": {
                "box_data": [_wandb_box(row, names) for row in predn.tolist()],
                "class_labels": dict(enumerate(names)),
            }
        }
        self._images.append(self._wandb.Image(path, boxes=boxes, caption=Path(path).name))

    def on_fit_epoch_end(self, vals: Sequence[float], epoch: int, best_fitness: float, fi: float) -> None:
        """Log the values of an epoch, and update the summary if it is the best."""
        values: dict[str, Any] = dict(zip(RESULT_KEYS, vals, strict=True))
        if self._images:
            values["Bounding Box Debugger/Images"] = self._images
        self._run.log(values | {"epoch": epoch})
        if fi == best_fitness:
            self._run.summary.update(dict(zip(BEST_KEYS, (epoch, *vals[3:7]), strict=True)))

    def on_train_end(self, last: Path, best: Path, epoch: int, results: Sequence[float]) -> None:
        """Log final results, plots and weights."""
        final = dict(zip(VALIDATION_KEYS, results, strict=True))
        plots = [self._wandb.Image(str(path), caption=path.name) for path in _plots(self._description.folder)]
        self._run.log(final | {"epoch": epoch} | ({"Results": plots} if plots else {}))
        weights = best if best.exists() else last
        if weights.exists():
            artifact = self._wandb.Artifact(f"run_{self._run.id}_model", type="model")
            artifact.add_file(str(weights))
            self._run.log_artifact(artifact, aliases=["latest", "best"])

    def teardown(self) -> None:
        """Finish the W&B run, waiting for its uploads."""
        self._run.finish()


def _wandb_box(row: Sequence[float], names: Sequence[str]) -> dict[str, Any]:
    x1, y1, x2, y2, confidence, number = row
    return {
        "position": {"minX": x1, "minY": y1, "maxX": x2, "maxY": y2},
        "class_id": int(number),
        "box_caption": f"{names[int(number)]} {confidence:.2f}",
        "scores": {"confidence": confidence},
        "domain": "pixel",
    }


class MlflowLogger(TrainingHooks):
    """MLflow: settings as parameters, curves as metrics, plots and the best weights as artifacts.

    The tracking server is `MLFLOW_TRACKING_URI`, by default the folder `mlruns` next to the run folder.
    """

    def __init__(self, run: RunDescription) -> None:
        """Start (or continue) the MLflow run.

        Raises:
            ValueError: the package is missing.
        """
        mlflow = _import_extra("mlflow", "mlflow")
        self._folder = run.folder
        self._client = mlflow.MlflowClient(tracking_uri=_mlflow_uri(run.folder))
        id_file = run.folder / "mlflow_id.txt"
        self._logged: set[int] = set()
        self._status = "KILLED"
        if run.first_epoch is not None and id_file.exists():
            self._id = id_file.read_text().strip()
            self._logged = {point.step for point in self._client.get_metric_history(self._id, _MLFLOW_LAST)}
            self._client.update_run(self._id, status="RUNNING")
            return
        name = run.folder.parent.name or "graph-train"
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(name)
        self._id = self._client.create_run(number, run_name=run.folder.name).info.run_id
        write_atomically(id_file, f"{self._id}\n")
        for key, value in run.settings.items():
            self._client.log_param(self._id, key, str(value)[:_MLFLOW_VALUE_CHARACTERS])

    def on_fit_epoch_end(self, vals: Sequence[float], epoch: int, best_fitness: float, fi: float) -> None:
        """Log the values of an epoch; colons, which MLflow does not allow in names, are replaced."""
        if epoch in self._logged:  # by the run that is resumed; MLflow cannot replace values
            return
        for key, value in (*zip(RESULT_KEYS, vals, strict=True), (_MLFLOW_LAST, fi)):
            self._client.log_metric(self._id, key.replace(":", "-"), float(value), step=epoch)

    def on_train_end(self, last: Path, best: Path, epoch: int, results: Sequence[float]) -> None:
        """Log plots, `results.csv` and the weights."""
        weights = best if best.exists() else last
        for path in (*_plots(self._folder), self._folder / RESULTS, weights):
            if path.exists():
                self._client.log_artifact(self._id, str(path))
        self._status = "FINISHED"

    def teardown(self) -> None:
        """End the MLflow run; a stopped run has the status KILLED until it is resumed."""
        self._client.set_terminated(self._id, self._status)


def _mlflow_uri(folder: Path) -> str:
    import os

    return os.environ.get("MLFLOW_TRACKING_URI") or (folder.parent.resolve() / "mlruns").as_uri()


_LOGGERS: Mapping[str, type[TensorBoardLogger] | type[WandbLogger] | type[MlflowLogger]] = {
    "tensorboard": TensorBoardLogger,
    "wandb": WandbLogger,
    "mlflow": MlflowLogger,
}


def add_loggers(callbacks: Callbacks, names: Sequence[str], run: RunDescription) -> None:
    """Start loggers and register them.

    Raises:
        ValueError: a name is unknown, a package is not installed, or a logger cannot start (no account, no connection
            …).
    """
    for name in names:
        if name not in _LOGGERS:
            raise ValueError(f"unknown logger {name!r}; known loggers: {', '.join(get_args(LoggerName))}")
        try:
            logger = _LOGGERS[name](run)
        except Exception as error:  # packages raise various exceptions
            reason = " ".join(str(error).split()).rstrip(".")
            raise ValueError(f"logger {name!r} cannot start: {reason}; fix this, or remove the logger") from error
        callbacks.add(logger, name)

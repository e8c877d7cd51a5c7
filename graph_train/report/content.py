"""Content of the report as JSON-compatible values: settings, curves, results per class, times, environment."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from graph_train.checks.environment import environment_facts
from graph_train.metrics.average_precision import best_row
from graph_train.plots.style import class_colour, contrasting_colour, hex_colour
from graph_train.runs.results_csv import RESULT_KEYS, VALIDATION_KEYS
from graph_train.settings.hyperparameters import Hyperparameters
from graph_train.settings.train_options import TrainOptions, flag_fields
from graph_train.training.assembly import TrainingRun
from graph_train.training.progress import DATA_BOUND_SHARE, EpochTimes
from graph_train.training.setup import Data
from graph_train.validation.result import ValidationResult
from kernels.host.paths import shell_word
from models.complexity import measure

FORMAT = 1
MAX_CURVES = 20
MAX_CONFUSION_CLASSES = 30
_CURVE_POINTS = 101


def fixed_content(run: TrainingRun) -> dict[str, Any]:
    """Return the content that is constant during a run."""
    setup, options = run.setup, run.setup.options
    size = measure(run.state.network, setup.image_px)
    return {
        "format": FORMAT,
        "version": _version(),
        "epochs": options.optim.epochs,
        "batch_size": options.optim.batch_size,
        "image_px": setup.image_px,
        "engine": f"{'one compiled graph' if options.engine.graph else 'eager'} on {setup.device}",
        "noplots": options.run.noplots,
        "data_bound_share": DATA_BOUND_SHARE,
        "network": {
            "name": Path(options.model.cfg or options.model.weights or "network of the checkpoint").name,
            "parameters": size.parameters,
            "headline": size.headline,
        },
        "data": _data(setup.data),
        "settings": _settings(options),
        "hyperparameters": _hyperparameters(setup.hyp),
        "environment": [[fact.name, fact.value] for fact in environment_facts()],
    }


def _version() -> str:
    try:
        return version("graph-train")
    except PackageNotFoundError:
        return "(not installed)"


def _settings(options: TrainOptions) -> list[list[Any]]:
    """Return name, value and default of each flag."""
    defaults = {
        name: list(item.default) if isinstance(item.default, tuple) else item.default
        for name, item in flag_fields().items()
    }
    return [[name, value, defaults[name]] for name, value in options.as_flat_dict().items()]


def _hyperparameters(hyp: Hyperparameters) -> list[list[Any]]:
    defaults = {item.name: item.default for item in fields(Hyperparameters)}
    return [[name, value, defaults[name]] for name, value in hyp.as_dict().items()]


def _data(data: Data) -> dict[str, Any]:
    splits, counts = [], []
    number = len(data.class_names)
    for name, index in (("train", data.train), ("val", data.val)):
        splits.append(
            {
                "name": name,
                "images": len(index),
                "labels": index.num_boxes,
                "background": index.num_background,
                "problems": len(index.problems),
            }
        )
        rows = index.labels.rows
        counts.append(np.bincount(rows[:, 0].astype(np.int64), minlength=number))
    return {
        "name": data.dataset.name,
        "splits": splits,
        "classes": [
            {
                "name": name,
                "train": int(counts[0][kind]),
                "val": int(counts[1][kind]),
                "colour": hex_colour(class_colour(kind)),
                "text": hex_colour(contrasting_colour(class_colour(kind))),
            }
            for kind, name in enumerate(data.class_names)
        ],
    }


def results_content(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Return the curves from the columns of `results.csv` (None for epochs without validation) and the best epoch."""
    results: dict[str, list[Any]] = {"epoch": [int(value) for value in columns.get("epoch", ())]}
    for key in RESULT_KEYS:
        results[key] = [float(value) for value in columns.get(key, ())]
    rows = np.array([results[key] for key in VALIDATION_KEYS], np.float64).T
    validated = rows.any(axis=1)
    for key in VALIDATION_KEYS:
        results[key] = [value if known else None for value, known in zip(results[key], validated, strict=True)]
    return {"results": results, "best": best_row(rows) if validated.any() else None}


def validation_content(result: ValidationResult, weights: str) -> dict[str, Any]:
    """Return results per class, precision-recall curves, confusion matrix and speed of a validation.

    Args:
        result: the validation.
        weights: description of the validated weights.
    """
    c, names = result.classes, result.class_names
    table = [
        {
            "name": names[kind],
            "images": int(result.images_per_class[kind]),
            "labels": int(result.labels_per_class[kind]),
            "precision": float(c.precision[row]),
            "recall": float(c.recall[row]),
            "map50": float(c.ap50[row]),
            "map50_95": float(c.ap50_95[row]),
        }
        for row, kind in enumerate(c.classes)
    ]
    points = np.linspace(0, len(c.recall_axis) - 1, _CURVE_POINTS).round().astype(int)
    shown = range(min(len(c.classes), MAX_CURVES))
    at_recall = c.precision_at_recall
    return {
        "of": weights,
        "images": result.images,
        "labels": int(result.labels_per_class.sum()),
        "means": [float(value) for value in result.means],
        "table": table,
        "recall_axis": _rounded(c.recall_axis[points]),
        "curves": [{"name": names[c.classes[row]], "values": _rounded(at_recall[row][points])} for row in shown],
        "mean_curve": _rounded(at_recall.mean(axis=0)[points]) if len(c.classes) else [],
        "confusion": result.confusion.counts.tolist() if len(names) <= MAX_CONFUSION_CLASSES else None,
        "speed": {
            "load": result.speed.load,
            "inference": result.speed.inference,
            "suppression": result.speed.suppression,
        },
    }


def _rounded(values: Any) -> list[float]:
    return [round(float(value), 4) for value in values]


def times_content(times: Sequence[EpochTimes], earlier: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """Return the times of all epochs; `earlier` are those recorded before the run was resumed."""
    merged = {int(item["epoch"]): dict(item) for item in earlier}
    for item in times:
        values = vars(item)
        before = merged.get(item.epoch)
        # A resumed epoch: add the times of both parts.
        merged[item.epoch] = (
            values
            if before is None
            else {key: value if key == "epoch" else value + before[key] for key, value in values.items()}
        )
    return [merged[epoch] for epoch in sorted(merged)]


def commands(folder: Path, options: TrainOptions, *, state: str, best: bool) -> list[list[str]]:
    """Return suggested next commands, each with a line on its purpose."""
    suggested = []
    if state == "stopped":
        suggested.append(["Resume the run:", f"graph-train --resume {shell_word(folder)}"])
    if state == "finished":
        more = f"graph-train --resume {shell_word(folder)} --epochs {2 * options.optim.epochs}"
        suggested.append(["Train longer:", more])
    if best:
        weights = shell_word(folder / "weights" / "best.safetensors")
        flags = f"--data {shell_word(options.data.data)} --imgsz {options.data.imgsz}"
        single = " --single-cls" if options.data.single_cls else ""
        suggested.append(["Validate the best weights:", f"graph-val --weights {weights} {flags}{single}"])
        suggested.append(["Export the best weights:", f"graph-export --weights {weights}"])
    return suggested

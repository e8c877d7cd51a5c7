"""The Python API: what the commands do, as functions that return results.

    from graph_train import export, load, predict, train, validate

    result = train(data="shapes", cfg="yolov5n.yaml", imgsz=160, epochs=20)
    print(result.validation.map50, validate(weights=result.best, data="shapes", imgsz=160).results[0].map50_95)
    for found in predict(weights=result.best, source="photos", imgsz=160, nosave=True).predictions:
        print(found.path, found.detections)
    detector = load(result.best, imgsz=160)
    print(detector("photos/a.jpg").as_dict())
    export(weights=result.best, include="onnx", imgsz=160)

A setting that does not exist is refused with the nearest one that does. Nothing is printed unless the logger
`graph_train` has a handler; a training prints as the command does. The first call loads
OneFlow, not the import.
"""

from typing import TYPE_CHECKING, Any

from graph_train.settings.export_options import export_options
from graph_train.settings.predict_options import detector_options, predict_options
from graph_train.settings.val_options import val_options
from kernels.host.process_settings import configure_process

if TYPE_CHECKING:
    from graph_train.evolution.search import EvolutionResult
    from graph_train.exporting.export import ExportResult
    from graph_train.hooks.callbacks import Callbacks
    from graph_train.prediction.image_detector import ImageDetector
    from graph_train.prediction.predict import PredictionResult
    from graph_train.training.trainer import TrainResult
    from graph_train.validation.evaluate import EvaluationResult

__all__ = ["export", "load", "predict", "train", "validate"]


def train(*, callbacks: "Callbacks | None" = None, **flags: Any) -> "TrainResult | EvolutionResult":
    """Train a detector; the arguments are the flags of `graph-train` with underscores.

    Args:
        callbacks: called at the run's events, besides the loggers that the flags name.
        flags: settings; those left out have their defaults.
    Returns:
        The result of the run; with `evolve` that of the evolution.
    Raises:
        ValueError, OSError: a setting or file that cannot be used; one line says which and what to do.
        RunEndedError: the disk refused a checkpoint, or the numbers were not finite for too long.
        KeyboardInterrupt: stopped by a signal, after saving.
    """
    configure_process()
    from graph_train.launch.train import train as train_here

    return train_here(callbacks=callbacks, **flags)


def validate(**flags: Any) -> "EvaluationResult":
    """Measure trained weights; the arguments are the flags of `graph-val` with underscores.

    Raises:
        ValueError, OSError: a setting or file that cannot be used; one line says which and what to do.
    """
    options = val_options(**flags)
    configure_process()
    from graph_train.validation.evaluate import evaluate

    return evaluate(options)


def predict(**flags: Any) -> "PredictionResult":
    """Find objects in images and videos; the arguments are the flags of `graph-predict` with underscores.

    A broken image among others is no error: it is left out and listed in `problems` of the result.

    Raises:
        ValueError, OSError: a setting or file that cannot be used; one line says which and what to do.
    """
    options = predict_options(**flags)
    configure_process()
    from graph_train.prediction.predict import predict_sources

    return predict_sources(options)


def load(weights: Any, **flags: Any) -> "ImageDetector":
    """Read trained weights once, to find objects in images that a program has.

    Args:
        weights: a weight file, or several as an ensemble.
        flags: `imgsz`, `conf_thres`, `iou_thres`, `max_det`, `classes`, `agnostic_nms`, `augment`, `batch_size`,
            `data`, `device`, `workers`, `graph`, `kernels`: those of `graph-predict`, with its defaults.
    Raises:
        ValueError, OSError: a setting or file that cannot be used; one line says which and what to do.
    """
    options = detector_options(weights=weights, **flags)
    configure_process()
    from graph_train.prediction.image_detector import ImageDetector

    return ImageDetector(options)


def export(**flags: Any) -> "ExportResult":
    """Write trained weights for other programs; the arguments are the flags of `graph-export` with underscores.

    Raises:
        ValueError, OSError: a setting or file that cannot be used; one line says which and what to do.
        RuntimeError: an ONNX file does not compute what our network computes; it is not written then.
    """
    options = export_options(**flags)
    configure_process()
    from graph_train.exporting.export import export_weights

    return export_weights(options)

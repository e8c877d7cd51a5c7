"""The Python API: the commands as functions that return results.

    from graph_train import export, load, predict, train, validate

    result = train(data="shapes", cfg="yolov5n.yaml", imgsz=160, epochs=20)
    print(result.validation.map50, validate(weights=result.best, data="shapes", imgsz=160).results[0].map50_95)
    for prediction in predict(weights=result.best, source="photos", imgsz=160, nosave=True).predictions:
        print(prediction.path, prediction.detections)
    detector = load(result.best, imgsz=160)
    print(detector("photos/a.jpg").as_dict())
    export(weights=result.best, include="onnx", imgsz=160)

An unknown argument raises ValueError with the nearest match. Only `train` prints its progress; the other functions log
to the logger `graph_train`. OneFlow is imported by the first call.
"""

from typing import TYPE_CHECKING, Any

from graph_train.settings.export_options import ExportOptions
from graph_train.settings.flag_table import options_of
from graph_train.settings.predict_options import DetectorOptions, PredictOptions
from graph_train.settings.val_options import ValOptions
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
    """Train a detector. Arguments are the flags of `graph-train` with underscores.

    Args:
        callbacks: callbacks in addition to the loggers given by the flags.
        flags: the settings.
    Returns:
        The result of the run or, with `evolve`, of the evolution.
    Raises:
        ValueError, OSError: a setting or a file is invalid; the message is one line with the remedy.
        RunEndedError: a checkpoint could not be saved, or too many consecutive updates were not finite.
        KeyboardInterrupt: stopped by a signal, after saving.
    """
    configure_process()
    from graph_train.launch.train import train as train_here

    return train_here(callbacks=callbacks, **flags)


def validate(**flags: Any) -> "EvaluationResult":
    """Validate trained weights. Arguments are the flags of `graph-val` with underscores.

    Raises:
        ValueError, OSError: a setting or a file is invalid; the message is one line with the remedy.
    """
    options = options_of(ValOptions, flags)
    configure_process()
    from graph_train.validation.evaluate import evaluate

    return evaluate(options)


def predict(**flags: Any) -> "PredictionResult":
    """Detect objects in images and videos. Arguments are the flags of `graph-predict` with underscores.

    A broken image among others is not an error; it is skipped and listed in `problems` of the result.

    Raises:
        ValueError, OSError: a setting or a file is invalid; the message is one line with the remedy.
    """
    options = options_of(PredictOptions, flags)
    configure_process()
    from graph_train.prediction.predict import predict_sources

    return predict_sources(options)


def load(weights: Any, **flags: Any) -> "ImageDetector":
    """Load trained weights as a detector to call with images.

    Args:
        weights: a weight file, or several for an ensemble.
        flags: `imgsz`, `conf_thres`, `iou_thres`, `max_det`, `classes`, `agnostic_nms`, `augment`, `batch_size`,
            `data`, `device`, `workers`, `graph`, `kernels` and `allow_download`, as in `graph-predict`.
    Raises:
        ValueError, OSError: a setting or a file is invalid; the message is one line with the remedy.
    """
    options = options_of(DetectorOptions, {"weights": weights, **flags})
    configure_process()
    from graph_train.prediction.image_detector import ImageDetector

    return ImageDetector(options)


def export(**flags: Any) -> "ExportResult":
    """Export trained weights to other formats. Arguments are the flags of `graph-export` with underscores.

    Raises:
        ValueError, OSError: a setting or a file is invalid; the message is one line with the remedy.
        RuntimeError: the results of an ONNX file differ from the network's; the file is not written.
    """
    options = options_of(ExportOptions, flags)
    configure_process()
    from graph_train.exporting.export import export_weights

    return export_weights(options)

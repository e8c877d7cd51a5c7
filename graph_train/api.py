"""The Python API: what the commands do, as functions that return results.

    from graph_train import train, validate

    result = train(data="shapes", cfg="yolov5n.yaml", imgsz=160, epochs=20)
    print(result.validation.map50, validate(weights=result.best, data="shapes", imgsz=160).results[0].map50_95)

A setting that does not exist is refused with the nearest one that does. Nothing is printed unless the logger
`graph_train` has a handler; a training prints as the command does.
"""

from typing import Any

from graph_train.evaluation import EvaluationResult, evaluate
from graph_train.launch import train
from graph_train.val_options import val_options

__all__ = ["train", "validate"]


def validate(**flags: Any) -> EvaluationResult:
    """Measures trained weights; the arguments are the flags of `graph-val` with underscores.

    Raises:
        ValueError, OSError: a setting or file that cannot be used; one line says which and what to do.
    """
    return evaluate(val_options(**flags))

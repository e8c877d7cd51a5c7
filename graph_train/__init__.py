"""graph-train: YOLOv5-family detectors, trained with the whole step in one graph.

`train`, `validate`, `predict` and `export` correspond to the commands `graph-train`, `graph-val`, `graph-predict` and
`graph-export`, and `load` returns a detector to call with images; see `graph_train.api`. They are imported on first
use, so that importing the package is fast.
"""

from typing import TYPE_CHECKING, Any

from graph_train.host.own_modules import import_own_packages

if TYPE_CHECKING:
    from graph_train.api import export, load, predict, train, validate

import_own_packages()

__all__ = ["export", "load", "predict", "train", "validate"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'graph_train' has no attribute {name!r}")
    from graph_train import api

    return getattr(api, name)

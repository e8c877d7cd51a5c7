"""Writes trained weights in a form that other programs read."""

import logging
from pathlib import Path
from typing import Literal

from graph_train.detector import rebuild_network
from models.weights import save_weights

LOG = logging.getLogger("graph_train")


def export_safetensors(weights: Path, output: Path, *, part: Literal["ema", "model"] = "ema") -> Path:
    """Names, shapes and types of the reference's state dictionary, so that PyTorch users can load it into YOLOv5.

    Args:
        weights: anything `models.weights.load_weights` reads: our checkpoints, `.safetensors`, `.pt`, OneFlow folders.
        output: the file to write; it may exist.
        part: which network of a training checkpoint, the averaged one or the trained one.
    Raises:
        ValueError: the weights do not say which network they are, or do not fit it.
        OSError: a file that cannot be read or written.
    """
    save_weights(rebuild_network(weights, part=part), output)
    LOG.info("Wrote %s", output)
    return output

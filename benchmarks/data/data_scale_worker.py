"""Worker of `graph-bench data-scale`: one piece of work on a large data set, in a fresh process."""

import contextlib
import sys
import time
from collections import deque
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

from benchmarks.harness.channel import peak_memory_mb, serve

_SEED = 0
_MODEL, _IMAGE_PX, _BATCH = "yolov5n.yaml", 640, 2
"""Flags of the training: small steps, at an image size that the anchors fit, so autoanchor changes nothing."""
_PLANNED_BATCH = 16
_EPOCHS = 1000
"""Upper bound of the epochs, higher than the steps need even with few images."""


class _StopWorkError(BaseException):
    """The signal to end a training without its final save and validation."""


def index(data: str, cache: str) -> dict[str, Any]:
    """Index both splits, with the index cache in the folder `cache`; return figures on the training split."""
    found = _indexed(data, cache)
    return {"images": len(found), "boxes": found.num_boxes, "memory_mb": peak_memory_mb()}


def _indexed(data: str, cache: str) -> Any:
    from pipelines.data.dataset import load_dataset
    from pipelines.data.index import index_images

    dataset = load_dataset(data)
    train, _ = (
        index_images(split, dataset.class_names, cache_dir=Path(cache)) for split in (dataset.train, dataset.val)
    )
    return train


def check(data: str) -> dict[str, Any]:
    """Run `graph-check`, which reads the index from its cache."""
    from graph_train.cli.check import main

    with contextlib.redirect_stdout(sys.stderr):
        code = main(["--data", data])
    if code not in (0, 1):
        raise RuntimeError(f"graph-check ended with exit code {code}")
    return {"memory_mb": peak_memory_mb()}


def prepare_plan(data: str, cache: str) -> None:
    """Build the training pipeline without the plugin, which planning does not need."""
    from pipelines.augmentation.augment_config import AugmentConfig
    from pipelines.settings import BatchSettings
    from pipelines.train import TrainPipeline

    settings = BatchSettings(batch_size=_PLANNED_BATCH, image_px=_IMAGE_PX, workers=1)
    _state["pipeline"] = TrainPipeline(_indexed(data, cache), AugmentConfig(), settings, seed=_SEED)


def plan(batches: int) -> dict[str, Any]:
    """Plan `batches` batches from the start of an epoch, going on to the next epoch if it is too short."""
    every = chain.from_iterable(_state["pipeline"].plans(epoch) for epoch in count())
    deque(islice(every, batches), maxlen=0)
    return {"memory_mb": peak_memory_mb()}


def train(data: str, steps: int, threads: int, folder: str) -> dict[str, Any]:
    """Train some steps; `processor_s` is measured up to the first step, memory after the last."""
    from graph_train.hooks.callbacks import Callbacks
    from graph_train.host.memory import resident_bytes
    from graph_train.launch.train import train as graph_train

    spent: list[float] = []

    def after_batch(*_: Any) -> None:
        spent.append(time.process_time())
        if len(spent) == steps:
            raise _StopWorkError

    callbacks = Callbacks()
    callbacks.register_action("on_train_batch_end", callback=after_batch)
    held = 0.0
    try:
        graph_train(
            callbacks=callbacks,
            data=data,
            cfg=_MODEL,
            imgsz=_IMAGE_PX,
            batch_size=_BATCH,
            epochs=_EPOCHS,
            workers=threads,
            project=folder,
            device="cpu",
        )
    except _StopWorkError:
        held = resident_bytes() / 1e6
    return {"processor_s": spent[0], "memory_mb": held, "peak_memory_mb": peak_memory_mb()}


_state: dict[str, Any] = {}

if __name__ == "__main__":
    serve({"index": index, "check": check, "prepare_plan": prepare_plan, "plan": plan, "train": train})

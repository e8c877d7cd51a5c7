"""Worker of `graph-bench pipeline`: our whole training pipeline, and each of its stages alone."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.harness.channel import serve

_PREFETCHED_BATCHES = 2
"""Batches dropped before timing starts, so that all stages are busy by then."""
_state: dict[str, Any] = {}


def prepare(*, data: str, image_px: int, batch: int, threads: int, cache: bool, device: str, list_file: str) -> int:
    """Index the data set, build the pipeline, write the peer's image list and return the number of images."""
    from graph_train.host.devices import select_device
    from kernels.plugin import load_plugin
    from pipelines.augmentation.augment_config import AugmentConfig
    from pipelines.data.dataset import load_dataset
    from pipelines.data.index import index_images
    from pipelines.settings import BatchSettings
    from pipelines.train import TrainPipeline

    used_device = select_device(device)
    load_plugin("auto", used_device)
    dataset = load_dataset(data, require=("train",))
    index = index_images(dataset.train, dataset.class_names)
    listed = {"paths": [str(path) for path in index.paths], "labels": [rows.tolist() for rows in index.labels]}
    Path(list_file).write_text(json.dumps(listed), encoding="utf-8")
    settings = BatchSettings(
        batch_size=batch, image_px=image_px, workers=threads, device=used_device, cache="ram" if cache else None
    )
    pipeline = TrainPipeline(index, AugmentConfig(), settings, seed=0)
    _state.update(index=index, pipeline=pipeline, epoch=0, device=used_device)
    return len(index)


def once(count: int) -> dict[str, float]:
    """Return the images per second of about `count` samples after the first two batches, over as many epochs as needed.

    Also return the CPU time per image in ms.
    """
    start, cpu, timed = 0.0, 0.0, 0
    for seen, batch in enumerate(_batches(), 1):
        if seen == _PREFETCHED_BATCHES:
            start, cpu = time.perf_counter(), time.process_time()
        elif seen > _PREFETCHED_BATCHES:
            timed += len(batch.indices)
            if timed >= count:
                break
    elapsed = time.perf_counter() - start
    return {"images_per_second": timed / elapsed, "cpu_ms": (time.process_time() - cpu) / timed * 1000}


def _batches() -> Iterator[Any]:
    while True:
        _state["epoch"] += 1
        yield from _state["pipeline"].epoch(_state["epoch"])


def stage(name: str) -> float:
    """Return the images per second of one stage alone, over one epoch."""
    plans = list(_state["pipeline"].plans(0))
    work: Callable[[], object] = {
        "read": lambda: _read(plans),
        "decode": lambda: _decode(plans),
        "geometry": lambda: list(_state["pipeline"].plans(1)),
        "pixels": lambda: _draw(plans),
        "hand-over": lambda: _copy_batches(plans),
    }[name]
    work()  # opens files and warms up
    start = time.perf_counter()
    spent = work()
    # Stages that need preparation return their own time.
    elapsed = spent if isinstance(spent, float) else time.perf_counter() - start
    return len(_state["index"]) / elapsed


def _tiles(plan: Any) -> list[Any]:
    return [tile for view in plan.views for tile in view.tiles]


def _read(plans: list[Any]) -> list[Any]:
    from pipelines.pixels.encoded_images import ImageBytes

    images = ImageBytes(_state["index"])
    return [images.tile(tile) for plan in plans for tile in _tiles(plan)]


def _decode(plans: list[Any]) -> float:
    from pipelines.pixels.decoding import QUEUE_DEPTH, TileDecoder
    from pipelines.pixels.encoded_images import ImageBytes

    settings, images = _state["pipeline"].graph_settings, ImageBytes(_state["index"])
    work = [(tiles, [images.tile(tile) for tile in tiles]) for tiles in map(_tiles, plans)]
    max_tiles = settings.slots * settings.batch_size
    decoder = TileDecoder(max_tiles=max_tiles, threads=settings.threads, backend=settings.backend)
    start = time.perf_counter()
    for number, (tiles, content) in enumerate(work):
        decoder.submit(tiles, content)
        if number >= QUEUE_DEPTH - 1:
            decoder.collect()
            decoder.release()
    for _ in work[: QUEUE_DEPTH - 1]:
        decoder.collect()
        decoder.release()
    elapsed = time.perf_counter() - start
    decoder.close()
    return elapsed


def _draw(plans: list[Any]) -> float:
    from pipelines.pixels.drawing import open_drawing
    from pipelines.pixels.image_cache import open_images
    from pipelines.pixels.timings import Timings

    if "decoded" not in _state:
        _state["decoded"] = open_images(_state["index"], "ram")
    settings = replace(_state["pipeline"].graph_settings, decoded=_state["decoded"].decoded)
    if not settings.decoded:
        raise ValueError("the decoded images do not fit into memory, so drawing cannot be measured alone")
    drawing = open_drawing(settings, _state["decoded"], Timings())
    start = time.perf_counter()
    for plan in plans:
        drawing.submit(plan)
        drawing.start(plan)()
    elapsed = time.perf_counter() - start
    drawing.close()
    return elapsed


def _copy_batches(plans: list[Any]) -> float:
    """Pass finished batches to the step: no copy on a CPU, one copy on the device on a GPU."""
    if _state["device"] != "cpu":
        return _hand_over_on_device(plans)
    from graph_train.detection.inference import on_device

    images = [plan.empty_images() for plan in plans]
    start = time.perf_counter()
    for batch in images:
        on_device(batch, "cpu")
    return time.perf_counter() - start


def _hand_over_on_device(plans: list[Any]) -> float:
    from pipelines.pixels.canvas_graph import CanvasPipeline
    from pipelines.pixels.device_copy import DeviceCopy, RenderedImages
    from pipelines.pixels.encoded_images import ImageBytes

    canvases, images, spent = CanvasPipeline(_state["pipeline"].graph_settings), ImageBytes(_state["index"]), 0.0
    for plan in plans:
        canvases.submit(plan, [[images.tile(t) for t in view.tiles] for view in plan.views])
        rendered = canvases.collect()
        start = time.perf_counter()
        DeviceCopy(RenderedImages(rendered, plan.images_shape)).wait()
        spent += time.perf_counter() - start
        canvases.release()
    canvases.close()
    return spent


if __name__ == "__main__":
    serve({"prepare": prepare, "once": once, "stage": stage})

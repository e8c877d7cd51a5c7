"""Batches as the trainer sees them, and the thread that prepares them ahead of time."""

import queue
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.colour import finish_picture
from pipelines.image_cache import ImageStore
from pipelines.pixels import CanvasPipeline, Finish
from pipelines.rendering import ViewRender

_READY_BATCHES = 2
"""Finished batches that wait for the trainer; two more are inside DALI."""


@dataclass(frozen=True)
class Shard:
    """Which part of every batch this process handles."""

    rank: int = 0
    ranks: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.ranks:
            raise ValueError(f"shard: rank {self.rank} of {self.ranks}; ranks count from 0")

    def rows(self, count: int) -> slice:
        """This rank's rows of a batch whose size is a multiple of the number of ranks."""
        share = count // self.ranks
        return slice(self.rank * share, (self.rank + 1) * share)


@dataclass(frozen=True)
class FileGeometry:
    """How one file became one image of a validation batch.

    Attributes:
        original_hw: px of the file, upright.
        ratio_hw: batch px per file px.
        pad_wh: grey border on the left and on the top of the image, before rounding.
    """

    original_hw: tuple[int, int]
    ratio_hw: tuple[float, float]
    pad_wh: tuple[float, float]


@dataclass(frozen=True)
class Batch:
    """Images with their labels.

    Attributes:
        images: (B, 3, H, W) uint8 RGB, in memory that belongs to this batch alone: a NumPy array on a CPU, a OneFlow
            tensor on a GPU.
        labels: (n, 6) float32 [image, class, cx, cy, w, h], normalised to the batch images and inside them, sorted by
            image.
        indices: (B,) int64 numbers of the images in the index.
        paths: their files.
        geometry: one per image in validation, else empty.
    """

    images: Any
    labels: np.ndarray
    indices: np.ndarray
    paths: tuple[Path, ...]
    geometry: tuple[FileGeometry, ...] = ()

    @property
    def max_labels(self) -> int:
        """Labels of the fullest image; 0 if there are none."""
        return int(np.bincount(self.labels[:, 0].astype(np.int64)).max(initial=0))


@dataclass(frozen=True)
class Picture:
    """One drawn picture and its place in a batch.

    Attributes:
        views: one, or two to be blended.
        mix_ratio: share of the first one.
        hsv_gains: None leaves colours alone.
        row: image of the batch.
        at: row and column in px where the picture starts in that image.
    """

    views: tuple[ViewRender, ...]
    mix_ratio: float
    hsv_gains: tuple[float, float, float] | None
    row: int
    at: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class BatchPlan:
    """All that has to be known to make one batch.

    Attributes:
        pictures: what to draw.
        shape_hw: px of the batch images.
        labels, indices, geometry: see `Batch`.
    """

    pictures: tuple[Picture, ...]
    shape_hw: tuple[int, int]
    labels: np.ndarray
    indices: np.ndarray
    geometry: tuple[FileGeometry, ...] = ()

    @property
    def views(self) -> list[ViewRender]:
        """The first view of every picture, then the second ones of those that have two."""
        return [p.views[0] for p in self.pictures] + [p.views[1] for p in self.pictures if len(p.views) == 2]

    @property
    def finishes(self) -> list[Finish]:
        """What happens to each of the views."""
        seconds = iter(range(len(self.pictures), 2 * len(self.pictures)))
        firsts = [Finish(next(seconds) if len(p.views) == 2 else None, p.mix_ratio, p.hsv_gains) for p in self.pictures]
        return firsts + [Finish() for p in self.pictures if len(p.views) == 2]


@dataclass
class Timings:
    """Seconds spent since the pipeline was made; the stages overlap, so they do not add up to the time on the clock.

    Attributes:
        waiting: the consumer waited for a batch.
        planning: draws, geometry and labels.
        reading: bytes of the images, decoding on the host included.
        drawing: waiting for DALI.
        finishing: blending, colour and layout on the host.
        batches: batches handed over.
    """

    waiting: float = 0.0
    planning: float = 0.0
    reading: float = 0.0
    drawing: float = 0.0
    finishing: float = 0.0
    batches: int = 0


class BatchSource:
    """Makes batches from plans, ahead of their use, in one background thread beside DALI's own."""

    def __init__(self, canvases: CanvasPipeline, images: ImageStore, paths: Sequence[Path]) -> None:
        self._canvases, self._images, self._paths = canvases, images, paths
        self._running: _Run | None = None
        self.timings = Timings()

    def batches(self, plans: Iterator[BatchPlan]) -> Iterator[Batch]:
        """Batches in the order of the plans; a new call ends the one before. Closing the iterator ends the work."""
        self.stop()
        run = self._running = _Run(self, plans)
        try:
            while True:
                start = time.perf_counter()
                made = run.ready.get()
                self.timings.waiting += time.perf_counter() - start
                if made is None:
                    return
                if isinstance(made, BaseException):
                    raise made
                self.timings.batches += 1
                yield made
        finally:
            run.stop()

    def stop(self) -> None:
        """Ends the work under way, if there is any, and waits until it has ended."""
        if self._running is not None:
            self._running.stop()
            self._running = None

    def close(self) -> None:
        """Stops, and ends DALI's threads. Batches that were handed over stay valid on a CPU."""
        self.stop()
        self._canvases.close()

    def submit(self, plan: BatchPlan) -> None:
        """Reads the images of a plan and hands them to DALI."""
        start = time.perf_counter()
        views = plan.views
        images = [[self._images.tile(tile) for tile in view.tiles] for view in views]
        self.timings.reading += time.perf_counter() - start
        self._canvases.submit(views, images, plan.finishes)

    def finish(self, plan: BatchPlan) -> Batch:
        """Fetches the oldest batch from DALI and completes it."""
        start = time.perf_counter()
        try:
            drawn = self._canvases.collect()
        except RuntimeError as error:
            raise self._decoding_error(plan, error) from error
        arrived = time.perf_counter()
        self.timings.drawing += arrived - start
        complete = _device_images if self._canvases.settings.device == "cuda" else _host_images
        images = complete(drawn, plan)
        self._canvases.release()
        self.timings.finishing += time.perf_counter() - arrived
        paths = tuple(self._paths[n] for n in plan.indices)
        return Batch(images, plan.labels, plan.indices, paths, plan.geometry)

    def _decoding_error(self, plan: BatchPlan, error: RuntimeError) -> Exception:
        numbers = [tile.source for view in plan.views for tile in view.tiles]
        bad = self._images.explain_failure(numbers)
        if bad:
            return OSError(f"images that cannot be decoded: {bad}; repair or remove them")
        return RuntimeError(f"DALI failed on images {sorted(set(numbers))}: {error}")


def _host_images(drawn: Any, plan: BatchPlan) -> np.ndarray:
    """Blends, colours and copies what DALI drew into an array of its own."""
    images = np.empty((len(plan.indices), 3, *plan.shape_hw), np.uint8)
    for number, (picture, finish) in enumerate(zip(plan.pictures, plan.finishes, strict=False)):
        views = [drawn.at(n) for n in (number, finish.partner) if n is not None]
        height, width = views[0].shape[:2]
        top, left = picture.at
        target = images[picture.row, :, top : top + height, left : left + width]
        finish_picture(views, finish.mix_ratio, finish.hsv_gains, target)
    return images


def _device_images(drawn: Any, plan: BatchPlan) -> Any:
    """A OneFlow tensor with its own copy, made on the device, of the finished images that DALI drew."""
    # Imported here so that pipelines on a CPU do not wait for the CUDA libraries.
    from kernels.runtime import flow

    shared = flow.from_dlpack(drawn.as_tensor().__dlpack__())
    images = shared[: len(plan.pictures)].clone()
    # DALI takes its memory back after this: the copy has to be complete.
    flow.cuda.synchronize()
    return images


class _Run:
    """One pass over some plans in a thread of its own."""

    def __init__(self, source: BatchSource, plans: Iterator[BatchPlan]) -> None:
        self.ready: queue.Queue[Batch | BaseException | None] = queue.Queue(_READY_BATCHES)
        self._source, self._plans = source, plans
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="graph-train-batches", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        while self._thread.is_alive():
            try:
                self.ready.get_nowait()
            except queue.Empty:
                self._thread.join(0.005)

    def _work(self) -> None:
        under_way: deque[BatchPlan] = deque()
        try:
            while not self._stopping.is_set():
                start = time.perf_counter()
                plan = next(self._plans, None)
                self._source.timings.planning += time.perf_counter() - start
                if plan is not None:
                    under_way.append(plan)
                    self._source.submit(plan)
                if plan is None and not under_way:
                    break
                if plan is None or len(under_way) == 2:
                    self.ready.put(self._source.finish(under_way.popleft()))
            for plan in under_way:
                self._source.finish(plan)
            self.ready.put(None)
        except BaseException as error:
            self.ready.put(error)

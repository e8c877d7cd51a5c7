"""Batches, and the thread that prepares them ahead of time."""

import contextlib
import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kernels.host.paths import printable
from pipelines.augmentation.plans import BatchPlan, FileGeometry
from pipelines.pixels.canvas_graph import GraphSettings
from pipelines.pixels.decoding import QUEUE_DEPTH
from pipelines.pixels.device_copy import BatchCopier, RenderedImages
from pipelines.pixels.drawing import open_drawing
from pipelines.pixels.image_cache import ImageStore
from pipelines.pixels.timings import Timings

_log = logging.getLogger("graph_train")
_READY_BATCHES = 2
"""Maximum number of finished batches in the queue; up to `QUEUE_DEPTH` + 1 more are in preparation."""
_SHOWN_PATHS = 8


@dataclass(frozen=True)
class Batch:
    """A batch of images and labels.

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
        """Largest number of labels of an image; 0 if there are none."""
        return int(np.bincount(self.labels[:, 0].astype(np.int64)).max(initial=0))


class BatchSource:
    """Source of batches, prepared from plans by a background thread ahead of their use."""

    def __init__(self, settings: GraphSettings, images: ImageStore, paths: Sequence[Path]) -> None:
        self.timings = Timings()
        self.drawing = open_drawing(settings, images, self.timings)
        self._images, self._paths = images, paths
        self._backend = settings.backend
        self._copier = BatchCopier()
        self._running: _EpochWorker | None = None
        self._has_failed = False

    def batches(self, plans: Iterator[BatchPlan]) -> Iterator[Batch]:
        """Start preparing batches and return an iterator over them in the order of the plans.

        A new call stops the previous one; so does closing the iterator once it has yielded a batch.
        """
        self.stop()
        if self._has_failed:  # discard what was queued before the failure
            self.drawing.restart()
            self._has_failed = False
        self._running = _EpochWorker(self, plans)
        return self._batches_of(self._running)

    def _batches_of(self, run: "_EpochWorker") -> Iterator[Batch]:
        try:
            while True:
                with self.timings.counting("waiting"):
                    made = run.ready.get()
                if made is None:
                    return
                if isinstance(made, BaseException):
                    raise made
                self.timings.batches += 1
                yield self._with_own_images(made)
        finally:
            run.stop()
            self._copier.finish()

    def _with_own_images(self, batch: Batch) -> Batch:
        """Return the batch with its own copy of the images, in a form that OneFlow accepts."""
        if not isinstance(batch.images, RenderedImages):
            return batch
        with self.timings.counting("waiting"):
            return replace(batch, images=self._copier.take(batch.images))

    def stop(self) -> None:
        """Stop the preparation, and wait until it has stopped."""
        if self._running is not None:
            self._running.stop()
            self._has_failed |= self._running.has_failed
            self._running = None

    def close(self) -> None:
        """Stop all threads. Batches already returned remain valid on a CPU."""
        self.stop()
        self.drawing.close()

    def batch(self, plan: BatchPlan, images: Any) -> Batch:
        """Build the batch of a plan from its images."""
        return Batch(images, plan.labels, plan.indices, tuple(self._paths[n] for n in plan.indices), plan.geometry)

    def recover(self, queued: Sequence[BatchPlan], error: RuntimeError) -> None:
        """Decode on the host the image of the first queued plan that DALI failed on, and queue all plans again.

        Raises:
            OSError: the host cannot decode it either.
            RuntimeError: the failure was not caused by an image.
        """
        numbers = queued[0].sources
        bad = self._images.explain_failure(numbers)
        if bad:
            raise OSError(f"images cannot be decoded: {bad}; fix or remove them") from error
        rejected = self._images.decode_rejected_on_host(numbers, self._backend)
        if not rejected:
            shown = ", ".join(printable(self._paths[number]) for number in numbers[:_SHOWN_PATHS])
            more = f" and {len(numbers) - _SHOWN_PATHS} more" if len(numbers) > _SHOWN_PATHS else ""
            raise RuntimeError(f"DALI failed on a batch with {shown}{more}: {error}") from error
        for number in rejected:
            _log.warning("%s: DALI cannot decode it; using Pillow from now on", printable(self._paths[number]))
        self.drawing.restart()
        for plan in queued:
            self.drawing.submit(plan)


class _EpochWorker:
    """A pass over plans in a background thread."""

    def __init__(self, source: BatchSource, plans: Iterator[BatchPlan]) -> None:
        self.ready: queue.Queue[Batch | BaseException | None] = queue.Queue(_READY_BATCHES)
        self._source, self._plans = source, plans
        self.has_failed = False
        self._stopping = threading.Event()
        self._decoding: deque[BatchPlan] = deque()
        self._thread = threading.Thread(target=self._work, name="graph-train-batches", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop; waiting consumers see the end of the batches."""
        self._stopping.set()
        while self._thread.is_alive():
            self._drop_prefetched()
            self._thread.join(0.005)
        self._drop_prefetched()
        self.ready.put(None)

    def _drop_prefetched(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self.ready.get_nowait()

    def _work(self) -> None:
        try:
            self._make_all()
            self.ready.put(None)
        except BaseException as error:
            self.has_failed = True
            self.ready.put(error)

    def _make_all(self) -> None:
        """Decode batches while the previous one is drawn and the next one is planned.

        After a stop, planning ends and the queue is emptied, because its batches would come first in the next pass.
        """
        drawing: tuple[BatchPlan, Callable[[], Any]] | None = None
        more = True
        while more or self._decoding or drawing:
            plan = self._next_plan() if more else None
            more = plan is not None
            if plan is not None:
                self._source.drawing.submit(plan)
                self._decoding.append(plan)
            if drawing is not None:
                self.ready.put(self._source.batch(drawing[0], drawing[1]()))
                drawing = None
            if self._decoding and (len(self._decoding) == QUEUE_DEPTH or not more):
                drawing = self._start_oldest()

    def _next_plan(self) -> BatchPlan | None:
        with self._source.timings.counting("geometry"):
            return None if self._stopping.is_set() else next(self._plans, None)

    def _start_oldest(self) -> tuple[BatchPlan, Callable[[], Any]]:
        plan = self._decoding[0]
        try:
            started = self._source.drawing.start(plan)
        except RuntimeError as error:
            self._source.recover(self._decoding, error)
            started = self._source.drawing.start(plan)
        self._decoding.popleft()
        return plan, started

"""Decoding with DALI: the queue and the operator shared by all graphs, and a graph that only decodes."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from nvidia.dali import Pipeline, fn, pipeline_def, types

from pipelines.augmentation.mosaic import Size
from pipelines.augmentation.rendering import TileRender
from pipelines.pixels.backend import Backend

DOT = np.frombuffer(b"P6\n1 1\n255\nrrr", np.uint8)
"""An image file with one pixel, for unused inputs of graphs."""
DOT_TILE = TileRender(0, (0, 0), (1, 1), (0.0, 0.0), (1.0, 1.0), (1, 1), (0, 0))
"""The tile of `DOT`."""
QUEUE_DEPTH = 3
"""Number of batches in a graph: one whose pixels are in use, and two being decoded."""


def external_input(name: str, dtype: Any, ndim: int, layout: str | None = None) -> Any:
    """Return the external source of a graph with this name."""
    return fn.external_source(name=name, dtype=dtype, ndim=ndim, layout=layout)


def decoded_crop(content: Any, start: Any, shape: Any, backend: Backend) -> Any:
    """Decode the part of an image from `start` (row, column) with size `shape`, (h, w, 3) uint8 RGB."""
    # By default, a GPU repeats chroma samples that the CPU's decoder interpolates.
    chroma: dict[str, Any] = {} if backend.gpu is None else {"jpeg_fancy_upsampling": True}
    return fn.decoders.image_slice(content, start=start, shape=shape, axes=(0, 1), device=backend.decoder, **chroma)


class QueuedPipeline(ABC):
    """A DALI pipeline with a queue: subclasses `submit` batches, `collect` returns their results in the same order.

    Up to `QUEUE_DEPTH` batches may be queued, so that decoding continues while the caller is busy.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._pipeline.build()
        self._start()

    def _start(self) -> None:
        """Fill DALI's queue, because its first `schedule_run` always runs as many batches as the queue is deep."""
        for _ in range(QUEUE_DEPTH):
            self._feed_blank()
        self._pipeline.schedule_run()
        for _ in range(QUEUE_DEPTH):
            self.collect()
            self.release()

    @abstractmethod
    def _feed_blank(self) -> None:
        """Feed the inputs of a batch whose result is not used."""

    def collect(self) -> Any:
        """Return the oldest queued batch when complete, as a DALI TensorList.

        Raises:
            RuntimeError: an image cannot be decoded; the pipeline is unusable afterwards.
        """
        return self._pipeline.share_outputs()[0]

    def release(self) -> None:
        """Free the place of the oldest collected batch in the queue."""
        self._pipeline.release_outputs()

    def close(self) -> None:
        """Stop DALI's threads and free its memory."""
        self._pipeline._shutdown()


class TileDecoder(QueuedPipeline):
    """Decoder of the parts of images that tiles need; results are (h, w, 3) uint8, valid until `release`."""

    def __init__(self, *, max_tiles: int, threads: int, backend: Backend = Backend()) -> None:  # noqa: B008 - frozen
        super().__init__(_define(max_tiles, threads, backend))

    def _feed_blank(self) -> None:
        self._feed([DOT_TILE], [DOT])

    def submit(self, tiles: Sequence[TileRender], images: Sequence[np.ndarray]) -> None:
        """Queue one or more tiles with their encoded images."""
        self._feed(tiles, images)
        self._pipeline.schedule_run()

    def _feed(self, tiles: Sequence[TileRender], images: Sequence[np.ndarray]) -> None:
        self._pipeline.feed_input("image", list(images))
        self._pipeline.feed_input("start", np.array([tile.crop_start for tile in tiles], np.int32))
        self._pipeline.feed_input("shape", np.array([tile.crop_shape for tile in tiles], np.int32))


def _define(max_tiles: int, threads: int, backend: Backend) -> Pipeline:
    @pipeline_def(
        batch_size=max_tiles,
        num_threads=threads,
        device_id=backend.gpu,
        prefetch_queue_depth=QUEUE_DEPTH,
        exec_async=True,
        exec_pipelined=True,
    )
    def crops() -> Any:
        start, shape = external_input("start", types.INT32, 1), external_input("shape", types.INT32, 1)
        return decoded_crop(external_input("image", types.UINT8, 1), start, shape, backend)

    return crops()


def dali_can_decode(content: np.ndarray, image_wh: Size, backend: Backend) -> bool:
    """Return whether DALI can decode an image (bytes,) uint8 completely; slow, for use after a failure."""
    width, height = image_wh
    # A crop at the top would miss damage further down.
    full_image = replace(DOT_TILE, crop_shape=(height, width))
    decoder = TileDecoder(max_tiles=1, threads=1, backend=backend)
    try:
        decoder.submit([full_image], [content])
        decoder.collect()
    except RuntimeError:
        return False
    finally:
        decoder.close()
    return True

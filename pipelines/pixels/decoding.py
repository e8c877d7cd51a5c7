"""Decoding with DALI: the operator that all graphs share, and a graph that does nothing else."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from nvidia.dali import Pipeline, fn, pipeline_def, types

from pipelines.augmentation.mosaic import Size
from pipelines.augmentation.rendering import TileRender
from pipelines.pixels.backend import Backend

DOT = np.frombuffer(b"P6\n1 1\n255\nrrr", np.uint8)
"""An image file of one pixel, where a graph needs some image."""
DOT_TILE = TileRender(0, (0, 0), (1, 1), (0.0, 0.0), (1.0, 1.0), (1, 1), (0, 0))
"""All of `DOT`, as it is."""
QUEUE_DEPTH = 3
"""Batches that a graph works on at a time: one whose pixels are in use, and two that are decoded meanwhile."""


def given(name: str, dtype: Any, ndim: int, layout: str | None = None) -> Any:
    """Return the values fed to a graph under a name."""
    return fn.external_source(name=name, dtype=dtype, ndim=ndim, layout=layout)


def decoded_crop(content: Any, start: Any, shape: Any, backend: Backend) -> Any:
    """Return (h, w, 3) uint8 RGB: the part of an encoded image from `start` (row, column), of size `shape`."""
    # A GPU would by default repeat chroma samples that the CPU's decoder interpolates.
    chroma: dict[str, Any] = {} if backend.gpu is None else {"jpeg_fancy_upsampling": True}
    return fn.decoders.image_slice(content, start=start, shape=shape, axes=(0, 1), device=backend.decoder, **chroma)


class TileDecoder:
    """A decoder of the part of its image that each tile looks at, batch after batch.

    Work is queued with `submit` and fetched in the same order with `collect`; `QUEUE_DEPTH` batches may be under way.
    """

    def __init__(self, *, most_tiles: int, threads: int, backend: Backend = Backend()) -> None:  # noqa: B008 - frozen
        self._pipeline = _define(most_tiles, threads, backend)
        self._pipeline.build()
        # DALI's first `schedule_run` always runs as many batches as its queue is deep.
        for _ in range(QUEUE_DEPTH):
            self._feed([DOT_TILE], [DOT])
        self._pipeline.schedule_run()
        for _ in range(QUEUE_DEPTH):
            self.collect()
            self.release()

    def submit(self, tiles: Sequence[TileRender], images: Sequence[np.ndarray]) -> None:
        """Queue at least one tile, with the bytes of the image of each."""
        self._feed(tiles, images)
        self._pipeline.schedule_run()

    def _feed(self, tiles: Sequence[TileRender], images: Sequence[np.ndarray]) -> None:
        self._pipeline.feed_input("image", list(images))
        self._pipeline.feed_input("start", np.array([tile.crop_start for tile in tiles], np.int32))
        self._pipeline.feed_input("shape", np.array([tile.crop_shape for tile in tiles], np.int32))

    def collect(self) -> Any:
        """Return the oldest batch under way: a DALI TensorList of (h, w, 3) uint8, valid until `release`.

        Raises:
            RuntimeError: an image cannot be decoded; the decoder is of no use any more.
        """
        return self._pipeline.share_outputs()[0]

    def release(self) -> None:
        """Give the memory of the oldest collected batch back to DALI."""
        self._pipeline.release_outputs()

    def close(self) -> None:
        """End DALI's threads and free its memory."""
        self._pipeline._shutdown()


def _define(most_tiles: int, threads: int, backend: Backend) -> Pipeline:
    @pipeline_def(
        batch_size=most_tiles,
        num_threads=threads,
        device_id=backend.gpu,
        prefetch_queue_depth=QUEUE_DEPTH,
        exec_async=True,
        exec_pipelined=True,
    )
    def crops() -> Any:
        start, shape = given("start", types.INT32, 1), given("shape", types.INT32, 1)
        return decoded_crop(given("image", types.UINT8, 1), start, shape, backend)

    return crops()


def is_decoded_by_dali(content: np.ndarray, image_wh: Size, backend: Backend) -> bool:
    """Return whether DALI decodes all of an image of that size, (bytes,) uint8.

    This is slow, for the search after a failure.
    """
    width, height = image_wh
    # A crop at the top would not see damage further down.
    whole = replace(DOT_TILE, crop_shape=(height, width))
    decoder = TileDecoder(most_tiles=1, threads=1, backend=backend)
    try:
        decoder.submit([whole], [content])
        decoder.collect()
    except RuntimeError:
        return False
    finally:
        decoder.close()
    return True

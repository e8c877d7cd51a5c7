"""Drawing of plans: completely in DALI, or decoding in DALI and drawing by a kernel of the plugin.

DALI's graph (`pipelines.pixels.canvas_graph`) is used on a GPU, and for views with rotation, shear or perspective. For
other views on a CPU, the plugin's faster `kernels.ops.drawing.function` draws several pictures in parallel with the
same filters; without the plugin, DALI draws them too.
"""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Protocol

import numpy as np

import kernels.plugin
from kernels.ops.drawing.function import draw_region
from pipelines.augmentation.letterbox import BORDER_GREY
from pipelines.augmentation.plans import BatchPlan, Picture
from pipelines.augmentation.rendering import ViewRender
from pipelines.pixels.canvas_graph import CanvasPipeline, GraphSettings
from pipelines.pixels.colour import finish_picture, mix_images
from pipelines.pixels.decoding import TileDecoder
from pipelines.pixels.device_copy import RenderedImages
from pipelines.pixels.image_cache import ImageStore
from pipelines.pixels.timings import Timings


class Drawing(Protocol):
    """Interface for drawing plans in order: `submit` some, `start` the oldest, and call the returned function."""

    def submit(self, plan: BatchPlan) -> None:
        """Read the images of a plan and queue their decoding; at most `QUEUE_DEPTH` plans may be queued."""
        ...

    def start(self, plan: BatchPlan) -> Callable[[], Any]:
        """Wait until the oldest queued plan is decoded, and start drawing it.

        Returns:
            A function that waits for the images: an array, or `RenderedImages` if the graph finishes them.
        Raises:
            RuntimeError: DALI cannot decode an image; see `restart`.
        """
        ...

    def restart(self) -> None:
        """Build a new graph with an empty queue after a failure, after waiting for pictures being drawn."""
        ...

    def close(self) -> None:
        """Stop all threads."""
        ...


def open_drawing(settings: GraphSettings, images: ImageStore, timings: Timings) -> Drawing:
    """Return the fastest implementation for the settings."""
    if settings.finish:
        return DeviceDrawing(settings, images, timings)
    if not settings.warp and kernels.plugin.is_loaded():
        return KernelDrawing(settings, images, timings)
    return GraphDrawing(settings, images, timings)


class GraphDrawing:
    """Drawing in DALI; blending, colour and layout are done on the host."""

    def __init__(self, settings: GraphSettings, images: ImageStore, timings: Timings) -> None:
        self._settings, self._images, self._timings = settings, images, timings
        self._canvases = CanvasPipeline(settings)

    def submit(self, plan: BatchPlan) -> None:
        """See `Drawing`."""
        with self._timings.counting("reading"):
            images = [[self._images.tile(tile) for tile in view.tiles] for view in plan.views]
        self._canvases.submit(plan, images)

    def start(self, plan: BatchPlan) -> Callable[[], Any]:
        """See `Drawing`; everything is complete when it returns."""
        with self._timings.counting("dali"):
            output = self._canvases.collect()
        with self._timings.counting("pixels"):
            images = _host_images(output, plan)
            self._canvases.release()
        return lambda: images

    def restart(self) -> None:
        """See `Drawing`."""
        self._canvases.close()
        self._canvases = CanvasPipeline(self._settings)

    def close(self) -> None:
        """See `Drawing`."""
        self._canvases.close()


class DeviceDrawing(GraphDrawing):
    """Drawing and finishing in DALI; the images stay on the device."""

    def start(self, plan: BatchPlan) -> Callable[[], RenderedImages]:
        """See `Drawing`; everything is complete when it returns."""
        with self._timings.counting("dali"):
            output = self._canvases.collect()
        # DALI does not reuse memory that is still referenced.
        self._canvases.release()
        return lambda: RenderedImages(output, plan.images_shape)


class KernelDrawing:
    """Decoding in DALI, unless images are cached decoded, and drawing by a kernel, one picture per thread."""

    def __init__(self, settings: GraphSettings, images: ImageStore, timings: Timings) -> None:
        self._settings, self._images, self._timings = settings, images, timings
        self._decoder = self._new_decoder()
        self._crops: deque[list[np.ndarray]] = deque()
        self._pool = ThreadPoolExecutor(settings.threads, thread_name_prefix="graph-train-drawing")
        self._jobs: list[Future[None]] = []

    def _new_decoder(self) -> TileDecoder | None:
        settings = self._settings
        if settings.decoded:
            return None
        return TileDecoder(max_tiles=settings.slots * settings.batch_size, threads=settings.threads)

    def submit(self, plan: BatchPlan) -> None:
        """See `Drawing`."""
        tiles = [tile for view in plan.views for tile in view.tiles]
        with self._timings.counting("reading"):
            images = [self._images.tile(tile) for tile in tiles]
        if self._decoder is None:
            self._crops.append(images)
        elif tiles:
            self._decoder.submit(tiles, images)

    def start(self, plan: BatchPlan) -> Callable[[], np.ndarray]:
        """See `Drawing`; drawing continues in the background."""
        views = plan.views
        count = sum(len(view.tiles) for view in views)
        decoder = self._decoder if count else None
        if decoder is not None:
            with self._timings.counting("dali"):
                decoded = decoder.collect()
            crops = [decoded.at(number) for number in range(count)]
        else:
            crops = [] if self._decoder is not None else self._crops.popleft()
        rest = iter(crops)
        crops_of_views = [[next(rest) for _ in view.tiles] for view in views]
        images = plan.empty_images()
        jobs = []
        for number, (picture, finish) in enumerate(zip(plan.pictures, plan.finishes, strict=False)):
            own = [crops_of_views[n] for n in (number, finish.partner) if n is not None]
            jobs.append(self._pool.submit(draw_picture, picture, own, picture.window(images)))
        self._jobs = jobs

        def finished() -> np.ndarray:
            with self._timings.counting("pixels"):
                for job in jobs:
                    job.result()
            if decoder is not None:
                decoder.release()
            return images

        return finished

    def restart(self) -> None:
        """See `Drawing`."""
        wait(self._jobs)  # they read the decoder's memory
        if self._decoder is not None:
            self._decoder.close()
        self._decoder = self._new_decoder()
        self._crops.clear()

    def close(self) -> None:
        """See `Drawing`."""
        self._pool.shutdown()
        if self._decoder is not None:
            self._decoder.close()


def draw_picture(picture: Picture, crops: Sequence[Sequence[np.ndarray]], target: np.ndarray) -> None:
    """Draw the views of a picture without warp, blend them and apply the colour gains.

    Args:
        picture: what to draw.
        crops: for each view, the (h, w, 3) uint8 pixels used by its tiles.
        target: (3, h, w) uint8 output with contiguous rows.
    """
    draw_view(picture.views[0], crops[0], target)
    if len(picture.views) == 2:
        other = np.empty(target.shape, np.uint8)
        draw_view(picture.views[1], crops[1], other)
        target[...] = mix_images(target, other, picture.mix_ratio)
    if picture.hsv_gains is not None:
        finish_picture([target.transpose(1, 2, 0)], 1.0, picture.hsv_gains, target)


def draw_view(view: ViewRender, crops: Sequence[np.ndarray], target: np.ndarray) -> None:
    """Draw the tiles of a view without warp on grey, later ones on top; arguments as for `draw_picture`."""
    target[...] = BORDER_GREY
    for tile, crop in zip(view.tiles, crops, strict=True):
        (top, left), (height, width) = tile.anchor, tile.shape
        draw_region(
            crop,
            (*tile.region_start, *tile.region_end),
            target[:, top : top + height, left : left + width],
            filter=tile.filter,
        )


def _host_images(output: Any, plan: BatchPlan) -> np.ndarray:
    """Blend, colour and copy images rendered by DALI into a new array."""
    images = plan.empty_images()
    for number, (picture, finish) in enumerate(zip(plan.pictures, plan.finishes, strict=False)):
        views = [output.at(n) for n in (number, finish.partner) if n is not None]
        finish_picture(views, finish.mix_ratio, finish.hsv_gains, picture.window(images))
    return images

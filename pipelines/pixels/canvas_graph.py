"""The DALI graph that turns encoded images and rectangles into canvases; the same for CPU and GPU."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from nvidia.dali import Pipeline, fn, pipeline_def, types
from PIL import Image, ImageDraw

from pipelines.augmentation.letterbox import BORDER_GREY
from pipelines.augmentation.plans import Finish
from pipelines.augmentation.rendering import TileRender, ViewRender
from pipelines.pixels import finishing
from pipelines.pixels.decoding import DOT, DOT_TILE, QUEUE_DEPTH, Device, decoded_crop, given

# An unused slot gets `DOT_TILE` with `DOT`, or with this where images come decoded: resized, but pasted with no area.
_PIXEL = np.zeros((1, 1, 3), np.uint8)

_GAINS = ("hue_gain", "saturation_gain", "value_gain")


@dataclass(frozen=True)
class GraphSettings:
    """What the DALI graph is built for.

    Attributes:
        slots: most tiles per view.
        warp: whether views have a warp matrix (all of them) or none has.
        paste: whether views may have pasted polygons; only with `warp`.
        batch_size: most views per batch.
        threads: DALI's CPU threads.
        device: where decoding (on "cuda" in part) and everything after it happens.
        finish: whether blending, colour and layout are part of the graph; otherwise they are left to the host.
        decoded: whether tiles come as pixels of their crops; otherwise as bytes of their images.
    """

    slots: int
    warp: bool
    paste: bool
    batch_size: int
    threads: int
    device: Device
    finish: bool
    decoded: bool = False


class CanvasPipeline:
    """Draws batches of views: decode, resize regions, paste on grey, and warp and finish if asked for.

    Work is queued with `submit` and fetched in the same order with `collect`; `QUEUE_DEPTH` batches may be under way,
    so that decoding goes on while the caller is busy.
    """

    def __init__(self, settings: GraphSettings) -> None:
        self._settings = settings
        self._pipeline = _define(settings)
        self._pipeline.build()
        self._start()

    def _start(self) -> None:
        """Fills DALI's queue once: its first `schedule_run` always runs as many batches as the queue is deep."""
        nothing = ViewRender((), (1, 1), np.eye(3, dtype=np.float32) if self._settings.warp else None, (1, 1))
        for _ in range(QUEUE_DEPTH):
            self._feed([nothing], [()], [Finish()])
        self._pipeline.schedule_run()
        for _ in range(QUEUE_DEPTH):
            self.collect()
            self.release()

    def submit(
        self, views: Sequence[ViewRender], images: Sequence[Sequence[np.ndarray]], finishes: Sequence[Finish]
    ) -> None:
        """Queues a batch.

        Args:
            views: what to draw.
            images: of each tile of each view the bytes of its image, or the pixels of its crop if built for that.
            finishes: one per view; looked at only if finishing is part of the graph.
        """
        self._feed(views, images, finishes)
        self._pipeline.schedule_run()

    def _feed(
        self, views: Sequence[ViewRender], images: Sequence[Sequence[np.ndarray]], finishes: Sequence[Finish]
    ) -> None:
        feed = self._pipeline.feed_input
        padded = [(*view.tiles, *[DOT_TILE] * (self._settings.slots - len(view.tiles))) for view in views]
        for slot in range(self._settings.slots):
            column = [tiles[slot] for tiles in padded]
            nothing = _PIXEL if self._settings.decoded else DOT
            feed(f"image{slot}", [np.ascontiguousarray(row[slot]) if slot < len(row) else nothing for row in images])
            for name in () if self._settings.decoded else ("crop_start", "crop_shape"):
                feed(f"{name}{slot}", np.array([getattr(tile, name) for tile in column], np.int32))
            for name in ("region_start", "region_end", "shape"):
                feed(f"{name}{slot}", np.array([getattr(tile, name) for tile in column], np.float32))
            feed(f"shrinks{slot}", np.array([tile.shrinks for tile in column]))
            feed(f"sampling{slot}", np.array([_sampling(tile) for tile in column], np.float32))
        # Entry 0 of the paste lists is the grey canvas itself.
        anchors = [((0, 0), *(tile.anchor for tile in tiles)) for tiles in padded]
        areas = [
            (view.canvas_hw, *(t.shape if t is not DOT_TILE else (0, 0) for t in tiles))
            for view, tiles in zip(views, padded, strict=True)
        ]
        feed("anchors", np.array(anchors, np.int32))
        feed("areas", np.array(areas, np.int32))
        feed("canvas", np.array([view.canvas_hw for view in views], np.int32))
        if self._settings.finish:
            self._feed_finishes(finishes)
        if self._settings.warp:
            feed("warp", np.stack([_matrix(view) for view in views]))
            feed("output", np.array([view.output_hw for view in views], np.float32))
        if self._settings.paste:
            feed("pastes", np.array([bool(view.pasted) for view in views]))
            feed("mask", [_mask(view) for view in views])

    def _feed_finishes(self, finishes: Sequence[Finish]) -> None:
        feed = self._pipeline.feed_input
        feed("blended", np.array([f.partner is not None for f in finishes]))
        feed("partner", np.array([n if f.partner is None else f.partner for n, f in enumerate(finishes)], np.int32))
        feed("mix_ratio", np.array([f.mix_ratio for f in finishes], np.float32))
        feed("coloured", np.array([f.hsv_gains is not None for f in finishes]))
        gains = np.array([f.hsv_gains or (1.0, 1.0, 1.0) for f in finishes], np.float32)
        for channel, name in enumerate(_GAINS):
            feed(name, np.ascontiguousarray(gains[:, channel]))

    def collect(self) -> Any:
        """The oldest batch under way, a DALI TensorList of (h, w, 3) uint8, or (3, h, w) if finished.

        It belongs to DALI and is valid until `release`.
        """
        return self._pipeline.share_outputs()[0]

    def release(self) -> None:
        """Gives the memory of the last collected batch back to DALI."""
        self._pipeline.release_outputs()

    def close(self) -> None:
        """Ends DALI's threads and frees its memory."""
        self._pipeline._shutdown()


def _matrix(view: ViewRender) -> np.ndarray:
    assert view.warp is not None
    return view.warp


def _sampling(tile: TileRender) -> tuple[tuple[float, float, float], ...]:
    """Map from tile px to crop px."""
    rows, columns = ((tile.region_end[axis] - tile.region_start[axis]) / tile.shape[axis] for axis in range(2))
    return (columns, 0.0, tile.region_start[1]), (0.0, rows, tile.region_start[0]), (0.0, 0.0, 1.0)


def _mask(view: ViewRender) -> np.ndarray:
    """(h, w, 1) uint8: 1 where the canvas shows its mirror image; (1, 1, 1) if nothing is pasted."""
    if not view.pasted:
        return np.zeros((1, 1, 1), np.uint8)
    mask = Image.new("L", view.canvas_hw[::-1])
    for polygon in view.pasted:
        # A corner at x lies on the left edge of pixel x, Pillow's coordinates mean pixel centres.
        ImageDraw.Draw(mask).polygon([(x, y) for x, y in (polygon - 0.5).tolist()], fill=1)
    return np.asarray(mask)[..., None]


def _define(settings: GraphSettings) -> Pipeline:
    on_gpu = settings.device == "cuda"

    @pipeline_def(
        batch_size=settings.batch_size,
        num_threads=settings.threads,
        device_id=0 if on_gpu else None,
        prefetch_queue_depth=QUEUE_DEPTH,
        exec_async=True,
        exec_pipelined=True,
        enable_conditionals=True,
    )
    def canvases() -> Any:
        tiles = [_tile(slot, settings.decoded, on_gpu) for slot in range(settings.slots)]
        canvas_hw = given("canvas", types.INT32, 1)
        canvas = fn.multi_paste(
            _grey(canvas_hw, "gpu" if on_gpu else "cpu"),
            *tiles,
            out_anchors=given("anchors", types.INT32, 2),
            shapes=given("areas", types.INT32, 2),
            output_size=canvas_hw,
        )
        if settings.paste:
            canvas = _pasted(canvas, on_gpu)
        if settings.warp:
            canvas = fn.experimental.warp_perspective(
                canvas,
                matrix=given("warp", types.FLOAT, 2),
                size=given("output", types.FLOAT, 1),
                fill_value=float(BORDER_GREY),
            )
        if settings.finish:
            canvas = _finished(canvas, on_gpu)
        return canvas

    return canvases()


def _pasted(canvas: Any, on_gpu: bool) -> Any:
    mask = given("mask", types.UINT8, 3)
    if on_gpu:
        mask = mask.gpu()
    # A split of the batch as below.
    if given("pastes", types.BOOL, 0):
        rest = fn.cast(mask == 0, dtype=types.UINT8)
        pasted = canvas * rest + fn.flip(canvas, horizontal=1) * mask
    else:
        pasted = canvas
    return pasted


def _scalar(name: str, on_gpu: bool) -> Any:
    number = given(name, types.FLOAT, 0)
    return number.gpu() if on_gpu else number


def _finished(canvas: Any, on_gpu: bool) -> Any:
    ratio, gains = _scalar("mix_ratio", on_gpu), [_scalar(name, on_gpu) for name in _GAINS]
    partner = fn.permute_batch(canvas, indices=given("partner", types.INT32, 0))
    # DALI rewrites such statements (but not conditional expressions) into splits of the batch.
    if given("blended", types.BOOL, 0):  # noqa: SIM108
        picture = finishing.blend(canvas, partner, ratio)
    else:
        picture = canvas
    if given("coloured", types.BOOL, 0):  # noqa: SIM108
        image = finishing.gain_planes(picture, *gains)
    else:
        image = finishing.planes(picture)
    return image


def _grey(canvas_hw: Any, device: str) -> Any:
    dot = types.Constant(np.full((1, 1, 3), BORDER_GREY, np.uint8), device=device)
    return fn.slice(
        fn.reshape(dot, layout="HWC"),
        start=(0, 0),
        shape=canvas_hw,
        axes=(0, 1),
        out_of_bounds_policy="pad",
        fill_values=BORDER_GREY,
    )


def _tile(slot: int, decoded: bool, on_gpu: bool) -> Any:
    if decoded:
        crop = given(f"image{slot}", types.UINT8, 3, layout="HWC")
        if on_gpu:
            crop = crop.gpu()
    else:
        crop_start, crop_shape = (given(f"{name}{slot}", types.INT32, 1) for name in ("crop_start", "crop_shape"))
        content = given(f"image{slot}", types.UINT8, 1)
        crop = decoded_crop(content, crop_start, crop_shape, "cuda" if on_gpu else "cpu")
    shape, start, end = (given(f"{name}{slot}", types.FLOAT, 1) for name in ("shape", "region_start", "region_end"))
    sampling = given(f"sampling{slot}", types.FLOAT, 2)
    # A split of the batch as below: each tile goes through one of the two operators.
    if given(f"shrinks{slot}", types.BOOL, 0):
        tile = fn.resize(crop, roi_start=start, roi_end=end, size=shape)
    else:
        tile = fn.experimental.warp_perspective(crop, matrix=sampling, size=shape, border_mode="replicate")
    return tile

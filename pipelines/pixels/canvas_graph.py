"""The DALI graph that draws canvases from encoded images and rectangles, the same for CPU and GPU."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from nvidia.dali import Pipeline, pipeline_def
from PIL import Image, ImageDraw

from pipelines.augmentation.plans import BatchFinish, BatchPlan
from pipelines.augmentation.rendering import TileRender, ViewRender
from pipelines.pixels import canvas_operators
from pipelines.pixels.backend import Backend
from pipelines.pixels.decoding import DOT, DOT_TILE, QUEUE_DEPTH, QueuedPipeline

_PIXEL = np.zeros((1, 1, 3), np.uint8)
"""Input of a slot without a tile if images are decoded; if they are encoded, it is `DOT`."""


@dataclass(frozen=True)
class GraphSettings:
    """The settings of a DALI graph.

    Attributes:
        slots: maximum number of tiles per view.
        warp: whether all views, or none, have a warp matrix.
        paste: whether views may have pasted polygons; only with `warp`.
        batch_size: maximum number of views per batch.
        threads: number of DALI's CPU threads.
        backend: the device.
        finish: whether blending, colour and layout are part of the graph, which is required on a GPU; otherwise they
            are done on the host.
        decoded: whether inputs are the pixels of crops; otherwise they are encoded images.
        quad: whether pictures may be quarters of batch images; with `finish`, the graph joins them.
    """

    slots: int
    warp: bool
    paste: bool
    batch_size: int
    threads: int
    backend: Backend
    finish: bool
    decoded: bool = False
    quad: bool = False

    @staticmethod
    def without_warp(*, batch_size: int, threads: int, backend: Backend, decoded: bool) -> "GraphSettings":
        """Return the settings for views of one image without warp, as in validation and prediction."""
        return GraphSettings(
            slots=1,
            warp=False,
            paste=False,
            batch_size=batch_size,
            threads=threads,
            backend=backend,
            finish=backend.gpu is not None,
            decoded=decoded,
        )

    @property
    def joins(self) -> bool:
        """Whether outputs are batch images joined from quarters, rather than views."""
        return self.finish and self.quad


@dataclass(frozen=True)
class _Quarters:
    """The source of each quarter of each output.

    Attributes:
        pictures: (outputs, 4) int32 view indices.
        starts: (outputs, 4, 2) int32 row and column in px where the quarter starts in its picture.
        shapes_hw: (outputs, 2) int32 px.
    """

    pictures: np.ndarray
    starts: np.ndarray
    shapes_hw: np.ndarray


class CanvasPipeline(QueuedPipeline):
    """Pipeline that draws batches of views: decode, resample, place on grey, and optionally warp and finish.

    A result has an entry (h, w, 3) uint8, or (3, h, w) if finished, for each view or, with `GraphSettings.joins`, for
    each batch image, followed by small unused ones. It is valid as long as it exists, so `release` can be called at
    once.
    """

    def __init__(self, settings: GraphSettings) -> None:
        self._settings = settings
        super().__init__(define(settings))

    def _feed_blank(self) -> None:
        nothing = BatchPlan((), (2, 2), np.zeros((0, 6), np.float32), np.zeros(0, np.int64))
        self._feed([self._blank()], [()], [BatchFinish()], nothing)

    def submit(self, plan: BatchPlan, images: Sequence[Sequence[np.ndarray]]) -> None:
        """Queue a batch.

        Args:
            plan: the plan of the batch.
            images: for each tile of each view, the encoded image or, with `decoded`, the pixels of its crop.
        """
        views, finishes = plan.views, plan.finishes
        if self._settings.joins:
            # Outputs beyond the batch images use this view, so that they cost nothing.
            views, images, finishes = [*views, self._blank()], [*images, ()], [*finishes, BatchFinish()]
        self._feed(views, images, finishes, plan)
        self._pipeline.schedule_run()

    def _blank(self) -> ViewRender:
        return ViewRender((), (1, 1), np.eye(3, dtype=np.float32) if self._settings.warp else None, (1, 1))

    def _feed(
        self,
        views: Sequence[ViewRender],
        images: Sequence[Sequence[np.ndarray]],
        finishes: Sequence[BatchFinish],
        plan: BatchPlan,
    ) -> None:
        feed = self._pipeline.feed_input
        tiles = [(*view.tiles, *[DOT_TILE] * (self._settings.slots - len(view.tiles))) for view in views]
        for slot in range(self._settings.slots):
            self._feed_slot(slot, [row[slot] for row in tiles], images)
        feed("canvas", np.array([view.canvas_hw for view in views], np.int32))
        if self._settings.finish:
            self._feed_starts(tiles)
            self._feed_finishes(finishes)
        else:
            self._feed_areas(views, tiles)
        if self._settings.joins:
            self._feed_quarters(_quarters(plan, len(views)))
        if self._settings.warp:
            feed("warp", np.stack([_matrix(view) for view in views]))
            feed("output", np.array([view.output_hw for view in views], np.float32))
        if self._settings.paste:
            feed("pastes", np.array([bool(view.pasted) for view in views]))
            feed("mask", [_mask(view) for view in views])

    def _feed_slot(self, slot: int, tiles: Sequence[TileRender], images: Sequence[Sequence[np.ndarray]]) -> None:
        feed = self._pipeline.feed_input
        nothing = _PIXEL if self._settings.decoded else DOT
        feed(f"image{slot}", [np.ascontiguousarray(row[slot]) if slot < len(row) else nothing for row in images])
        for name in () if self._settings.decoded else ("crop_start", "crop_shape"):
            feed(f"{name}{slot}", np.array([getattr(tile, name) for tile in tiles], np.int32))
        for name in ("region_start", "region_end", "shape"):
            feed(f"{name}{slot}", np.array([getattr(tile, name) for tile in tiles], np.float32))
        feed(f"shrinks{slot}", np.array([tile.shrinks for tile in tiles]))
        feed(f"sampling{slot}", np.array([_sampling(tile) for tile in tiles], np.float32))

    def _feed_starts(self, tiles: Sequence[Sequence[TileRender]]) -> None:
        """Feed the canvas origin in px of each tile; beyond the end of the dot for a slot without a tile."""
        for slot in range(self._settings.slots):
            column = [row[slot] for row in tiles]
            starts = [t.shape if t is DOT_TILE else (-t.anchor[0], -t.anchor[1]) for t in column]
            self._pipeline.feed_input(f"canvas_start{slot}", np.array(starts, np.int32))

    def _feed_areas(self, views: Sequence[ViewRender], tiles: Sequence[Sequence[TileRender]]) -> None:
        """Feed the pasted areas; entry 0 is the grey canvas, and a slot without a tile has an empty area."""
        anchors = [((0, 0), *(tile.anchor for tile in row)) for row in tiles]
        areas = [
            (view.canvas_hw, *(t.shape if t is not DOT_TILE else (0, 0) for t in row))
            for view, row in zip(views, tiles, strict=True)
        ]
        self._pipeline.feed_input("anchors", np.array(anchors, np.int32))
        self._pipeline.feed_input("areas", np.array(areas, np.int32))

    def _feed_finishes(self, finishes: Sequence[BatchFinish]) -> None:
        feed = self._pipeline.feed_input
        feed("blended", np.array([f.partner is not None for f in finishes]))
        feed("partner", np.array([n if f.partner is None else f.partner for n, f in enumerate(finishes)], np.int32))
        feed("mix_ratio", np.array([f.mix_ratio for f in finishes], np.float64))
        feed("coloured", np.array([f.hsv_gains is not None for f in finishes]))
        for name, values in canvas_operators.gains_of([f.hsv_gains for f in finishes]).items():
            feed(name, values)

    def _feed_quarters(self, quarters: _Quarters) -> None:
        feed = self._pipeline.feed_input
        for quarter in range(canvas_operators.QUARTERS):
            feed(f"quarter{quarter}", np.ascontiguousarray(quarters.pictures[:, quarter]))
            feed(f"quarter_start{quarter}", np.ascontiguousarray(quarters.starts[:, quarter]))
        feed("quarter_hw", quarters.shapes_hw)


def _quarters(plan: BatchPlan, count: int) -> _Quarters:
    """Return the sources of the quarters of `count` outputs; unused outputs show the last view, of 1 px."""
    half = (plan.shape_hw[0] // 2, plan.shape_hw[1] // 2)
    pictures = np.full((count, canvas_operators.QUARTERS), count - 1, np.int32)
    starts = np.zeros((count, canvas_operators.QUARTERS, 2), np.int32)
    shapes = np.ones((count, 2), np.int32)
    shapes[: len(plan.indices)] = half
    corners = [(down * half[0], across * half[1]) for down in range(2) for across in range(2)]
    for number, picture in enumerate(plan.pictures):
        if picture.views[0].output_hw == plan.shape_hw:
            pictures[picture.row] = number
            starts[picture.row] = corners
        else:
            pictures[picture.row, corners.index(picture.at)] = number
    return _Quarters(pictures, starts, shapes)


def _matrix(view: ViewRender) -> np.ndarray:
    assert view.warp is not None
    return view.warp


def _sampling(tile: TileRender) -> tuple[tuple[float, float, float], ...]:
    """Return the transform from tile px to crop px."""
    rows, columns = ((tile.region_end[axis] - tile.region_start[axis]) / tile.shape[axis] for axis in range(2))
    return (columns, 0.0, tile.region_start[1]), (0.0, rows, tile.region_start[0]), (0.0, 0.0, 1.0)


def _mask(view: ViewRender) -> np.ndarray:
    """Return a mask (h, w, 1) uint8 that is 1 where the mirrored canvas is pasted; (1, 1, 1) if there is none."""
    if not view.pasted:
        return np.zeros((1, 1, 1), np.uint8)
    mask = Image.new("L", view.canvas_hw[::-1])
    for polygon in view.pasted:
        # A corner at x is the left edge of pixel x, while Pillow's coordinates are pixel centres.
        ImageDraw.Draw(mask).polygon([(x, y) for x, y in (polygon - 0.5).tolist()], fill=1)
    return np.asarray(mask)[..., None]


def define(settings: GraphSettings) -> Pipeline:
    """Define DALI's pipeline for the settings, without building it."""
    backend = settings.backend

    @pipeline_def(
        batch_size=settings.batch_size + (1 if settings.joins else 0),
        num_threads=settings.threads,
        device_id=backend.gpu,
        prefetch_queue_depth=QUEUE_DEPTH,
        exec_async=True,
        exec_pipelined=True,
        exec_dynamic=True,  # outputs outlive `release`
        enable_conditionals=True,
    )
    def canvases() -> Any:
        slots = range(settings.slots)
        tiles = [canvas_operators.tile(slot, backend, decoded=settings.decoded) for slot in slots]
        composite = canvas_operators.composite if settings.finish else canvas_operators.composite_on_cpu
        canvas = composite(tiles)
        if settings.paste:
            canvas = canvas_operators.pasted(canvas, backend)
        if settings.warp:
            canvas = canvas_operators.warped(canvas)
        if settings.finish:
            canvas = canvas_operators.finished(canvas, backend)
        if settings.joins:
            canvas = canvas_operators.joined_quarters(canvas)
        return canvas

    return canvases()

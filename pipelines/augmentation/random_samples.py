"""Random draws of augmented samples, and their labels.

A draw is a pure function of (seed, epoch, image index, repeat): the counter of a counter-based generator is set from
these numbers, so draws do not depend on execution order, workers, ranks or resuming.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipelines.augmentation import boxes, geometry
from pipelines.augmentation.augment_config import AugmentConfig
from pipelines.augmentation.copy_paste import Pasted, choose_pasted, mirrored_boxes
from pipelines.augmentation.geometry import RandomTransform
from pipelines.augmentation.letterbox import letterbox, long_side_size
from pipelines.augmentation.mosaic import Size, Tile, mosaic4, mosaic9, place
from pipelines.data.index import ImageIndex

LABEL_CLIP_MARGIN_PX = 1e-3
"""Boxes are clipped to the image less this margin before they are normalised, as in YOLOv5."""

_SAMPLE, _ORDER, _SIZES, _QUAD = range(4)  # purposes: each has its own range of counters


def generator(
    seed: int, epoch: int, number: int = 0, *, purpose: int = _SAMPLE, repeat: int = 0
) -> np.random.Generator:
    """Return a generator that starts at the counter (number, epoch, purpose and repeat) under the key `seed`."""
    # The lowest counter word counts the draws themselves and starts at 0.
    counter = np.array((0, purpose << 32 | repeat, number, epoch), np.uint64)
    return np.random.Generator(np.random.Philox(key=np.array((seed, 0), np.uint64), counter=counter))


@dataclass(frozen=True)
class View:
    """Scaled images on a grey canvas, and the transform from the canvas to the output.

    Attributes:
        sources: image indices, one per placement; later ones are on top.
        placements: position of each scaled image on the canvas.
        canvas_wh, output_wh: sizes in px.
        matrix: (3, 3) float64, canvas px to output px.
        scale: the random scale contained in the matrix.
        clip_labels: whether boxes are cut at the canvas before they are mapped (those of a mosaic are).
        pasted: objects added by copy-paste; labels are numbered in the order of the sources.
    """

    sources: tuple[int, ...]
    placements: tuple[Tile, ...]
    canvas_wh: Size
    output_wh: Size
    matrix: np.ndarray
    scale: float
    clip_labels: bool
    pasted: tuple[Pasted, ...] = ()


@dataclass(frozen=True)
class SamplePlan:
    """All random choices of a training sample.

    Attributes:
        index: index of the sample's image.
        views: one, or two that are blended.
        mix_ratio: weight of the first view; 1 if there is only one.
        flip_up_down, flip_left_right: applied to the output.
        hsv_gains: factors of hue, saturation, value; None leaves colours unchanged.
    """

    index: int
    views: tuple[View, ...]
    mix_ratio: float
    flip_up_down: bool
    flip_left_right: bool
    hsv_gains: tuple[float, float, float] | None

    @property
    def output_wh(self) -> Size:
        """Size of the sample in px."""
        return self.views[0].output_wh


def epoch_order(
    seed: int, epoch: int, count: int, *, image_weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the image order of an epoch, and how often each image has occurred before in the epoch.

    Args:
        seed, epoch: key of the draw.
        count: images in the data set, and in the epoch.
        image_weights: (count,) relative probabilities; if given, images are drawn with replacement.
    Returns:
        order (count,) int64; repeat (count,) int64, all zeros without weights.
    """
    rng = generator(seed, epoch, purpose=_ORDER)
    if image_weights is None:
        return rng.permutation(count), np.zeros(count, np.int64)
    weights = np.asarray(image_weights, np.float64)
    if weights.shape != (count,) or not np.isfinite(weights).all() or weights.min() < 0 or weights.sum() <= 0:
        raise ValueError(f"image weights: must be {count} finite numbers >= 0 with a positive sum")
    order = rng.choice(count, size=count, p=weights / weights.sum())
    by_image = np.argsort(order, kind="stable")
    first = np.searchsorted(order[by_image], order[by_image])
    repeat = np.empty(count, np.int64)
    repeat[by_image] = np.arange(count) - first
    return order, repeat


def multi_scale_sizes(seed: int, epoch: int, batches: int, *, image_px: int, stride: int) -> list[int]:
    """Return the image sizes of the batches of an epoch: multiples of the stride, 0.5 to 1.5 times `image_px`.

    Source: YOLOv5's `--multi-scale`; there a batch is scaled after loading, here it is rendered at its size.
    """
    sizes = multi_scale_range(image_px, stride)
    choices = generator(seed, epoch, purpose=_SIZES).integers(0, len(sizes), size=batches)
    return [sizes[n] for n in choices]


def multi_scale_range(image_px: int, stride: int) -> list[int]:
    """Return the sizes that `multi_scale_sizes` draws from, in increasing order."""
    low, high = int(image_px * 0.5) // stride, int(image_px * 1.5 + stride - 1) // stride
    return [n * stride for n in range(max(1, low), max(1, high) + 1)]


class RandomSamples:
    """Random samples of a data set, with given augmentation settings."""

    def __init__(self, images: ImageIndex, augment: AugmentConfig, *, seed: int) -> None:
        self._images, self._augment, self._seed = images, augment, seed
        self._sizes = images.sizes_wh

    def sample(
        self, epoch: int, index: int, *, output_wh: Size, repeat: int = 0, partners: np.ndarray | None = None
    ) -> SamplePlan:
        """Return the sample of one image in one epoch.

        Args:
            epoch, index, repeat: with the seed, the key of the draw.
            output_wh: size in px; must be square for a mosaic.
            partners: indices of the images to draw the other tiles of a mosaic from; None: all. The image to blend with
                is drawn from all, as in YOLOv5.
        """
        rng, augment = generator(self._seed, epoch, index, repeat=repeat), self._augment
        mosaic = not augment.rect and rng.random() < augment.mosaic
        mix_ratio = 1.0
        if mosaic:
            views = [self._mosaic(rng, index, output_wh[0], partners)]
            if rng.random() < augment.mixup:
                views.append(self._mosaic(rng, self._partners(rng, None, 1)[0], output_wh[0], partners))
                mix_ratio = float(rng.beta(32.0, 32.0))
        else:
            views = [self._single(rng, index, output_wh)]
        strengths = (augment.hsv_h, augment.hsv_s, augment.hsv_v)
        hue, saturation, value = (rng.uniform(-1, 1, 3) * strengths + 1).tolist()
        up_down, left_right = rng.random(2) < (augment.flipud, augment.fliplr)
        return SamplePlan(
            index=index,
            views=tuple(views),
            mix_ratio=mix_ratio,
            flip_up_down=bool(up_down),
            flip_left_right=bool(left_right),
            # Even gains of 1 would change 8-bit colours by rounding, so None is used if no gains are configured.
            hsv_gains=(hue, saturation, value) if any(strengths) else None,
        )

    def enlarged_quad(self, epoch: int, group: int) -> bool:
        """Return whether group number `group` of four samples becomes one enlarged sample instead of a joined one."""
        return bool(generator(self._seed, epoch, group, purpose=_QUAD).random() < 0.5)

    def labels(self, plan: SamplePlan) -> np.ndarray:
        """Return the labels of a sample, (n, 5) float32 [class, cx, cy, w, h], normalised to its output."""
        parts = [self._view_labels(view) for view in plan.views]
        rows = np.concatenate(parts) if len(parts) > 1 else parts[0]
        width, height = plan.output_wh
        rows[:, 1:] = boxes.normalise(rows[:, 1:], width=width, height=height, clip_margin=LABEL_CLIP_MARGIN_PX)
        rows = flip_labels(rows, up_down=plan.flip_up_down, left_right=plan.flip_left_right)
        return rows.astype(np.float32)

    def _partners(self, rng: np.random.Generator, pool: np.ndarray | None, count: int) -> list[int]:
        chosen = rng.integers(0, len(self._sizes) if pool is None else len(pool), count)
        return [int(n) for n in (chosen if pool is None else pool[chosen])]

    def _mosaic(self, rng: np.random.Generator, index: int, image_px: int, pool: np.ndarray | None) -> View:
        nine = self._augment.mosaic9 > 0 and rng.random() < self._augment.mosaic9
        sources = [index, *self._partners(rng, pool, 8 if nine else 3)]
        rng.shuffle(sources)
        sizes = [long_side_size(self._sizes[n], image_px) for n in sources]
        if nine:
            cut_x, cut_y = (int(v) for v in rng.uniform(0, image_px, 2))
            placed = mosaic9(sizes, cut_xy=(cut_x, cut_y), image_px=image_px)
        else:
            x, y = (int(v) for v in rng.uniform(image_px / 2, 1.5 * image_px, 2))
            placed = mosaic4(sizes, centre_xy=(x, y), image_px=image_px)
        canvas = (2 * image_px, 2 * image_px)
        view = self._view(rng, sources, placed, canvas, (image_px, image_px), clip_labels=True)
        return self._with_pasted(rng, view)

    def _single(self, rng: np.random.Generator, index: int, output_wh: Size) -> View:
        placed = letterboxed(self._sizes[index], output_wh, image_px=max(output_wh)).placement
        return self._view(rng, [index], [placed], output_wh, output_wh, clip_labels=False)

    def _view(
        self,
        rng: np.random.Generator,
        sources: Sequence[int],
        placed: Sequence[Tile],
        canvas_wh: Size,
        output_wh: Size,
        *,
        clip_labels: bool,
    ) -> View:
        augment = self._augment
        bend_x, bend_y, turn, grow, shear_x, shear_y, shift_x, shift_y = rng.uniform(-1, 1, 8).tolist()
        transform = RandomTransform(
            perspective_x=bend_x * augment.perspective,
            perspective_y=bend_y * augment.perspective,
            angle_deg=turn * augment.degrees,
            scale=1 + grow * augment.scale,
            shear_x_deg=shear_x * augment.shear,
            shear_y_deg=shear_y * augment.shear,
            translate_x_px=(0.5 + shift_x * augment.translate) * output_wh[0],
            translate_y_px=(0.5 + shift_y * augment.translate) * output_wh[1],
        )
        matrix = geometry.view_matrix(transform, canvas_wh=canvas_wh)
        return View(tuple(sources), tuple(placed), canvas_wh, output_wh, matrix, transform.scale, clip_labels)

    def _with_pasted(self, rng: np.random.Generator, view: View) -> View:
        """Apply copy-paste to the view, if it is enabled."""
        if not self._augment.copy_paste:
            return view
        pasted = choose_pasted(
            rng,
            self._canvas_labels(view),
            self._canvas_polygons(view),
            share=self._augment.copy_paste,
            width=view.canvas_wh[0],
        )
        return replace(view, pasted=pasted)

    def _view_labels(self, view: View) -> np.ndarray:
        rows, polygons = self._canvas_labels(view), self._canvas_polygons(view)
        if view.pasted:
            copies = rows[[pasted.label for pasted in view.pasted]]
            copies[:, 1:] = mirrored_boxes(copies[:, 1:], width=view.canvas_wh[0])
            rows = np.concatenate((rows, copies))
            polygons.extend(pasted.polygon for pasted in view.pasted)
        after, keep = geometry.map_labels(
            view.matrix, rows[:, 1:], polygons, scale=view.scale, output_wh=view.output_wh
        )
        return np.concatenate((rows[keep, :1], after[keep]), axis=1)

    def _canvas_labels(self, view: View) -> np.ndarray:
        return canvas_labels(
            view.placements,
            [self._images.labels[n] for n in view.sources],
            canvas_wh=view.canvas_wh if view.clip_labels else None,
        )

    def _canvas_polygons(self, view: View) -> list[np.ndarray]:
        polygons = []
        for placed, source in zip(view.placements, view.sources, strict=True):
            for polygon in self._images.segments[source]:
                points = polygon * np.array(placed.size_wh, np.float64) + placed.offset_xy
                polygons.append(np.clip(points, 0, view.canvas_wh) if view.clip_labels else points)
        return polygons


@dataclass(frozen=True)
class LetterboxedImage:
    """An image in a letterbox, with the parameters to map back to the file's pixels.

    Attributes:
        placement: position on a canvas of the size of the letterbox.
        ratio_hw: px in the letterbox per px of the file.
        pad_wh: border on the left and at the top, before rounding.
    """

    placement: Tile
    ratio_hw: tuple[float, float]
    pad_wh: tuple[float, float]


def letterboxed(image_wh: Size, output_wh: Size, *, image_px: int, enlarge: bool = True) -> LetterboxedImage:
    """Scale an image so that its long side is `image_px`, and centre it in the output with a grey border.

    Args:
        image_wh: size of the file in px.
        output_wh: size of the letterbox in px.
        image_px: see above; the image shrinks further if it does not fit the output.
        enlarge: whether to enlarge the image further if the output is larger.
    """
    width, height = long_side_size(image_wh, image_px)
    fit = letterbox((height, width), (output_wh[1], output_wh[0]), enlarge=enlarge)
    left, top, right, bottom = fit.content_xyxy
    return LetterboxedImage(
        placement=place((right - left, bottom - top), (left, top), output_wh),
        ratio_hw=((bottom - top) / image_wh[1], (right - left) / image_wh[0]),
        pad_wh=fit.pad_wh,
    )


def canvas_labels(placements: Sequence[Tile], labels: Sequence[np.ndarray], *, canvas_wh: Size | None) -> np.ndarray:
    """Return the labels of placed images on their canvas.

    Args:
        placements: positions of the scaled images.
        labels: per image (k, 5) [class, cx, cy, w, h], normalised to the image.
        canvas_wh: boxes are clipped to this size; None: not clipped.
    Returns:
        (n, 5) float64 [class, x1, y1, x2, y2] in px of the canvas, images in order.
    """
    parts = []
    for placed, rows in zip(placements, labels, strict=True):
        width, height = placed.size_wh
        corners = boxes.denormalise(
            rows[:, 1:].astype(np.float64), width=width, height=height, offset_xy=placed.offset_xy
        )
        parts.append(np.concatenate((rows[:, :1], corners), axis=1))
    joined = np.concatenate(parts) if parts else np.zeros((0, 5))
    if canvas_wh is not None:
        joined[:, 1:] = boxes.clip(joined[:, 1:], width=canvas_wh[0], height=canvas_wh[1])
    return joined


def flip_labels(labels: np.ndarray, *, up_down: bool = False, left_right: bool = False) -> np.ndarray:
    """Return (n, 5) [class, cx, cy, w, h] normalised, mirrored; the input is not changed."""
    flipped = labels.copy()
    if up_down:
        flipped[:, 2] = 1 - flipped[:, 2]
    if left_right:
        flipped[:, 1] = 1 - flipped[:, 1]
    return flipped


def doubled(plan: SamplePlan) -> SamplePlan:
    """Return the same sample at twice its size."""
    zoom = np.diag((2.0, 2.0, 1.0))
    views = tuple(
        replace(
            view,
            matrix=zoom @ view.matrix,
            scale=view.scale * 2,
            output_wh=(view.output_wh[0] * 2, view.output_wh[1] * 2),
        )
        for view in plan.views
    )
    return replace(plan, views=views)

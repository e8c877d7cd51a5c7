"""Plans of batches: rectangles, blending, colours and labels, without pixels."""

from dataclasses import dataclass

import numpy as np

from pipelines.augmentation.rendering import ViewRender


@dataclass(frozen=True)
class BatchFinish:
    """The final operations on a view after drawing.

    Attributes:
        partner: index of the view of the same batch to blend it with, or None.
        mix_ratio: weight of this view in the blend.
        hsv_gains: factors of hue, saturation, value; None leaves colours unchanged.
    """

    partner: int | None = None
    mix_ratio: float = 1.0
    hsv_gains: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class FileGeometry:
    """The mapping from an image file to its image in a validation batch.

    Attributes:
        original_hw: height and width of the file in px, after EXIF rotation.
        ratio_hw: scale from the file to the batch.
        pad_wh: grey border on the left and at the top of the image, before rounding.
    """

    original_hw: tuple[int, int]
    ratio_hw: tuple[float, float]
    pad_wh: tuple[float, float]


@dataclass(frozen=True)
class Picture:
    """A picture to draw and its position in a batch; an image of a quad batch has four of them.

    Attributes:
        views: one view, or two to blend.
        mix_ratio: weight of the first view.
        hsv_gains: as in `BatchFinish`.
        row: index of the batch image.
        at: row and column in px of the picture's origin in that image.
    """

    views: tuple[ViewRender, ...]
    mix_ratio: float
    hsv_gains: tuple[float, float, float] | None
    row: int
    at: tuple[int, int] = (0, 0)

    def window(self, images: np.ndarray) -> np.ndarray:
        """Return this plan's part (3, h, w) of the images (B, 3, H, W) of a batch, as a view."""
        (top, left), (height, width) = self.at, self.views[0].output_hw
        return images[self.row, :, top : top + height, left : left + width]


@dataclass(frozen=True)
class BatchPlan:
    """The plan of a batch.

    Attributes:
        pictures: the pictures to draw.
        shape_hw: height and width of the batch images in px.
        labels, indices, geometry: see `pipelines.batches.Batch`.
    """

    pictures: tuple[Picture, ...]
    shape_hw: tuple[int, int]
    labels: np.ndarray
    indices: np.ndarray
    geometry: tuple[FileGeometry, ...] = ()

    @property
    def views(self) -> list[ViewRender]:
        """The first view of every picture, followed by the second views of those that have two."""
        return [p.views[0] for p in self.pictures] + [p.views[1] for p in self.pictures if len(p.views) == 2]

    @property
    def finishes(self) -> list[BatchFinish]:
        """The final operations on each of the views."""
        seconds = iter(range(len(self.pictures), 2 * len(self.pictures)))
        first_views = [
            BatchFinish(next(seconds) if len(p.views) == 2 else None, p.mix_ratio, p.hsv_gains) for p in self.pictures
        ]
        return first_views + [BatchFinish() for p in self.pictures if len(p.views) == 2]

    @property
    def sources(self) -> list[int]:
        """Indices of all images needed, without duplicates."""
        return list(dict.fromkeys(tile.source for view in self.views for tile in view.tiles))

    @property
    def images_shape(self) -> tuple[int, int, int, int]:
        """(B, 3, H, W) of the images of the batch."""
        return (len(self.indices), 3, *self.shape_hw)

    def empty_images(self) -> np.ndarray:
        """Return an uninitialised array (B, 3, H, W) uint8."""
        return np.empty(self.images_shape, np.uint8)

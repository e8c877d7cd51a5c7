"""Augmentation settings, named as in YOLOv5's hyper-parameter files."""

from collections.abc import Mapping
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class AugmentConfig:
    """Strengths and probabilities of the training augmentation; the defaults are YOLOv5's `hyp.scratch-low`.

    Attributes:
        hsv_h, hsv_s, hsv_v: colour gains are drawn from 1 - value ... 1 + value.
        degrees, shear: largest angle in either direction.
        translate: largest shift, as a fraction of the output size.
        scale: size factors are drawn from 1 - value ... 1 + value.
        perspective: largest entry of the perspective row, per px.
        flipud, fliplr: probability of a flip up-down, left-right.
        mosaic: probability that a sample is a mosaic of four images rather than a single one.
        mosaic9: fraction of the mosaics with nine images.
        mixup: probability that a mosaic is blended with another.
        copy_paste: fraction of a mosaic's polygons that are pasted again, mirrored.
        rect: rectangular batches of images with similar aspect ratios, without mosaics.
        quad: join four samples into one of twice the size or, half of the time, enlarge one of them.
    """

    hsv_h: float = 0.015
    hsv_s: float = 0.7
    hsv_v: float = 0.4
    degrees: float = 0.0
    translate: float = 0.1
    scale: float = 0.5
    shear: float = 0.0
    perspective: float = 0.0
    flipud: float = 0.0
    fliplr: float = 0.5
    mosaic: float = 1.0
    mosaic9: float = 0.0
    mixup: float = 0.0
    copy_paste: float = 0.0
    rect: bool = False
    quad: bool = False

    def __post_init__(self) -> None:
        for part in fields(self):
            value, limit = getattr(self, part.name), upper_bound(part.name)
            if not 0 <= value <= limit:
                raise ValueError(f"augmentation {part.name}={value}: must be between 0 and {limit:g}")
        if self.rect and self.quad:
            raise ValueError("rect cannot be used with quad, which joins square images; remove one of them")

    @property
    def axis_aligned(self) -> bool:
        """Whether draws only scale and translate."""
        return self.degrees == 0 and self.shear == 0 and self.perspective == 0

    @property
    def tiles(self) -> int:
        """Maximum number of images in a view."""
        if self.rect or self.mosaic == 0:
            return 1
        return 9 if self.mosaic9 > 0 else 4


def upper_bound(name: str) -> float:
    """Return the upper bound of an augmentation setting; the lower bound is 0."""
    return _LARGEST.get(name, 1.0)


_LARGEST: Mapping[str, float] = {"degrees": 180.0, "translate": 0.9, "scale": 0.95, "shear": 80.0, "perspective": 0.001}
"""Upper bounds of settings for which it is not 1."""

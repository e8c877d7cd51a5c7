"""What augmentation a training run asks for, under the names of YOLOv5's hyper-parameter files."""

from collections.abc import Mapping
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class AugmentConfig:
    """Strengths and probabilities of training-time augmentation; the defaults are YOLOv5's `hyp.scratch-low`.

    Attributes:
        hsv_h, hsv_s, hsv_v: colour gains are drawn from 1 - value ... 1 + value.
        degrees, shear: largest angle either way.
        translate: largest shift, as a share of the output side.
        scale: size factors are drawn from 1 - value ... 1 + value.
        perspective: largest entry of the perspective row, per px.
        flipud, fliplr: probability of a flip up-down, left-right.
        mosaic: probability that a sample is a mosaic of four images rather than a single one.
        mosaic9: share of the mosaics that have nine images.
        mixup: probability that a mosaic is blended with another one.
        copy_paste: share of a mosaic's polygons that are pasted again, mirrored.
        rect: batches of like shapes with as little border as possible; there are no mosaics then.
        quad: four samples become one of twice the size, half of the time one of them enlarged.
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
            value, limit = getattr(self, part.name), largest(part.name)
            if not 0 <= value <= limit:
                raise ValueError(f"augmentation {part.name}={value}: must lie in 0 ... {limit:g}")
        if self.rect and self.quad:
            raise ValueError("rect and quad exclude each other: quad joins images of one square size; drop one of them")

    @property
    def axis_aligned(self) -> bool:
        """True when no draw can turn, shear or bend, so that a tile only scales and shifts."""
        return self.degrees == 0 and self.shear == 0 and self.perspective == 0

    @property
    def tiles(self) -> int:
        """The most images that one view of a sample can show."""
        if self.rect or self.mosaic == 0:
            return 1
        return 9 if self.mosaic9 > 0 else 4


def largest(name: str) -> float:
    """Return the largest value that an augmentation may have; the smallest is 0."""
    return _LARGEST.get(name, 1.0)


_LARGEST: Mapping[str, float] = {
    "degrees": 180.0,
    "translate": 0.9,
    "scale": 0.95,
    "shear": 80.0,
    "perspective": 0.001,
}
"""Where it is not 1."""

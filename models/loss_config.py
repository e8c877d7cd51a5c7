"""Settings of the loss; imports nothing heavy, so that they can be validated early."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class LossConfig:
    """Settings of the loss, as in a YOLOv5 `hyp` file (gains for 3 levels, 80 classes, 640 px until `scaled`).

    Attributes:
        box, objectness, classes: weights of the three parts.
        cls_pw, obj_pw: weights of positive elements in the class and objectness cross-entropies.
        anchor_t: side ratio between a label and a matching anchor must be below this.
        fl_gamma: exponent of the focal loss; 0 is plain cross-entropy.
        label_smoothing: amount of label smoothing of the class targets.
        gr: objectness target is `1 - gr + gr * CIoU`.
        autobalance: adapt the objectness weights of the levels to their running losses.
        sort_obj_iou: of several labels in one cell the one with the best CIoU sets the objectness target; otherwise the
            last one in build order (neighbour, anchor, label).
    """

    box: float = 0.05
    objectness: float = 1.0
    classes: float = 0.5
    cls_pw: float = 1.0
    obj_pw: float = 1.0
    anchor_t: float = 4.0
    fl_gamma: float = 0.0
    label_smoothing: float = 0.0
    gr: float = 1.0
    autobalance: bool = False
    sort_obj_iou: bool = False

    def __post_init__(self) -> None:
        for name in ("box", "objectness", "classes", "fl_gamma"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)}: must be >= 0; use 0 to switch it off")
        for name in ("cls_pw", "obj_pw"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: must be above 0; 1 is neutral")
        if not self.anchor_t > 1:
            raise ValueError(
                f"anchor_t={self.anchor_t}: must be above 1, otherwise no label fits any anchor; YOLOv5 uses 4"
            )
        for name in ("label_smoothing", "gr"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be between 0 and 1")

    def scaled(self, *, heads: int, classes: int, image_px: int) -> "LossConfig":
        """Return the config with gains scaled to the number of levels and classes and the image size."""
        per_head = 3 / heads
        return replace(
            self,
            box=self.box * per_head,
            classes=self.classes * per_head * classes / 80,
            objectness=self.objectness * per_head * (image_px / 640) ** 2,
        )

"""What a training run asks of the loss; nothing heavy is imported here, so that settings can be checked early."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class LossConfig:
    """Settings of the loss, as in a YOLOv5 `hyp` file (gains for 3 levels, 80 classes, 640 px until `scaled`).

    Attributes:
        box, objectness, classes: weights of the three parts.
        cls_pw, obj_pw: weights of positive elements in the class and objectness cross-entropies.
        anchor_t: largest ratio of sides between a label and an anchor that answers for it, not included.
        fl_gamma: exponent of the focal loss; 0 is plain cross-entropy.
        label_smoothing: share taken from the positive class target.
        gr: objectness target is `1 - gr + gr * IoU`.
        autobalance: adapt the level weights of the objectness to its running loss.
        sort_obj_iou: of several labels in one cell the one with the best IoU sets the objectness target; otherwise the
            last one in build order.
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
            raise ValueError(f"anchor_t={self.anchor_t}: must be above 1, or no label fits any anchor; YOLOv5 uses 4")
        for name in ("label_smoothing", "gr"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: must lie between 0 and 1")

    def scaled(self, *, heads: int, classes: int, image_px: int) -> "LossConfig":
        """Return the gains for this number of levels and classes and this image size; the other settings stay."""
        per_head = 3 / heads
        return replace(
            self,
            box=self.box * per_head,
            classes=self.classes * per_head * classes / 80,
            objectness=self.objectness * per_head * (image_px / 640) ** 2,
        )

"""The result of a validation: metrics, losses and speed, and their table for the terminal."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from graph_train.metrics.average_precision import ClassMetrics, fitness
from graph_train.metrics.confusion import ConfusionMatrix

Array = npt.NDArray[Any]

TABLE_HEADER = f"{'Class':>22}{'Images':>11}{'Instances':>11}{'P':>11}{'R':>11}{'mAP50':>11}{'mAP50-95':>11}"


@dataclass(frozen=True)
class Speed:
    """Milliseconds per image: waiting for the pipeline, inference, NMS."""

    load: float
    inference: float
    suppression: float


@dataclass(frozen=True)
class ValidationResult:
    """Results of a validation.

    Attributes:
        labels_per_class, images_per_class: (nc,).
        loss: (3,) box, objectness and class loss, averaged over the batches, or None.
    """

    class_names: tuple[str, ...]
    images: int
    labels_per_class: Array
    images_per_class: Array
    classes: ClassMetrics
    confusion: ConfusionMatrix
    loss: Array | None
    speed: Speed
    batch_shape: tuple[int, ...]

    @property
    def means(self) -> tuple[float, float, float, float]:
        """Precision, recall, mAP50, mAP50-95."""
        return self.classes.means()

    @property
    def precision(self) -> float:
        """Mean over the classes with labels, at the confidence with the highest mean F1."""
        return self.means[0]

    @property
    def recall(self) -> float:
        """Mean over the classes with labels, at the confidence with the highest mean F1."""
        return self.means[1]

    @property
    def map50(self) -> float:
        """Mean average precision at IoU 0.5."""
        return self.means[2]

    @property
    def map50_95(self) -> float:
        """Mean average precision over IoU 0.5 to 0.95."""
        return self.means[3]

    @property
    def fitness(self) -> float:
        """The criterion for the best weights."""
        return float(fitness(np.asarray(self.means)))

    @property
    def maps(self) -> Array:
        """(nc,) mAP50-95 of each class; the mean for a class without labels."""
        return self.classes.maps(len(self.class_names))

    def table(self, *, per_class: bool) -> str:
        """Return the table without its header: all classes together, then each class with labels."""
        rows = [_table_row("all", self.images, int(self.labels_per_class.sum()), self.means)]
        if per_class:
            c = self.classes
            for row, category in enumerate(c.classes):
                values = (c.precision[row], c.recall[row], c.ap50[row], c.ap50_95[row])
                images, labels = int(self.images_per_class[category]), int(self.labels_per_class[category])
                rows.append(_table_row(self.class_names[category], images, labels, values))
        return "\n".join(rows)

    def speed_line(self) -> str:
        """Return the speed as a line for the terminal."""
        s = self.speed
        return (
            f"Speed: {s.load:.1f}ms loading, {s.inference:.1f}ms inference, {s.suppression:.1f}ms NMS per image "
            f"at shape {self.batch_shape}"
        )


def _table_row(name: str, images: int, labels: int, values: Sequence[float]) -> str:
    return f"{name:>22}{images:>11}{labels:>11}" + "".join(f"{value:>11.3g}" for value in values)

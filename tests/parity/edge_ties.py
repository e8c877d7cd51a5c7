"""Near ties of predicted and labelled box edges, and labels moved so that a tie is decided the other way.

The CIoU gradient depends on which of two edges is the larger. Where a predicted edge and its label's nearly coincide,
it jumps (by up to 28 % of the norm of the whole gradient in a recorded run) while the loss does not, and rounding
decides. How far apart are the edges that two correct float32 runs predict? Weights perturbed by 1e-7 (about one
rounding) moved them by up to 1e-4 cells within 7 steps of SGD, and by 1e-4 within 3, 5e-4 within 7 and 9e-3 within 11
steps of AdamW, which amplifies rounding noise in small gradients to whole steps; after a tie that was decided the other
way, by more.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graph_train.engine.state import TrainingState
from kernels.runtime import flow
from tests.parity.harness import Mode, Report
from tests.parity.train_replay import PIXEL_SCALE, Case, LabelMove, replay

LIMIT_CELLS = {"SGD": 1e-3, "AdamW": 1e-2, "Adam": 1e-2}
"""Largest distance of two edges that rounding may swap, by optimizer."""
_BEYOND_CELLS = 1e-5
"""Distance of the moved edge from the predicted one: a few roundings of a normalised label."""
_SIDES = (("left", "right"), ("top", "bottom"))

KNOWN_TIES = {"train_adamw": ((7, 1, "bottom"), (10, 3, "bottom")), "train_sgd_acc1": ((5, 1, "bottom"),)}
"""Iteration, image and side of the ties that decide recorded runs; test_train.py shows what they do."""

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class EdgeTie:
    """A predicted edge next to an edge of its label."""

    distance: float
    """Gap between the two edges in cells."""
    move: LabelMove
    """The label with its edge just on the other side of the predicted one."""
    side: str

    def __str__(self) -> str:
        """Return the report's text."""
        return (
            _described(self.move.iteration, self.move.image, self.side)
            + f"label {self.move.slot} and a predicted edge are {self.distance:.1e} cells apart; "
            "taken the other way round"
        )


def unexplained(case: str, report: Report) -> list[str]:
    """Return the forgiven differences of a recorded run that are not known ties."""
    known = tuple(_described(*tie) for tie in KNOWN_TIES.get(case, ()))
    return [reason for reason in report.forgiven if not reason.startswith(known or ("none",))]


def _described(iteration: int, image: int, side: str) -> str:
    return f"iteration {iteration}, image {image}: the {side} edge of "


def near_ties(case: Case, mode: Mode, first: int, last: int, moves: tuple[LabelMove, ...]) -> list[EdgeTie]:
    """Return the ties in batches `first` to `last` of a run, nearest first, one per label and side."""
    limit = LIMIT_CELLS[case.settings["opt_name"]]
    found: list[EdgeTie] = []

    def look(iteration: int, state: TrainingState, labels: npt.NDArray[np.float32]) -> None:
        if first <= iteration <= last:
            found.extend(_ties(case, state, labels, iteration, limit))

    replay(case, mode, iterations=last + 1, moves=moves, observe=look, audited=False)
    return sorted(found, key=lambda tie: tie.distance)


def matched_boxes(
    case: Case, state: TrainingState, labels: npt.NDArray[np.float32], iteration: int
) -> Iterator[tuple[int, int, Values, Values, Values]]:
    """Yield image, label slot, predicted and labelled x, y, w, h in cells, and grid size of each match."""
    weights = {name[6:]: value for name, value in state.arrays().items() if name.startswith("model/")}
    network = case.network(weights)  # a copy: a forward pass in training mode moves the running statistics
    network.train()
    with flow.no_grad():
        maps = network(flow.tensor(case.images(iteration)).to(flow.float32) / PIXEL_SCALE)
        assignment = case.criterion(network).details(maps, flow.tensor(labels)).assignment
    cells, boxes = assignment.cell.numpy(), assignment.boxes_cells.numpy().astype(np.float64)
    for level, raw in enumerate(values.numpy().astype(np.float64) for values in maps):
        rows, columns = raw.shape[2:4]
        for image, entry in np.argwhere(cells[:, level] >= 0):
            cell = cells[image, level, entry]
            score = 2 / (1 + np.exp(-raw[image].reshape(-1, raw.shape[-1])[cell, :4]))
            sides = score[2:] ** 2 * network.anchors_cells[level][cell // (rows * columns)]
            predicted = np.concatenate([score[:2] - 0.5, sides])
            yield image, entry % labels.shape[1], predicted, boxes[image, level, entry], np.array([columns, rows])


def _ties(
    case: Case, state: TrainingState, labels: npt.NDArray[np.float32], iteration: int, limit: float
) -> Iterator[EdgeTie]:
    nearest: dict[tuple[int, int, str], EdgeTie] = {}
    for image, slot, predicted, labelled, size in matched_boxes(case, state, labels, iteration):
        for axis, sides in enumerate(_SIDES):
            edges = [box[axis] + np.array([-0.5, 0.5]) * box[axis + 2] for box in (predicted, labelled)]
            for which, side in enumerate(sides):
                # The opposite edge too: boxes that only just overlap.
                gap = min(edges[0] - edges[1][which], key=abs)
                if abs(gap) < limit:
                    shift = (gap + np.copysign(_BEYOND_CELLS, gap)) / size[axis]
                    moved = _moved(labels[image, slot, 1:5], axis, which, shift)
                    tie = EdgeTie(abs(gap), LabelMove(iteration, int(image), int(slot), moved), side)
                    known = nearest.get((image, slot, side))
                    if known is None or tie.distance < known.distance:
                        nearest[image, slot, side] = tie
    yield from nearest.values()


def _moved(box: npt.NDArray[np.float32], axis: int, which: int, shift: float) -> tuple[float, float, float, float]:
    """Return a normalised box with its lower or upper edge along an axis moved."""
    x, y, width, height = box.astype(np.float64).tolist()
    grown = shift if which else -shift
    if axis == 0:
        return x + shift / 2, y, width + grown, height
    return x, y + shift / 2, width, height + grown

"""The full set of recorded vectors: all files of each kind, except those that other tests compare one by one."""

from pathlib import Path

import pytest

from tests.parity.__main__ import subjects
from tests.parity.harness import Mode, Subject

COMPARED_ONE_BY_ONE = ("loss", "train")
CASES = [
    pytest.param(subject, mode, id=f"{name}-{mode}")
    for name, subject in subjects().items()
    if name not in COMPARED_ONE_BY_ONE
    for mode in subject.modes
]


@pytest.mark.parametrize(("subject", "mode"), CASES)
def test_recorded_vectors(goldens: Path, subject: Subject, mode: Mode) -> None:
    subject.assert_agreement(goldens, mode)


def test_every_kind_is_compared() -> None:
    kinds = set(
        "augment autoanchor bbox_iou checkpoint loss_elements metrics model_counts network nms schedules".split()
    )
    assert subjects().keys() == kinds | set(COMPARED_ONE_BY_ONE)

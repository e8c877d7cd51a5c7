"""The header of a checkpoint: values are validated even if the checksum is valid."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import pytest

from graph_train.engine.state import Counters
from graph_train.runs.cursor import Cursor
from graph_train.runs.results_csv import EpochRow
from graph_train.runs.saved_header import read_header
from graph_train.settings.hyperparameters import Hyperparameters

ROWS = tuple(
    EpochRow(epoch, (0.1, float("nan"), 1e-9), (0.0, 0.0, 0.1, 0.05), (1.0, 2.0, 3.0), (0.1, 1e-5, 0.0)).line()
    for epoch in range(2)
)


def header(part: str = "", **changed: Any) -> dict[str, Any]:
    """Return the header of a valid checkpoint in epoch 3 of 5, with some entries of a part changed."""
    values: dict[str, Any] = {
        "options": {"epochs": 5},
        "hyp": Hyperparameters().as_dict(),
        "config": {"nc": 2},
        "anchors_px": [[[10, 13], [16, 30]]],
        "cursor": asdict(Cursor(epoch=2, next_batch=7, losses=6, maps=[0.1, 0.0], best_fitness=0.4)),
        "counters": asdict(Counters(updates=9, skipped=2, loss_scale=65536.0, good_updates=4)),
        "early_stopping": {"best_fitness": 0.4, "best_epoch": 1},
        "results": list(ROWS),
        "data": "abc",
        "class_names": ["cat", "dog"],
    }
    return {**values, part: {**values[part], **changed}} if part else {**values, **changed}


def test_valid_header_parses() -> None:
    found = read_header(header())
    assert (found.cursor.epoch, found.cursor.next_batch, found.counters.loss_scale) == (2, 7, 65536.0)
    assert found.results == ROWS and found.class_names == ("cat", "dog")
    fresh = read_header(
        header(
            cursor=asdict(Cursor()),
            counters=asdict(Counters()),
            results=[],
            early_stopping={"best_fitness": 0.0, "best_epoch": 0},
        )
    )
    assert fresh.cursor == Cursor()


CASES: tuple[tuple[str, Mapping[str, Any], str], ...] = (
    ("cursor", {"epoch": 2**52}, f"epoch {2**52} of a run of 5"),
    ("cursor", {"epoch": 6}, "epoch 6 of a run of 5"),
    ("cursor", {"epoch": 3}, "results of 2 epochs, but 3 are done"),
    ("cursor", {"losses": 8}, "losses of 8 batches, but only 7 are done"),
    ("cursor", {"best_fitness": 1e9}, "best fitness out of range"),
    ("cursor", {"maps": [0.5, 7.0]}, "mAP or best fitness"),
    ("cursor", {"maps": [0.1] * 77}, "77 mAP values for 2 classes"),
    ("counters", {"loss_scale": 0.0}, "loss_scale=0.0"),
    ("counters", {"loss_scale": -1.0}, "loss_scale=-1.0"),
    ("counters", {"loss_scale": 3.0}, "loss_scale=3.0"),
    ("counters", {"loss_scale": 2.0**200}, "loss_scale="),
    ("counters", {"pending_decay": -0.5}, "pending_decay=-0.5"),
    ("counters", {"good_updates": 10}, "inconsistent counters"),
    ("counters", {"skipped_in_row": 3}, "inconsistent counters"),
    # JSON has integers of any size.
    ("counters", {"loss_scale": 10**400}, "loss_scale=1000"),
    ("cursor", {"loss_sums": [0.0, 10**400, 0.0]}, "loss_sums="),
    ("hyp", {"lr0": 10**400}, "lr0=10000000000000000000 is not finite"),
    ("hyp", {"lr1": 0.1}, "unknown hyper-parameter 'lr1'"),
    ("early_stopping", {"best_epoch": 3}, "best fitness"),
    ("early_stopping", {"best_fitness": 2.0}, "best fitness"),
    ("", {"results": [ROWS[0], ROWS[1].replace("nan", "a=b")]}, "results of epoch 1"),
    ("", {"results": [ROWS[0], "=HYPERLINK(1)" + ",1" * 13]}, "results of epoch 1"),
    ("", {"results": [ROWS[1], ROWS[0]]}, "results of epoch 0"),
    ("", {"results": [ROWS[0], ROWS[1] + ",1"]}, "results of epoch 1"),
    ("", {"results": ROWS[0]}, "not rows of results.csv"),
    ("", {"class_names": []}, "no class names"),
    ("", {"class_names": "ab"}, "no class names"),
)


@pytest.mark.parametrize(("part", "changed", "message"), CASES)
def test_invalid_header_raises(part: str, changed: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_header(header(part, **changed))


@pytest.mark.parametrize(
    ("part", "name"), [("hyp", "lr0"), ("cursor", "next_batch"), ("counters", "loss_scale"), ("counters", "updates")]
)
def test_missing_entry_has_no_default(part: str, name: str) -> None:
    """A default would continue another training than the saved one."""
    values = header()
    del values[part][name]
    with pytest.raises(ValueError, match=f"invalid header: no .*'{name}'"):
        read_header(values)

"""Ranks with different GPUs agree on one activation type, or are rejected."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from graph_train.engine.precision import ComputeDevice
from graph_train.engine.rank_devices import agree_on_type, common_type
from kernels.framework.activation_type import ActivationType

FLOAT32, BFLOAT16, FLOAT16 = ActivationType
AMPERE, TURING = ComputeDevice("GPU 0: A100", 80, plugin=True), ComputeDevice("GPU 1: T4", 75, plugin=True)
CPU = ComputeDevice("CPU", None, plugin=True)
WITHOUT_PLUGIN = ComputeDevice("GPU 0: V100", 70, plugin=False, reason="no compiler")


@dataclass
class _Exchange:
    """In place of `Exchange`: the texts of other ranks are known."""

    others: Sequence[str] = ()
    own: str = ""
    single_rank: bool = False
    is_main: bool = True

    def all_gather_texts(self, text: str) -> list[str]:
        self.own = text
        return [text, *self.others]


def agreed(own: ComputeDevice, *others: ComputeDevice, amp: bool | None = None) -> ActivationType:
    """Return the type that rank 0 with the device `own` uses."""

    def result(machine: ComputeDevice, exchange: Any) -> ActivationType:
        return agree_on_type(machine, machine.activation_type(amp), exchange)

    texts = []
    for machine in others:
        alone = _Exchange()
        result(machine, alone)
        texts.append(alone.own)
    return result(own, _Exchange(texts))


@pytest.mark.parametrize(
    ("kinds", "common"),
    [
        ([BFLOAT16, BFLOAT16], BFLOAT16),
        ([BFLOAT16, FLOAT16], FLOAT16),
        ([FLOAT16, FLOAT32], FLOAT32),
        ([FLOAT32, BFLOAT16], FLOAT32),
    ],
)
def test_common_type(kinds: list[ActivationType], common: ActivationType) -> None:
    assert common_type(kinds) is common


def test_different_gpus_use_float16(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="graph_train"):
        assert agreed(AMPERE, AMPERE) is BFLOAT16
        assert caplog.messages == []
        assert agreed(AMPERE, TURING) is FLOAT16
    assert caplog.messages == [
        "Ranks would use different activation types: rank 0 (GPU 0: A100) bfloat16, rank 1 (GPU 1: T4) float16; using "
        "float16 on all"
    ]
    assert agreed(AMPERE, TURING, amp=False) is FLOAT32


def test_different_kinds_of_ranks_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"use a GPU.*: rank 0 \(GPU 0: A100\), but not rank 1 \(CPU\); set --device"):
        agreed(AMPERE, CPU)
    with pytest.raises(ValueError, match=r"plugin.*: rank 1 \(GPU 1: T4\), but not rank 0 \(GPU 0: V100\); use"):
        agreed(WITHOUT_PLUGIN, TURING)

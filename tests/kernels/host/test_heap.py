"""The allocator's settings while a graph is compiled: glibc's defaults afterwards, settings of the user win."""

import os
import subprocess
import sys

import pytest

from kernels.host import heap
from kernels.host.heap import heap_for_compiling, keep_freed_blocks

# `man mallopt`
M_MXFAST, M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = 1, -1, -2, -3
DEFAULTS = {M_MXFAST: 128, M_TRIM_THRESHOLD: 131072, M_TOP_PAD: 131072}


class RecordingLibc:
    """Stand-in for glibc that records its parameters and how often memory is returned to the system."""

    def __init__(self) -> None:
        self.parameters = dict(DEFAULTS)
        self.trimmed = 0

    def mallopt(self, parameter: int, value: int) -> int:
        assert parameter in (*DEFAULTS, M_MMAP_THRESHOLD)
        self.parameters[parameter] = value
        return 1

    def malloc_trim(self, pad: int) -> int:
        assert pad == 0
        self.trimmed += 1
        return 1


@pytest.fixture
def libc(monkeypatch: pytest.MonkeyPatch) -> RecordingLibc:
    recording = RecordingLibc()
    monkeypatch.setattr(heap, "_LIBC", recording)
    monkeypatch.setattr(heap, "_usual", dict(DEFAULTS))
    for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    return recording


def test_defaults_are_restored(libc: RecordingLibc) -> None:
    with pytest.raises(ZeroDivisionError), heap_for_compiling():
        assert all(libc.parameters[name] != value for name, value in DEFAULTS.items())
        1 / 0  # noqa: B018
    assert libc.parameters == DEFAULTS
    assert libc.trimmed == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MALLOC_TRIM_THRESHOLD_", "1"),
        ("MALLOC_TOP_PAD_", "1"),
        ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=1"),
    ],
)
def test_user_settings_win(libc: RecordingLibc, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with heap_for_compiling():
        assert libc.parameters == DEFAULTS
    assert libc.trimmed == 1


def test_freed_blocks_are_kept(libc: RecordingLibc) -> None:
    keep_freed_blocks()
    kept = {**DEFAULTS, M_MMAP_THRESHOLD: 4 << 20, M_TRIM_THRESHOLD: 64 << 20}
    assert libc.parameters == kept
    with heap_for_compiling():
        assert libc.parameters[M_TRIM_THRESHOLD] == 16 << 20
    assert libc.parameters == kept


@pytest.mark.parametrize("name", ["MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"])
def test_user_settings_win_over_kept_blocks(libc: RecordingLibc, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1")
    keep_freed_blocks()
    assert libc.parameters == DEFAULTS


PREDICT = """
import ctypes, sys
import graph_train.cli.predict as command
calls = []
import kernels.host.heap as heap
libc = heap._LIBC
class Recording:
    def mallopt(self, *pair):
        calls.append(pair)
        return libc.mallopt(*pair)
heap._LIBC = Recording()
code = command.main(["--weights", "no-such-file.pt", "--source", "x.jpg"])
print(code, dict(calls)[-3])
"""


def test_commands_for_inference_keep_freed_blocks() -> None:
    plain = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    done = subprocess.run([sys.executable, "-c", PREDICT], capture_output=True, text=True, check=False, env=plain)
    assert done.stdout.split() == ["2", str(4 << 20)], done.stderr


def test_other_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap, "_usual", dict(DEFAULTS))
    monkeypatch.setattr(heap, "_LIBC", object())
    with heap_for_compiling():
        heap.fix_mmap_threshold()
    keep_freed_blocks()

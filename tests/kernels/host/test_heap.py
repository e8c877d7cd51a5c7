"""The allocator's settings while a graph is compiled: glibc's defaults afterwards, settings of the user win."""

import pytest

from kernels.host import heap
from kernels.host.heap import heap_for_compiling

# `man mallopt`
M_MXFAST, M_TRIM_THRESHOLD, M_TOP_PAD = 1, -1, -2
DEFAULTS = {M_MXFAST: 128, M_TRIM_THRESHOLD: 131072, M_TOP_PAD: 131072}


class RecordingLibc:
    """Stand-in for glibc that records its parameters and how often memory is returned to the system."""

    def __init__(self) -> None:
        self.parameters = dict(DEFAULTS)
        self.trimmed = 0

    def mallopt(self, parameter: int, value: int) -> int:
        assert parameter in self.parameters
        self.parameters[parameter] = value
        return 1

    def malloc_trim(self, pad: int) -> int:
        assert pad == 0
        assert self.parameters == DEFAULTS
        self.trimmed += 1
        return 1


@pytest.fixture
def libc(monkeypatch: pytest.MonkeyPatch) -> RecordingLibc:
    recording = RecordingLibc()
    monkeypatch.setattr(heap, "_LIBC", recording)
    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES"):
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


def test_other_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap, "_LIBC", object())
    with heap_for_compiling():
        heap.fix_mmap_threshold()

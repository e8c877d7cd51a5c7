"""The build hook of a wheel with kernels; `tests/test_wheel.py` builds and installs one."""

from pathlib import Path
from typing import Any

import pytest

from kernels.build.wheel_hook import SWITCH, KernelBuildHook

ROOT = Path(__file__).resolve().parents[3]
_FAILS = """#!/bin/sh
if [ "$1" = --version ]; then echo "g++ (script) 12.3.0"; exit 0; fi
echo "somewhere.cpp:3:1: error: unreadable" >&2
echo "somewhere.cpp:3:1: note: a further line" >&2
exit 1
"""


def test_failed_compilation_shows_compiler_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "cxx"
    compiler.write_text(_FAILS)
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv(SWITCH, "1")
    hook: Any = KernelBuildHook(str(ROOT), {}, None, None, str(tmp_path), "wheel")  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match=r"error: unreadable(.|\n)*note: a further line"):
        hook.initialize("standard", {"force_include": {}})

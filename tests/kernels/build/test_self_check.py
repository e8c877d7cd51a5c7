"""The plugin's changes to OneFlow are tested before use; if they fail, OneFlow's own kernels are used."""

import os
from pathlib import Path

import pytest

from kernels.build import self_check
from kernels.build.plugin_build import LIBRARY_NAME
from kernels.plugin import load_plugin
from tests.python_process import run_python


def test_loaded_library_passed_self_check() -> None:
    path = load_plugin("require").path
    assert path is not None and self_check.check(path) == self_check.GOOD


def test_failed_self_check_is_cached(tmp_path: Path) -> None:
    library = tmp_path / LIBRARY_NAME
    library.write_bytes(b"\x7fELF no library")
    found = self_check.check(library)
    assert found.startswith(f"{library}: cannot be loaded")
    note = tmp_path / self_check.result_name(library)
    assert note.read_text().strip() == found
    note.write_text("as found before\n")
    assert self_check.check(library) == "as found before"


def test_result_for_library_of_another_user_is_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    library = tmp_path / "system" / LIBRARY_NAME
    library.parent.mkdir()
    library.write_bytes(b"\x7fELF no library")
    real_access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != library.parent and real_access(path, mode))
    found = self_check.check(library)
    assert found.startswith(f"{library}: cannot be loaded")
    assert list(library.parent.iterdir()) == [library]
    (note,) = (tmp_path / "cache" / "graph-train" / "plugin" / "self-checks").iterdir()
    note.write_text("as found before\n")
    assert self_check.check(library) == "as found before"
    library.write_bytes(b"\x7fELF another library")
    assert self_check.check(library).startswith(f"{library}: cannot be loaded")


def test_library_is_checked_if_nothing_can_be_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "cache"))
    (tmp_path / "file").touch()
    library = tmp_path / LIBRARY_NAME
    library.write_bytes(b"\x7fELF no library")
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert self_check.check(library).startswith(f"{library}: cannot be loaded")


def _loaded(change: str) -> str:
    code = f"""
import logging
from kernels import plugin
from kernels.build import self_check
logging.basicConfig(format="%(message)s")
{change}
status = plugin.load_plugin("auto")
print(status.loaded, status.reason)
"""
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_library_failing_self_check_is_not_used() -> None:
    output = _loaded("self_check.check = lambda library: 'a small graph computes something else'")
    assert (
        output.startswith("False")
        and "does not work with this OneFlow: a small graph computes something else" in output
    )


def test_unshared_graph_memory_warns_once() -> None:
    output = _loaded(
        "self_check.check = lambda library: self_check.SHARES_NOTHING\n"
        "real = plugin.ctypes.CDLL\n"
        "class Library(real):\n"
        "    def graph_train_share_graph_memory(self, enabled): return 0\n"
        "plugin.ctypes.CDLL = Library"
    )
    assert output.startswith("True") and output.count(self_check.SHARES_NOTHING) == 1

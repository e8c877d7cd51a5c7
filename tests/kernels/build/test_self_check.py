"""The plugin's changes to OneFlow are tested before use; if they fail, OneFlow's own kernels are used."""

from pathlib import Path

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
    assert (tmp_path / self_check.RESULT_NAME).read_text().strip() == found
    (tmp_path / self_check.RESULT_NAME).write_text("as found before\n")
    assert self_check.check(library) == "as found before"


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

"""Loading the plugin: a new op in eager and graph mode, plain functions, and the `--kernels` modes."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kernels.plugin import is_loaded, load_plugin, plugin_library
from kernels.runtime import Tensor, flow

ROOT = Path(__file__).resolve().parents[2]


def _doubled(x: Tensor) -> Tensor:
    op = flow.stateful_op("graph_train_double").Input("in").Output("out").Build()
    return flow._C.dispatch_ofrecord_bytes_decoder(op, x, name="")


def test_require_loads_private_library() -> None:
    status = load_plugin("require")
    assert status.loaded
    assert status.reason == ""
    assert is_loaded()
    assert status.path is not None
    assert status.path.stat().st_mode & 0o022 == 0
    assert load_plugin("auto") is status


def test_new_op_runs_in_eager_and_graph() -> None:
    load_plugin("require")
    values = np.arange(100_003, dtype=np.float32)  # more than one thread's share, no multiple of a vector

    class Doubling(flow.nn.Graph):
        def build(self, x: Tensor) -> Tensor:
            return _doubled(x)

    x = flow.tensor(values)
    assert np.array_equal(_doubled(x).numpy(), 2 * values)
    assert np.array_equal(Doubling()(x).numpy(), 2 * values)


def test_plain_functions_are_callable_through_ctypes() -> None:
    load_plugin("require")
    assert 1 <= plugin_library().graph_train_threads() <= os.cpu_count()


def test_wrong_mode_raises() -> None:
    load_plugin("require")
    with pytest.raises(ValueError, match="one of auto, off, require"):
        load_plugin("on")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="loaded already"):
        load_plugin("off")


def _run_without_compiler(tmp_path: Path, mode: str) -> subprocess.CompletedProcess[str]:
    code = f"""
from kernels.plugin import load_plugin, is_loaded
from kernels.runtime import flow
print(load_plugin({mode!r}).loaded, load_plugin({mode!r}).loaded, is_loaded(), flow.ones(2).sum().item())
"""
    environment = {**os.environ, "CXX": "no-such-compiler", "XDG_CACHE_HOME": str(tmp_path)}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def test_auto_without_compiler_warns_once_and_continues(tmp_path: Path) -> None:
    result = _run_without_compiler(tmp_path, "auto")
    assert result.returncode == 0
    assert result.stdout.split() == ["False", "False", "False", "2.0"]
    assert result.stderr.count("slower CPU kernels") == 1
    assert "apt-get install g++-12" in result.stderr


def test_failed_load_is_not_retried(tmp_path: Path) -> None:
    compiler, log = tmp_path / "cxx", tmp_path / "log"
    compiler.write_text(
        f'#!/bin/sh\necho "g++ (script) 12.3.0"\n[ "$1" = --version ] || {{ echo run >> {log}; exit 1; }}\n'
    )
    compiler.chmod(0o755)
    code = f"""
from pathlib import Path
from kernels.plugin import load_plugin
first = load_plugin("auto")
runs = Path({str(log)!r}).read_text()
assert load_plugin("auto") is first and not first.loaded
try:
    load_plugin("require")
except ValueError as error:
    assert first.reason in str(error)
    print("rejected", Path({str(log)!r}).read_text() == runs)
"""
    environment = {**os.environ, "CXX": str(compiler), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert result.stdout.split() == ["rejected", "True"], result.stderr


def test_require_without_compiler_raises(tmp_path: Path) -> None:
    result = _run_without_compiler(tmp_path, "require")
    assert result.returncode != 0
    assert "ValueError: kernels mode 'require': no C++ compiler" in result.stderr


def test_off_does_not_load_plugin(tmp_path: Path) -> None:
    result = _run_without_compiler(tmp_path, "off")
    assert result.stdout.split() == ["False", "False", "False", "2.0"]
    assert not list(tmp_path.iterdir())

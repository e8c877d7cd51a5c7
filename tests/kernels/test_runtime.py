"""Loading OneFlow: hidden messages of its native code, process settings, and the libraries it uses."""

import ctypes
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kernels import runtime
from kernels.host.cuda_devices import has_driver_module
from tests.python_process import run_python

ROOT = Path(__file__).resolve().parents[2]


def test_only_known_native_messages_are_hidden(capfd: pytest.CaptureFixture[str]) -> None:
    with runtime.StderrFilter():
        os.write(2, b"libibverbs not available, ibv_fork_init skipped\nE2026 conv.cpp:7] out of memory\n")
        os.write(2, b"E2026 cuda_device_manager_factory.cpp:65] Failed to get cuda runtime version: too old\nlast")
    shown = capfd.readouterr().err
    assert "libibverbs" not in shown
    assert "E2026 conv.cpp:7] out of memory\n" in shown
    assert shown.endswith("last")
    # With a GPU driver, the second message indicates a problem and must be shown.
    assert ("cuda_device_manager_factory" in shown) == has_driver_module()


def test_import_does_not_change_process_settings() -> None:
    code = """
import ctypes, os, signal
def state():
    return dict(os.environ), {number: signal.getsignal(number) for number in signal.valid_signals()}
before = state()
import graph_train, graph_train.api, kernels.host.process_settings
assert state() == before
import kernels.runtime
environment, handlers = state()
assert handlers == before[1]
# OneFlow's own import sets these.
own = {"MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK", "LOCAL_RANK", "CUDA_MODULE_LOADING"}
print({name for name, value in environment.items() if before[0].get(name) != value} - own)
"""
    names = ("CUDA_MODULE_LOADING", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "MASTER_ADDR", "RANK")
    plain = {name: value for name, value in os.environ.items() if name not in names}
    done = run_python("-c", code, env=plain)
    assert (done.returncode, done.stdout) == (0, "set()\n"), done.stderr


def test_missing_proc_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_PROC", tmp_path)
    with pytest.raises(
        OSError, match=rf"{tmp_path} is not mounted, and OneFlow cannot run without it; mount it: mount"
    ):
        runtime._require_proc()
    (tmp_path / "self").mkdir()
    for name in ("self/stat", "meminfo"):
        (tmp_path / name).touch()
    runtime._require_proc()


WITHOUT_PROC = 'mount -t tmpfs none /proc || exit 77; exec "$0" -m graph_train --data shapes --cfg yolov5n.yaml'


def test_training_without_proc_is_a_user_error(tmp_path: Path) -> None:
    """OneFlow itself aborts the process, with exit code 134 and no message."""
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", WITHOUT_PROC, sys.executable]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == 77 or "unshare failed" in done.stderr:
        pytest.skip("this system does not let a process mount")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("graph-train: /proc is not mounted") and len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_first_graph_prints_nothing() -> None:
    code = (
        "from kernels.plugin import load_plugin\nload_plugin('off')\nfrom kernels.runtime import flow\n"
        "class Add(flow.nn.Graph):\n    def build(self, x): return x + 1\nprint(Add()(flow.zeros(2)).numpy())"
    )
    done = run_python("-c", code, check=True)
    assert done.stdout == "[1. 1.]\n"
    if not has_driver_module():
        assert done.stderr == ""


_LOADS_NVRTC = """
import ctypes
import nvidia.cudnn
from kernels import runtime
from kernels.host.cuda_devices import has_driver_module
runtime._has_driver = lambda: True
runtime._preload_cuda_libraries()
library = ctypes.CDLL(next(iter(nvidia.cudnn.__path__)) + "/lib/libcudnn_ops_infer.so.8")
load, scratch = library._ZN11nvrtcHelper4loadEb, ctypes.create_string_buffer(8192)
load.argtypes = [ctypes.c_void_p, ctypes.c_bool]
load(ctypes.addressof(scratch), True)  # may end the process: without a GPU there is no libcuda
"""


def test_cudnn_finds_nvrtc() -> None:
    """cuDNN opens NVRTC by name, as the log of the dynamic loader shows; the folders of the wheels are not searched."""
    ran = run_python("-c", _LOADS_NVRTC, env={**os.environ, "LD_DEBUG": "files,libs"}, errors="replace")
    notes = ran.stderr[ran.stderr.index("libnvrtc.so.11.2") :]
    assert "libcuda.so [0];  dynamically loaded by" in notes, "the program ended before it loaded the driver"
    assert "find library=libnvrtc" not in notes


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs mallinfo2 of glibc 2.33")
@pytest.mark.parametrize(("setting", "own_pages"), [({}, True), ({"MALLOC_MMAP_THRESHOLD_": "33554432"}, False)])
def test_large_blocks_are_returned_to_system(setting: dict[str, str], own_pages: bool) -> None:
    # Freeing 16 MB would make glibc take the next blocks of 1 MB from the heap. A few fit into holes that it has,
    # more of them where the import has just compiled Python's modules.
    code = """
import ctypes
from kernels.host.process_settings import configure_process
configure_process()
import kernels.runtime
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks hblkhd a b c d e".split()]
libc.mallinfo2.restype = Info
libc.free(ctypes.c_void_p(libc.malloc(ctypes.c_size_t(16 << 20))))
before = libc.mallinfo2().hblkhd
blocks = [libc.malloc(ctypes.c_size_t(1 << 20)) for _ in range(64)]
print(libc.mallinfo2().hblkhd - before >= 48 << 20)
"""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = run_python("-c", code, env={**plain, **setting}, check=True)
    assert done.stdout.split() == [str(own_pages)]


def test_interrupt_raises_keyboard_interrupt() -> None:
    code = (
        "import os, signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from kernels.runtime import flow\n"
        "try: os.kill(os.getpid(), signal.SIGINT)\nexcept KeyboardInterrupt: print('caught')"
    )
    done = run_python("-c", code)
    assert (done.returncode, done.stdout) == (0, "caught\n"), done.stderr


@pytest.mark.parametrize("module", ["oneflow.framework.c_api_util", "oneflow.nn"])
def test_interrupt_during_import_raises_keyboard_interrupt(module: str) -> None:
    """OneFlow's own handler, in place while its modules are imported, ends the process with exit code 255."""
    code = f"""
import importlib.abc, os, signal, sys
class Interrupting(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Interrupting())
try:
    import kernels.runtime
except KeyboardInterrupt:
    print("caught", flush=True)
    os._exit(0 if not signal.pthread_sigmask(signal.SIG_BLOCK, []) else 1)
"""
    done = run_python("-c", code)
    assert (done.returncode, done.stdout) == (0, "caught\n"), done.stderr


def test_oneflow_uses_newer_nccl(tmp_path: Path) -> None:
    """Check with the dynamic loader that each NCCL function resolves to the preloaded library."""
    code = """
import ctypes, kernels.runtime
version = ctypes.c_int()
assert ctypes.CDLL(None).ncclGetVersion(ctypes.byref(version)) == 0
print(version.value)
"""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "LD_DEBUG": "bindings",
        "LD_DEBUG_OUTPUT": str(tmp_path / "bindings"),
        "LD_BIND_NOW": "1",
    }
    ran = run_python("-c", code, env=environment, check=True)
    assert ran.stdout.strip() == "22105"
    text = "".join(path.read_text() for path in tmp_path.glob("bindings.*"))
    found = re.findall(r"binding file \S*/liboneflow-\S+ \[0\] to (\S+) \[0\]: normal symbol `(nccl\w+)'", text)
    assert {"ncclAllReduce", "ncclCommInitRank", "ncclGetVersion"} <= {symbol for _, symbol in found}
    assert {Path(library).name for library, _ in found} == {"libnccl.so.2"}


def test_nccl_for_other_cuda_is_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_NCCL_DISTRIBUTION", "nvidia-nccl-of-another-cuda")
    assert not runtime.has_newer_nccl()

"""Messages for errors where the operating system's own message is not helpful."""

import contextlib
import errno
import io
import os
import resource
import signal
import warnings
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from graph_train.host.failures import DONE, INTERNAL_ERROR, INTERRUPTED, USER_ERROR
from graph_train.host.interrupts import Interruptible, StopRequest, Terminable
from graph_train.host.run_command import run_command
from kernels.host.files import replacing
from pipelines.data.images import decode_rgb
from tests.python_process import ROOT, run_python

COMMANDS = ("graph_train", "graph_train.cli.val", "graph_train.cli.predict", "graph_train.cli.export")


@pytest.mark.parametrize("module", [*COMMANDS, "graph_train.cli.check"])
def test_deleted_working_directory_is_reported(tmp_path: Path, module: str) -> None:
    (tmp_path / "gone").mkdir()
    code = (
        f"import os, sys, runpy\nos.chdir({str(tmp_path / 'gone')!r})\nos.rmdir({str(tmp_path / 'gone')!r})\n"
        f"sys.argv[1:] = {FLAGS[module]!r}\nrunpy.run_module({module!r}, run_name='__main__')"
    )
    done = run_python("-c", code)
    assert done.returncode == USER_ERROR
    assert "the current folder has been deleted" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("module", "mode", "reason"),
    [
        *((module, ["-OO"], "but OneFlow needs them; start Python without this option") for module in COMMANDS),
        ("graph_train", ["-O"], "but OneFlow needs them; start Python without this option"),
        ("graph_train", ["-X", "dev"], "OneFlow crashes in Python's development mode"),
        ("graph_train", ["-W", "error"], "OneFlow cannot be imported if warnings are errors"),
    ],
)
def test_unusual_python_is_rejected(tmp_path: Path, module: str, mode: list[str], reason: str) -> None:
    (tmp_path / "a.pt").touch()  # a missing file would be reported first
    done = run_python(*mode, "-m", module, *FLAGS[module], cwd=tmp_path)
    assert done.returncode == USER_ERROR
    assert reason in done.stderr.splitlines()[-1]


FLAGS = {
    "graph_train": ["--data", "shapes", "--cfg", "yolov5n.yaml"],
    "graph_train.cli.val": ["--data", "shapes", "--weights", "a.pt"],
    "graph_train.cli.predict": ["--weights", "a.pt", "--source", "b.jpg"],
    "graph_train.cli.export": ["--weights", "a.pt"],
    "graph_train.cli.check": ["--data", "shapes"],
}


@pytest.mark.parametrize("module", [*COMMANDS, "graph_train.cli.check"])
@pytest.mark.parametrize("name", ["TQDM_NCOLS", "TQDM_MININTERVAL"])
def test_wrong_settings_of_progress_bars_are_named(module: str, name: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), name: "abc"}
    done = run_python("-m", module, *FLAGS[module], env=environment)
    assert done.returncode == USER_ERROR
    assert f": {name}: not settings of tqdm, which shows the progress (" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert run_python("-m", module, "--help", env=environment).returncode == 0


@pytest.mark.parametrize("module", COMMANDS)
@pytest.mark.parametrize("limit", [10**9, 4_600_000_000])
def test_low_address_space_limit_is_reported_early(module: str, limit: int, tmp_path: Path) -> None:
    (tmp_path / "a.pt").touch()  # missing weights are reported before heavy imports
    done = run_python(
        "-m",
        module,
        *FLAGS[module],
        timeout=60,
        cwd=tmp_path,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert done.returncode == USER_ERROR
    last = done.stderr.splitlines()[-1]
    assert f"`ulimit -v` is {limit / 1e9:.1f} GB: raise it" in last and "Traceback" not in done.stderr


@pytest.mark.parametrize("limit", [100_000_000, 300_000_000, 800_000_000, 1_100_000_000])
def test_low_limit_on_data_is_named(tmp_path: Path, limit: int) -> None:
    command = ["-m", "graph_train", *FLAGS["graph_train"]]
    done = run_python(
        *command, cwd=tmp_path, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    )
    assert done.returncode == USER_ERROR
    assert f"`ulimit -d` is {limit / 1e9:.1f} GB: raise it (`ulimit -d unlimited`)" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("error", "lack"),
    [
        (MemoryError("Unable to allocate 7 EiB"), True),
        (RuntimeError("can't start new thread"), True),
        (ImportError("libdali.so: failed to map segment from shared object"), True),
        (ImportError("libcufft.so: cannot map zero-fill pages"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (RuntimeError("\x1b[1mError\x1b[0m: allocate failed"), True),
        (RuntimeError("something else"), False),
    ],
)
def test_out_of_memory_is_a_user_error(error: Exception, lack: bool, capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> None:
        raise error

    code, message = run_command("x", fails, debug=False), capsys.readouterr().err
    assert code == (USER_ERROR if lack else INTERNAL_ERROR)
    assert ("out of memory or threads" in message) == lack and ("internal error" in message) != lack


def test_too_few_open_files_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    assert run_command("x", fails, debug=False) == USER_ERROR
    assert "Too many open files; `ulimit -n` is " in capsys.readouterr().err


def test_limit_of_open_files_is_checked_at_the_start(tmp_path: Path) -> None:
    """With a lower limit, DALI or OneFlow abort the process without a message."""
    done = run_python(
        "-m",
        "graph_train.cli.check",
        "--data",
        "none.yaml",
        cwd=tmp_path,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (12, 12)),
    )
    assert done.returncode == USER_ERROR
    assert done.stderr == "graph-check: `ulimit -n` is 12, too few open files; raise it (`ulimit -n 1024`)\n"


def test_ctrl_c_during_native_import_is_an_interrupt(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise ImportError("KeyboardInterrupt: ")  # as pybind11 raises it

    assert run_command("graph-train", command, debug=False) == INTERRUPTED
    assert capsys.readouterr().err == "graph-train: interrupted\n"


def test_damaged_exif_prints_no_warnings() -> None:
    stream = io.BytesIO()
    Image.new("RGB", (16, 16)).save(stream, "JPEG")
    block = b"Exif\0\0MM\0\x2a\xff\xff\xff\xff"
    content = stream.getvalue()
    damaged = content[:2] + b"\xff\xe1" + (len(block) + 2).to_bytes(2, "big") + block + content[2:]

    def command() -> None:
        assert decode_rgb(damaged).shape == (16, 16, 3)

    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        assert run_command("graph-predict", command, debug=False) == DONE
    assert shown == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signal_removes_temporary_files(tmp_path: Path, number: int, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.signal(number, signal.SIG_DFL)

    def command() -> None:
        assert signal.getsignal(number) != signal.SIG_DFL  # it would end the test process
        with replacing(tmp_path / "best.onnx"):
            os.kill(os.getpid(), number)

    try:
        assert run_command("graph-export", command, debug=False) == INTERRUPTED
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)
    assert capsys.readouterr().err == "graph-export: interrupted\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("context", [contextlib.nullcontext, Interruptible, StopRequest])
def test_second_signal_does_not_interrupt_clean_up(context: Any, tmp_path: Path) -> None:
    """A terminal and a supervisor may send a signal at the same time."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    cleaned = []

    def command() -> None:
        with context():
            try:
                for _ in range(2):  # the second is the first that ends the work under a StopRequest
                    os.kill(os.getpid(), signal.SIGTERM)
            finally:
                for number in (signal.SIGINT, signal.SIGTERM):
                    os.kill(os.getpid(), number)
                cleaned.append(True)

    try:
        assert run_command("graph-val", command, debug=False) == INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, before)
    assert cleaned


def test_repeated_signal_interrupts_hanging_clean_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graph_train.host.interrupts._CLEAN_UP_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt), Terminable():
        try:
            os.kill(os.getpid(), signal.SIGINT)
        finally:
            os.kill(os.getpid(), signal.SIGINT)
            pytest.fail("not interrupted")


def test_handled_and_ignored_signals_are_left_alone() -> None:
    def command() -> None:
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run_command("graph-export", command, debug=False) == DONE
    finally:
        signal.signal(signal.SIGHUP, before)


INTERRUPTED_IMPORT = """
import builtins, sys
from graph_train.cli import entry
original = builtins.__import__
def interrupted(name, *arguments):
    if name == "graph_train.settings.check_options":
        raise KeyboardInterrupt
    return original(name, *arguments)
builtins.__import__ = interrupted
sys.exit(entry.check())
"""


def test_ctrl_c_before_command_starts_is_one_line(tmp_path: Path) -> None:
    script = tmp_path / "graph-check"
    script.write_text(INTERRUPTED_IMPORT)
    done = run_python(script)
    assert done.returncode == -signal.SIGINT
    assert done.stderr == "graph-check: interrupted\n"


def test_importing_a_command_changes_no_hook(tmp_path: Path) -> None:
    script = tmp_path / "graph-check"
    script.write_text(
        "import sys, graph_train.cli.check, graph_train.cli.entry\nprint(sys.excepthook is sys.__excepthook__)\n"
    )
    assert run_python(script, check=True).stdout == "True\n"


SIGNALLED_AT_EXIT = """
import atexit, os, signal
from graph_train.host.interrupts import Interruptible, StopRequest, Terminable
from graph_train.host.run_command import run_command
atexit.register(lambda: os.kill(os.getpid(), signal.{second}))
def command():
    {first}
code = run_command("graph-train", command, debug=False, process_ends=True)
os.kill(os.getpid(), signal.{second})
raise SystemExit(code)
"""


@pytest.mark.parametrize("second", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("first", ["SIGINT", "SIGTERM", ""])
def test_signals_do_not_interrupt_exit(first: str, second: str) -> None:
    code = SIGNALLED_AT_EXIT.format(first=f"signal.raise_signal(signal.{first})" if first else "pass", second=second)
    done = run_python("-c", code)
    expected = (INTERRUPTED, "graph-train: interrupted\n") if first else (DONE, "")
    assert (done.returncode, done.stderr) == expected


HANGS_AT_EXIT = """
import atexit, ctypes
from graph_train.host import interrupts
from graph_train.host.run_command import run_command
interrupts._EXIT_SECONDS = 1
libc = ctypes.PyDLL(None)  # keeps the interpreter's lock, as a library that hangs in a destructor does
atexit.register(lambda: [libc.pause() for _ in range(100)])
raise SystemExit(run_command("graph-train", lambda: None, debug=False, process_ends=True))
"""


def test_hanging_exit_is_ended() -> None:
    assert run_python("-c", HANGS_AT_EXIT, timeout=60).returncode == -signal.SIGALRM


def test_signal_while_an_error_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    class SlowError(ValueError):
        def __str__(self) -> str:
            os.kill(os.getpid(), signal.SIGINT)
            return "some text"

    def command() -> None:
        raise SlowError

    assert run_command("graph-train", command, debug=False) == INTERRUPTED
    assert capsys.readouterr().err == "graph-train: interrupted\n"


@pytest.mark.parametrize(
    ("module", "flags"),
    [
        ("graph_train.cli.train", ["--data", "none.yaml", "--cfg", "none.yaml"]),
        ("graph_train.cli.val", ["--data", "shapes", "--weights", "none.pt"]),
        ("graph_train.cli.predict", ["--source", "none.jpg", "--weights", "none.pt"]),
        ("graph_train.cli.export", ["--weights", "none.pt"]),
        ("graph_train.cli.check", ["--data", "none.yaml"]),
        ("graph_train.cli.check", ["convert", "--train", "none.json", "--output", "out"]),
        ("benchmarks.cli", ["report", "none"]),
    ],
)
def test_signal_at_exit_keeps_exit_code_of_command(module: str, flags: list[str], tmp_path: Path) -> None:
    code = (
        f"import os, signal, sys\nfrom {module} import main\nsys.argv[1:] = {flags!r}\n"
        "code = main()\nos.kill(os.getpid(), signal.SIGTERM)\nsys.exit(code)"
    )
    done = run_python("-c", code, cwd=tmp_path, timeout=60)
    assert done.returncode == USER_ERROR, done.stderr

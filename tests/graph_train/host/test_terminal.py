"""Output of any text to terminals that may not be able to represent it."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from graph_train.host.terminal import RobustStream, as_line, robust_output
from tests.pipelines.data_sets import add_image, write_yaml


def test_one_printable_line_of_bounded_words() -> None:
    assert as_line("a\n  b\tc") == "a b c"
    assert as_line("\x1b[1m\x1b[38;2;255;000;000mError\x1b[0m: no\x07") == "Error: no\\x07"
    long = as_line(f"a: {'x' * 5000}/y.txt: no such file")
    assert len(long) < 400 and long.startswith("a: xxx") and long.endswith("xxx/y.txt: no such file") and "…" in long
    assert as_line("y" * 400) == "y" * 400


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_unencodable_characters_are_escaped(encoding: str) -> None:
    raw = io.BytesIO()
    stream = RobustStream(io.TextIOWrapper(raw, encoding=encoding))
    text = "grün → \udce9\n"
    assert stream.write(text) == len(text)
    stream.flush()
    assert raw.getvalue() == text.encode(encoding, "backslashreplace")


class _OnlyWrites:
    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> None:
        self.text += text


def test_streams_that_a_program_has_replaced_or_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    replaced, closed = _OnlyWrites(), io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stdout", replaced)
    monkeypatch.setattr(sys, "stderr", closed)
    with robust_output():
        print("a", flush=True)
        print("b", file=sys.stderr, flush=True)
    assert replaced.text == "a\n"


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(("flags", "code"), [("", 0), ("--date x", 2)])
def test_closed_standard_streams_are_harmless(tmp_path: Path, closed: str, flags: str, code: int) -> None:
    add_image(tmp_path, "a.png", "0 .5 .5 .2 .4\n")
    data = write_yaml(tmp_path, "train: images\nval: images\nnames: [a]\n")
    command = f"exec {sys.executable} -m graph_train.cli.check --data {data} {flags} {closed}"
    assert subprocess.run(["bash", "-c", command], check=False, stdout=subprocess.DEVNULL).returncode == code
    code_of_child = "from graph_train.host.terminal import *\nwith robust_output(): print(open('x', 'w').fileno() > 2)"
    shown = f'cd {tmp_path}; exec {sys.executable} -c "{code_of_child}" <&- 2>&-'
    found = subprocess.run(
        ["bash", "-c", shown], check=True, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.getcwd()}
    )
    assert found.stdout == "True\n"


@pytest.mark.parametrize("setting", ["ascii", "ascii:strict"])
def test_report_prints_on_ascii_terminal(tmp_path: Path, setting: str) -> None:
    add_image(tmp_path, "grün.png", "0 .5 .5 .2 .4\n")
    data = write_yaml(tmp_path, "train: images\nval: images\nnames: [käfer]\n")
    command = [sys.executable, "-m", "graph_train.cli.check", "--data", str(data)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONIOENCODING": setting}
    )
    assert done.returncode == 0, done.stderr
    assert r"k\xe4fer 1" in done.stdout and r"gr\xfcn.png" in done.stdout
    assert "codec" not in done.stderr and "Traceback" not in done.stderr

"""Atomic file replacement: generations, errors, leftovers, permissions."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kernels.host.files import is_stream, remove_leftovers, replacing, resolve_links, write_atomically
from tests.file_limit import file_limit


def texts(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_generations_rotate(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for text in "12345":
        with replacing(path, keep=3) as temporary:
            temporary.write_text(text)
    assert texts(tmp_path) == {"a.txt": "5", "a.1.txt": "4", "a.2.txt": "3"}
    with replacing(path, keep=1) as temporary:  # no older generation may remain
        temporary.write_text("6")
    assert texts(tmp_path) == {"a.txt": "6"}


def test_file_without_generations_keeps_user_files(tmp_path: Path) -> None:
    for name in ("report.json", "report.1.json"):
        (tmp_path / name).write_text("mine")
    write_atomically(tmp_path / "report.json", "new")
    assert texts(tmp_path) == {"report.json": "new", "report.1.json": "mine"}


def test_error_keeps_all_generations_and_names_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for text in "12":
        with replacing(path, keep=2) as temporary:
            temporary.write_text(text)
    with pytest.raises(OSError) as error, file_limit(0), replacing(path, keep=2) as temporary:
        temporary.write_text("3")
    assert (error.value.filename, error.value.strerror) == (str(path), "File too large")
    assert texts(tmp_path) == {"a.txt": "2", "a.1.txt": "1"}


def test_leftovers_of_killed_write_are_removed(tmp_path: Path) -> None:
    context = replacing(tmp_path / "last.safetensors")
    temporary = context.__enter__()
    temporary.write_bytes(b"half")
    for name in (".lock", "notes.tmp", ".draft.tmp", ".a.tmp.json", "last.safetensors"):
        (tmp_path / name).touch()
    assert remove_leftovers(tmp_path) == 1
    assert not temporary.exists()
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [".a.tmp.json", ".draft.tmp", ".lock", "last.safetensors", "notes.tmp"]


# --- resuming ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mask", "rights"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_respect_umask(tmp_path: Path, mask: int, rights: int) -> None:
    before = os.umask(mask)
    try:
        write_atomically(tmp_path / "a.json", "{}")
    finally:
        os.umask(before)
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == rights


@pytest.mark.parametrize(
    ("durable", "expected"), [(True, ["fsync", "replace", "fsync"]), (False, ["fsync", "replace"])]
)
def test_content_is_synced_before_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool, expected: list[str]
) -> None:
    done = []

    def record(name: str) -> Callable[..., None]:
        real = getattr(os, name)

        def call(*given: Any) -> None:
            done.append(name)
            real(*given)

        return call

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, record(name))
    with replacing(tmp_path / "a.txt", durable=durable) as temporary:
        temporary.write_text("1")
    assert done == expected


def test_long_file_name(tmp_path: Path) -> None:
    path = tmp_path / ("\N{GRINNING FACE}" * 62 + ".json")
    write_atomically(path, "{}")
    assert texts(tmp_path) == {path.name: "{}"}


# --- what is no file ------------------------------------------------------------------------------------------------


def test_pipe_is_written_in_place(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="pipe or socket without a reader") as error:
        write_atomically(pipe, "{}")
    assert error.value.filename == str(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    (tmp_path / "link").symlink_to(pipe)
    for name in ("pipe.json", "link"):
        write_atomically(tmp_path / name, "{}")
        assert os.read(reader, 10) == b"{}"
    os.close(reader)
    assert pipe.is_fifo() and (tmp_path / "link").is_symlink() and len(list(tmp_path.iterdir())) == 2


def test_device_is_written_in_place(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/dev/null")  # a link of our own: the device itself is the machine's
    write_atomically(tmp_path / "link", "{}")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "link").is_char_device()
    (tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "full", "{}")
    assert (tmp_path / "full").is_char_device()


def test_stdout_can_be_written(tmp_path: Path) -> None:
    """Output redirected by the shell is appended to the same file."""
    stdout, out = tmp_path / "stdout", tmp_path / "out.txt"
    stdout.symlink_to("/proc/self/fd/1")  # as /dev/stdout is, which belongs to the machine
    code = (
        "from pathlib import Path\nfrom kernels.host.files import write_atomically\n"
        f"print('before')\nwrite_atomically(Path({str(stdout)!r}), 'content\\n')\nprint('after')"
    )
    with out.open("w") as file:
        number = os.fstat(file.fileno()).st_ino
        subprocess.run([sys.executable, "-c", code], stdout=file, check=True)
    assert out.read_text() == "before\ncontent\nafter\n" and out.stat().st_ino == number
    assert stdout.is_symlink()
    piped = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert piped.stdout == "before\ncontent\nafter\n"


def test_links_are_resolved(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert resolve_links(tmp_path / "link") == tmp_path / "file" and not is_stream(tmp_path / "link")
    (tmp_path / "loop").symlink_to("loop")
    assert not is_stream(tmp_path / "loop")
    assert is_stream(Path("/dev/stdout")) and resolve_links(Path("/dev/stdout")) == Path("/dev/stdout")

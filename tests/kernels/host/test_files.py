"""Files are replaced as a whole: generations, errors, leftovers, access rights."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kernels.host.files import remove_leftovers, replacing, write_atomically
from tests.file_limit import file_limit


def texts(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_generations_move_on(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for text in "12345":
        with replacing(path, keep=3) as temporary:
            temporary.write_text(text)
    assert texts(tmp_path) == {"a.txt": "5", "a.1.txt": "4", "a.2.txt": "3"}
    write_atomically(path, "6")  # keeps nothing, so nothing that is older than what it replaced may stay
    assert texts(tmp_path) == {"a.txt": "6"}


def test_an_error_keeps_all_generations_and_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for text in "12":
        with replacing(path, keep=2) as temporary:
            temporary.write_text(text)
    with pytest.raises(OSError) as error, file_limit(0), replacing(path, keep=2) as temporary:
        temporary.write_text("3")
    assert (error.value.filename, error.value.strerror) == (str(path), "File too large")
    assert texts(tmp_path) == {"a.txt": "2", "a.1.txt": "1"}


def test_leftovers_of_a_killed_write_are_removed(tmp_path: Path) -> None:
    context = replacing(tmp_path / "last.safetensors")
    temporary = context.__enter__()
    temporary.write_bytes(b"half")
    for name in (".lock", "notes.tmp", "last.safetensors"):
        (tmp_path / name).touch()
    assert remove_leftovers(tmp_path) == 1
    assert not temporary.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "last.safetensors", "notes.tmp"]


# --- resuming ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mask", "rights"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_have_the_rights_that_the_user_asks_for(tmp_path: Path, mask: int, rights: int) -> None:
    before = os.umask(mask)
    try:
        write_atomically(tmp_path / "a.json", "{}")
    finally:
        os.umask(before)
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == rights


@pytest.mark.parametrize(
    ("lasting", "expected"), [(True, ["fsync", "replace", "fsync"]), (False, ["fsync", "replace"])]
)
def test_content_is_on_the_disk_before_the_file_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lasting: bool, expected: list[str]
) -> None:
    done = []

    def noted(name: str) -> Callable[..., None]:
        real = getattr(os, name)

        def call(*given: Any) -> None:
            done.append(name)
            real(*given)

        return call

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, noted(name))
    with replacing(tmp_path / "a.txt", lasting=lasting) as temporary:
        temporary.write_text("1")
    assert done == expected

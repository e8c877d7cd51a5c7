"""User-supplied paths: printing, home folder expansion, and rejection if not writable."""

import os
import subprocess
from pathlib import Path

import pytest

from kernels.host.paths import output_file, printable, shell_word, with_home


def test_printable_path_is_one_line_of_valid_text() -> None:
    assert printable("ä\n\x1b[1m") == "ä\\n\\x1b[1m"
    assert printable(Path(os.fsdecode(b"a\xff"))) == "a\\xff"
    assert printable("a\ud800") == "a\\ud800"


@pytest.mark.parametrize("name", ["plain/a.safetensors", "my runs/exp", "it's", "$HOME", "a;b", "~x", "*"])
def test_suggested_command_is_shell_quoted(name: str) -> None:
    done = subprocess.run(["/bin/sh", "-c", f"printf %s {shell_word(Path(name))}"], capture_output=True, check=True)
    assert done.stdout.decode() == name
    assert shell_word("plain/a.safetensors") == "plain/a.safetensors"
    assert shell_word("a\nb") == "a\\nb"


def test_leading_tilde_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert with_home("~/photos") == Path("/home/somebody/photos")
    assert with_home("photos/~a") == Path("photos/~a")
    with pytest.raises(ValueError, match=r"~no-such-user/a: unknown home folder"):
        with_home("~no-such-user/a")


def test_unwritable_output_file_raises(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")
    assert output_file("--json", str(tmp_path / "link")) == tmp_path / "target"
    with pytest.raises(ValueError, match=r"--json .*: is a folder; give the name of a file in it"):
        output_file("--json", str(tmp_path))
    with pytest.raises(ValueError, match=r"folder .*/none not found; create it first"):
        output_file("--json", str(tmp_path / "none" / "a"))
    with pytest.raises(ValueError, match=r"--json /proc/a: folder /proc is not writable \(.*\); choose another one"):
        output_file("--json", "/proc/a")
    assert output_file("--json", str(tmp_path / "none" / "a"), makes_folder=True) == tmp_path / "none" / "a"
    for name in (f"{tmp_path}/none/", f"{tmp_path}/", "none/"):
        with pytest.raises(ValueError, match=rf"--json {name}: is a folder; give the name of a file in it"):
            output_file("--json", name)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ValueError, match=r"--json .*/loop: is a symbolic link that leads back to itself; remove it"):
        output_file("--json", str(tmp_path / "loop"))

"""Building the plugin: one build for concurrent starts, private cache folders, clear errors.

The compiler here is a script that writes the file it is asked for; `test_plugin.py` uses the real one.
"""

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from kernels.build import plugin_build
from kernels.build.cache import PluginUnavailableError, digest_file, is_intact

ROOT = Path(__file__).resolve().parents[3]
_WRITES_OUTPUT = """#!/bin/sh
if [ "$1" = --version ]; then echo "g++ (script 1.0) 12.3.0"; exit 0; fi
echo run >> '{log}'
while [ $# -gt 0 ]; do [ "$1" = -o ] && echo compiled > "$2"; shift; done
sleep 0.05
"""
_VERSION_SCRIPT = """#!/bin/sh
echo '{version}'
"""
_FAILS = """#!/bin/sh
if [ "$1" = --version ]; then echo "g++ (script 1.0) 12.3.0"; exit 0; fi
echo "somewhere.cpp:3:1: error: unreadable" >&2
exit 1
"""


def _script(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "graph-train" / "plugin"


@pytest.fixture
def compiler_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    log = tmp_path / "compiler.log"
    monkeypatch.setenv("CXX", str(_script(tmp_path / "cxx", _WRITES_OUTPUT.format(log=log))))
    return log


def test_second_build_uses_cache(cache: Path, compiler_log: Path) -> None:
    first = plugin_build.ensure_built()
    runs = compiler_log.read_text()
    second = plugin_build.ensure_built()
    assert first.path == second.path
    assert first.path.parent.parent == cache
    assert first.build_seconds > 0
    assert second.build_seconds == 0
    assert compiler_log.read_text() == runs
    assert stat.S_IMODE(first.path.parent.stat().st_mode) == 0o700
    assert not list(first.path.parent.glob("build-*"))


READ_ONLY = """
mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" || exit 77
exec "$1" -c "from kernels.build.plugin_build import ensure_built; print(ensure_built().path)"
"""


def test_read_only_cache_is_used(cache: Path, compiler_log: Path) -> None:
    """The cache is read-only in a container with a read-only file system."""
    built = plugin_build.ensure_built()
    runs = compiler_log.read_text()
    for intact in (True, False):
        command = ["unshare", "--map-root-user", "--mount", "sh", "-c", READ_ONLY, str(cache.parent), sys.executable]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode == 77 or "unshare failed" in done.stderr:
            pytest.skip("this system does not let a process mount")
        if intact:
            assert done.stdout.strip() == str(built.path), done.stderr
        else:
            assert "Read-only file system; set XDG_CACHE_HOME to the absolute path of a folder" in done.stderr
        digest_file(built.path).write_text("other")
    assert compiler_log.read_text() == runs


def test_concurrent_starts_build_once(cache: Path, compiler_log: Path) -> None:
    code = "from kernels.build.plugin_build import ensure_built; print(ensure_built().path)"
    starts = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    paths = {start.communicate(timeout=60)[0].strip() for start in starts}
    assert [start.returncode for start in starts] == [0, 0, 0]
    assert len(paths) == 1
    sources = len(plugin_build._compile_jobs(emulated_cuda=False))
    assert len(compiler_log.read_text().splitlines()) == sources + 2  # the common header and the link


def test_emulated_build_shares_objects() -> None:
    jobs, emulated = (set(plugin_build._compile_jobs(emulated_cuda=which)) for which in (False, True))
    assert len(jobs & emulated) > len(jobs) / 2
    for job in jobs & emulated:
        assert not any("GT_EMULATED_CUDA" in path.read_text() for path in plugin_build.included_files(job.source))
    assert all("-DGT_EMULATED_CUDA" in job.flags for job in emulated - jobs)
    assert {job.source for job in jobs} < {job.source for job in emulated}


def test_key_depends_on_compiler(compiler_log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = plugin_build.plugin_key(plugin_build.find_toolchain())
    other = _WRITES_OUTPUT.format(log=compiler_log).replace("script 1.0", "script 2.0")
    monkeypatch.setenv("CXX", str(_script(tmp_path / "cxx2", other)))
    assert plugin_build.plugin_key(plugin_build.find_toolchain()) != before


def test_key_depends_on_instruction_set_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    before = plugin_build.packaged_key()
    monkeypatch.setitem(plugin_build._INSTRUCTION_SETS, "avx2", ("-march=x86-64-v3",))
    assert plugin_build.packaged_key() != before


@pytest.mark.parametrize(
    ("version", "release"),
    [
        ("g++ (Debian 12.2.0-14+deb12u1) 12.2.0", 12),
        ("g++ (GCC) 13.2.1 20230801 (Red Hat 13.2.1-6)", 13),
        ("x86_64-conda-linux-gnu-c++ (conda-forge gcc 11.4.0-3) 11.4.0", 11),
        ("Debian clang version 14.0.6", None),
        ("Ubuntu clang version 14.0.0-1ubuntu1 (Fedora) 14.0", None),
        ("unknown", None),
    ],
)
def test_compiler_release_parses(version: str, release: int | None) -> None:
    assert plugin_build._gcc_release(version) == release


def _compilers(folder: Path, monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    """Make only these compilers available on the path."""
    folder.mkdir()
    for name, version in versions.items():
        _script(folder / name.replace("gpp", "g++").replace("_", "-"), _VERSION_SCRIPT.format(version=version))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(folder))


def test_old_compiler_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _compilers(tmp_path / "bin", monkeypatch, gpp="g++ (Ubuntu) 11.4.0", gpp_12="g++-12 (Ubuntu) 12.3.0")
    assert plugin_build.find_compiler() == tmp_path / "bin/g++-12"


@pytest.mark.parametrize("version", ["g++ (Ubuntu 11.4.0-1ubuntu1) 11.4.0", "Ubuntu clang version 14.0.0"])
def test_unsupported_compiler_error_has_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    _compilers(tmp_path / "bin", monkeypatch, gpp=version)
    with pytest.raises(PluginUnavailableError, match=f"{re.escape(version)}.*install g\\+\\+ 12 or newer"):
        plugin_build.find_compiler()


def test_missing_compiler_error_has_remedy(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(PluginUnavailableError, match=r"no-such-compiler.*apt-get install g\+\+-12"):
        plugin_build.ensure_built()


def test_compile_error_names_log(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", str(_script(tmp_path / "cxx", _FAILS)))
    with pytest.raises(PluginUnavailableError, match=r"error: unreadable.*build\.log") as caught:
        plugin_build.ensure_built()
    log = Path(str(caught.value).rsplit(" ", 1)[1])
    # It also has failures that ran in parallel: the common header and the first instruction sets.
    assert 1 < log.read_text().count("error: unreadable") == log.read_text().count(" -o ")
    with pytest.raises(PluginUnavailableError, match="error: unreadable"):
        plugin_build.ensure_built()
    vectorised = [path for path in plugin_build.source_files() if path.name.endswith(".vec.cpp")]
    assert log.read_text().count("x86-64-v4") <= len(vectorised)  # of the last attempt only
    assert not list(cache.rglob(plugin_build.LIBRARY_NAME))


def test_full_disk_is_reported_with_remedy(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = _FAILS.replace("unreadable", "cannot write PCH file: No space left on device")
    monkeypatch.setenv("CXX", str(_script(tmp_path / "cxx", full)))
    with pytest.raises(
        PluginUnavailableError, match=rf"No space left on device\); free 1 GB for {cache}/.* XDG_CACHE_HOME"
    ):
        plugin_build.ensure_built()


def test_folder_writable_by_others_is_rejected(cache: Path, compiler_log: Path) -> None:
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    with pytest.raises(PluginUnavailableError, match=r"writable by other users \(mode 777\)"):
        plugin_build.ensure_built()


def test_library_writable_by_others_is_rejected(cache: Path, compiler_log: Path) -> None:
    library = plugin_build.ensure_built().path
    library.chmod(0o720)
    with pytest.raises(PluginUnavailableError, match="writable by other users"):
        plugin_build.ensure_built()


@pytest.mark.parametrize("damage", ["one byte more", "cut off", "another library", "no note", "another note"])
def test_altered_library_is_rebuilt(
    cache: Path, compiler_log: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    library = plugin_build.ensure_built().path
    note, runs = digest_file(library), compiler_log.read_text()
    genuine = library.read_bytes()
    if damage == "no note":
        note.unlink()
    elif damage == "another note":
        note.write_bytes(b"\xff" * 64)
    else:
        library.write_bytes({"one byte more": genuine + b"x", "cut off": genuine[:-1]}.get(damage, b"\x7fELF evil"))
    assert is_intact(library) is False
    capsys.readouterr()
    assert plugin_build.ensure_built().build_seconds > 0
    assert library.read_bytes() == genuine and is_intact(library)
    assert compiler_log.read_text() == runs + "run\n"  # linked again from cached objects
    assert "does not match its digest" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["another object", "no note"])
def test_altered_object_is_rebuilt(cache: Path, compiler_log: Path, damage: str) -> None:
    library = plugin_build.ensure_built().path
    kept = next((cache / "objects").glob("*.o"))
    genuine, runs = kept.read_bytes(), compiler_log.read_text()
    library.unlink()
    if damage == "no note":
        digest_file(kept).unlink()
    else:
        kept.write_bytes(b"\x7fELF evil")
    plugin_build.ensure_built()
    assert kept.read_bytes() == genuine and is_intact(kept)
    again = compiler_log.read_text().removeprefix(runs).splitlines()
    assert 2 <= len(again) <= 3  # this object and the link, and the common header if the object needs it


def test_digest_writable_by_others_is_rejected(cache: Path, compiler_log: Path) -> None:
    library = plugin_build.ensure_built().path
    digest_file(library).chmod(0o622)
    with pytest.raises(PluginUnavailableError, match="writable by other users"):
        plugin_build.ensure_built()


def test_cache_folders_become_private(cache: Path, compiler_log: Path) -> None:
    cache.mkdir(parents=True)
    cache.chmod(0o755)
    built = plugin_build.ensure_built()
    folders = (built.path.parent, cache, cache.parent)
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in folders] == [0o700] * 3


def test_folder_of_other_user_is_rejected(cache: Path, compiler_log: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    cache.mkdir(parents=True)
    os.chown(cache, 12345, -1)
    with pytest.raises(PluginUnavailableError, match="belongs to user id 12345"):
        plugin_build.ensure_built()


def test_symbolic_link_is_rejected(cache: Path, compiler_log: Path, tmp_path: Path) -> None:
    library = plugin_build.ensure_built().path
    library.rename(tmp_path / "elsewhere.so")
    library.symlink_to(tmp_path / "elsewhere.so")
    with pytest.raises(PluginUnavailableError, match="symbolic link"):
        plugin_build.ensure_built()


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder as in a wheel, with sources next to it that a test may change."""
    packaged, sources = tmp_path / "packaged", tmp_path / "csrc"
    packaged.mkdir()
    sources.mkdir()
    (sources / "a.cpp").write_text("int a;")
    monkeypatch.setattr(plugin_build, "PACKAGED_FOLDER", packaged)
    monkeypatch.setattr(plugin_build, "SOURCE_FOLDER", sources)
    (packaged / plugin_build.LIBRARY_NAME).write_bytes(b"library")
    (packaged / plugin_build.KEY_NAME).write_text(plugin_build.packaged_key())
    return packaged


def test_wheel_library_is_used_if_it_matches(wheel: Path) -> None:
    assert plugin_build.packaged_library() == wheel / plugin_build.LIBRARY_NAME
    (wheel.parent / "csrc" / "a.cpp").write_text("int b;")
    assert plugin_build.packaged_library() is None  # of other sources


@pytest.mark.parametrize("absent", [plugin_build.LIBRARY_NAME, plugin_build.KEY_NAME])
def test_incomplete_wheel_library_is_ignored(wheel: Path, absent: str) -> None:
    (wheel / absent).unlink()
    assert plugin_build.packaged_library() is None


def test_library_for_other_oneflow_is_ignored(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = plugin_build._distribution_file
    monkeypatch.setattr(plugin_build, "_distribution_file", lambda *what: (real(*what)[0], "9.9.9"))
    assert plugin_build.packaged_library() is None

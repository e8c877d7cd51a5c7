"""Compiled CUDA kernels: cached, recompiled when damaged or changed, taken from a wheel."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from kernels import plugin
from kernels.build import cuda_build, nvrtc, plugin_build
from kernels.build.cache import PluginUnavailableError, digest_file


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Replace the package's sources by two small ones and the cache by an empty one; return the source folder."""
    folder = tmp_path / "sources"
    (folder / "ops").mkdir(parents=True)
    (folder / "shared.h").write_text("#define NUMBER 1\n")
    for name in ("a", "b"):
        kernel = f'#include "shared.h"\nextern "C" __global__ void {name}(int* x) {{ *x = NUMBER; }}\n'
        (folder / "ops" / f"{name}.cu").write_text(kernel)
    for module in (plugin_build, nvrtc, cuda_build):
        monkeypatch.setattr(module, "SOURCE_FOLDER", folder)
    monkeypatch.setattr(nvrtc, "_FLAGS", ("-std=c++17", f"-I{folder}"))
    monkeypatch.setattr(cuda_build, "PACKAGED_FOLDER", tmp_path / "packaged")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def _archive(sources: Path) -> Path:
    (archive,) = (sources.parent / "cache/graph-train/plugin/cuda").glob("*.zip")
    return archive


def test_compiled_images_are_cached(sources: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = cuda_build.ensure_compiled("sm_80")
    assert [image[:4] for image in first] == [b"\x7fELF"] * 2 and b"a" in first[0]
    assert "compiling the CUDA kernels for sm_80" in capsys.readouterr().err
    assert cuda_build.ensure_compiled("sm_80") == first
    assert not capsys.readouterr().err


def test_changed_header_recompiles(sources: Path) -> None:
    first = cuda_build.ensure_compiled("sm_80")
    (sources / "shared.h").write_text("#define NUMBER 2\n")
    assert cuda_build.ensure_compiled("sm_80") != first


@pytest.mark.parametrize("damage", ["archive", "note"])
def test_damaged_archive_recompiles(sources: Path, damage: str) -> None:
    first = cuda_build.ensure_compiled("sm_80")
    archive = _archive(sources)
    (archive if damage == "archive" else digest_file(archive)).write_bytes(b"damaged")
    assert cuda_build.ensure_compiled("sm_80") == first


def test_archive_writable_by_others_is_rejected(sources: Path) -> None:
    cuda_build.ensure_compiled("sm_80")
    _archive(sources).chmod(0o722)
    with pytest.raises(PluginUnavailableError, match="writable by other users"):
        cuda_build.ensure_compiled("sm_80")


def test_wheel_provides_archive(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packaged = sources.parent / "packaged"
    packaged.mkdir()
    cuda_build.write_archive("sm_80", packaged / cuda_build.archive_name("sm_80"))
    # Installed elsewhere.
    elsewhere = sources.parent / "elsewhere"
    shutil.move(sources, elsewhere)
    for module in (plugin_build, nvrtc, cuda_build):
        monkeypatch.setattr(module, "SOURCE_FOLDER", elsewhere)
    monkeypatch.setattr(nvrtc, "_FLAGS", ("-std=c++17", f"-I{elsewhere}"))
    monkeypatch.setattr(nvrtc, "compile_source", lambda *_: pytest.fail("compiled, though the wheel has it"))
    assert len(cuda_build.ensure_compiled("sm_80")) == 2


class _Library:
    """A fake plugin that records the images it receives."""

    def __init__(self) -> None:
        self.given: list[tuple[int, bytes]] = []

    @property
    def graph_train_cuda_add_image(self) -> Any:
        return _AddImage(self)


class _AddImage:
    argtypes: list[Any]
    restype: None

    def __init__(self, library: _Library) -> None:
        self._library = library

    def __call__(self, device: int, image: bytes, count: int) -> None:
        assert len(image) == count
        self._library.given.append((device, image))


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> _Library:
    """Return a loaded fake plugin on a machine with two GPUs; kernels are named after their architecture."""
    made = _Library()
    status = plugin.PluginStatus(loaded=True, path=None, reason="", build_seconds=0.0)
    monkeypatch.setattr(plugin, "_process", plugin._Process(status=status, library=made))  # type: ignore[arg-type]
    monkeypatch.setattr(plugin, "compute_capabilities", lambda: ((8, 6), (12, 0)))
    monkeypatch.setattr(cuda_build, "ensure_compiled", lambda architecture: [architecture.encode(), b"more"])
    return made


def test_nothing_is_compiled_for_cpu(library: _Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_build, "ensure_compiled", lambda _: pytest.fail("compiled"))
    monkeypatch.setattr(plugin, "compute_capabilities", lambda: pytest.fail("asked the driver"))
    assert plugin.load_plugin("require").loaded
    assert plugin.load_plugin("auto", "cpu").loaded
    assert library.given == []


def test_kernels_are_added_once_per_gpu_architecture(library: _Library) -> None:
    plugin.load_plugin("auto", "cuda:1")
    plugin.load_plugin("auto", "cuda:1")
    assert library.given == [(1, b"compute_90"), (1, b"more")]
    plugin.load_plugin("auto", "cuda")
    assert library.given[2:] == [(0, b"sm_86"), (0, b"more")]


@pytest.mark.parametrize("mode", ["auto", "require"])
def test_compile_error_affects_only_that_gpu(
    library: _Library, mode: plugin.PluginMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: str) -> list[bytes]:
        raise PluginUnavailableError("NVRTC is not installed")

    monkeypatch.setattr(cuda_build, "ensure_compiled", fail)
    expected = "cuda:0: no CUDA kernels for sm_86: NVRTC is not installed; --kernels off .*--device cpu"
    with pytest.raises(ValueError, match=expected):
        plugin.load_plugin(mode, "cuda:0")
    assert plugin.load_plugin(mode, "cpu").loaded


def test_missing_gpu_is_rejected(library: _Library) -> None:
    with pytest.raises(ValueError, match="cuda:2: NVIDIA's driver reports 2 GPUs"):
        plugin.load_plugin("auto", "cuda:2")

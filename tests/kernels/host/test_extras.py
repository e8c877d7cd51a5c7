from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest

from kernels.host import extras
from kernels.host.extras import extra_requirements, install_command


def test_checkout_suggests_uv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other extras are kept, and the project is found from any folder."""
    root = Path(__file__).parents[3]
    monkeypatch.chdir(root / "tests")
    assert install_command("onnx") == "uv sync --inexact --extra onnx"
    monkeypatch.chdir(tmp_path)
    assert install_command("onnx") == f"uv sync --project {root} --inexact --extra onnx"


def test_installed_package_suggests_requirements(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own name is never suggested, since on a public index it may belong to somebody else."""
    monkeypatch.setattr(extras, "_CHECKOUT", Path("/nowhere/pyproject.toml"))
    try:
        requires("graph-train")
    except PackageNotFoundError:
        pytest.skip("not installed")
    command = install_command("onnx")
    assert command.startswith("pip install ")
    assert "onnxruntime" in command
    assert "graph-train" not in command
    assert extra_requirements("none") == []

"""The wheel is complete: it installs into an empty environment and trains there."""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from email.parser import Parser
from pathlib import Path

import pytest
import tomli

from kernels.build import nvrtc, plugin_build
from kernels.build.cuda_build import archive_name
from kernels.build.wheel_hook import SWITCH

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
ROOT = Path(__file__).resolve().parents[1]
UV = os.environ.get("UV", "uv")
"""`uv run` sets UV to its own path; the one on the path may be a shim that works only in the checkout."""
SMALL = ("--data=shapes", "--cfg=yolov5n.yaml", "--imgsz=64", "--batch-size=16", "--epochs=1", "--kernels=require")


def run(*words: str | Path, folder: Path, **variables: str) -> str:
    """Run a command in `folder` without the checkout's variables; it must succeed. Return its output."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    ran = subprocess.run(
        [str(word) for word in words],
        cwd=folder,
        env={**environment, **variables},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
    return ran.stdout


def build(target: Path, *flags: str, **variables: str) -> Path:
    run(UV, "build", "--wheel", "--offline", "--out-dir", target, *flags, folder=ROOT, **variables)
    return next(target.glob("*.whl"))


def test_wheel_contains_all_data_files(tmp_path: Path) -> None:
    wheel = build(tmp_path)
    packed = set(zipfile.ZipFile(wheel).namelist())
    data = [path for package in packages() for path in (ROOT / package).rglob("*") if is_data(path)]
    assert len(data) > 40
    assert [str(path.relative_to(ROOT)) for path in data if str(path.relative_to(ROOT)) not in packed] == []
    assert not any(name.startswith("tests/") for name in packed)
    project = tomli.loads((ROOT / "pyproject.toml").read_text())["project"]
    (name,) = (name for name in packed if name.endswith(".dist-info/METADATA"))
    described = Parser().parsestr(zipfile.ZipFile(wheel).read(name).decode())
    assert described.get_all("Project-URL") == [f"{label}, {url}" for label, url in project["urls"].items()]


def test_source_archive_contains_every_tracked_file(tmp_path: Path) -> None:
    """Tests in an unpacked source archive find the files that they check."""
    tracked = run("git", "ls-files", folder=ROOT).split()
    run(UV, "build", "--sdist", "--offline", "--out-dir", tmp_path, folder=ROOT)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    assert [name for name in tracked if name not in packed] == []


def packages() -> Sequence[str]:
    return ("graph_train", "kernels", "models", "pipelines")


def is_data(path: Path) -> bool:
    return path.is_file() and path.suffix not in (".py", ".pyc", ".so")


def test_wheel_trains_in_empty_environment_without_compiler(tmp_path: Path) -> None:
    wheel = build(tmp_path, "--no-build-isolation", f"--python={sys.executable}", **{SWITCH: "1"})
    kinds = (*nvrtc.ARCHITECTURES, nvrtc.PORTABLE)
    assert {f"kernels/prebuilt/{archive_name(kind)}" for kind in kinds} <= set(zipfile.ZipFile(wheel).namelist())
    python, commands = tmp_path / "env/bin/python", tmp_path / "env/bin"
    run(UV, "venv", "--offline", "--python", sys.executable, tmp_path / "env", folder=tmp_path)
    limits = tmp_path / "constraints.txt"
    limits.write_text(run(UV, "export", "--offline", "--no-hashes", "--no-emit-project", folder=ROOT))
    run(UV, "pip", "install", "--python", python, "-c", limits, wheel, folder=tmp_path)
    facts = run(commands / "graph-check", "env", folder=tmp_path, CXX="no-compiler")
    assert f"from the wheel: {tmp_path}" in facts and plugin_build.LIBRARY_NAME in facts
    assert re.search(r"^compiler +not needed", facts, re.MULTILINE) and "is slower" not in facts
    run(commands / "graph-train", *SMALL, "--project", tmp_path / "runs", folder=tmp_path, CXX="no-compiler")
    assert (tmp_path / "runs/exp/weights/best.safetensors").is_file()

"""Our own packages are imported, and no modules of the user's working folder."""

import subprocess
import sys
from pathlib import Path

import pytest

from graph_train.host.own_modules import PACKAGES, ROOT, import_own_packages, module_command


@pytest.fixture
def yolov5_checkout(tmp_path: Path) -> Path:
    """Return a folder whose packages have the names of ours."""
    for name in PACKAGES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("OF_ANOTHER_PROJECT = True\n")
    return tmp_path


def _python(folder: Path, program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=False)


def test_packages_of_the_working_folder_do_not_hide_ours(yolov5_checkout: Path) -> None:
    program = "import sys, graph_train, kernels, models, pipelines; print(sys.path[0] == '', models.__file__)"
    done = _python(yolov5_checkout, program)
    assert done.stdout.split() == ["True", str(ROOT / "models" / "__init__.py")], done.stderr


def test_packages_imported_earlier_are_reported(yolov5_checkout: Path) -> None:
    done = _python(yolov5_checkout, "import models, graph_train")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "ImportError: graph-train needs its own package 'models', but this program has imported another one from "
        f"{yolov5_checkout / 'models' / '__init__.py'}; use graph-train in a process of its own"
    )


def test_own_packages_imported_earlier_are_kept() -> None:
    before = [sys.modules[name] for name in PACKAGES]
    import_own_packages()
    assert [sys.modules[name] for name in PACKAGES] == before


def test_module_command_ignores_the_working_folder(tmp_path: Path) -> None:
    for name in ("runpy", "json", "argparse"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(9)\n")
    document = tmp_path / "document"
    document.write_text("[1]")
    command = module_command("json.tool", ["--compact", str(document)])
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[1]"), done.stderr

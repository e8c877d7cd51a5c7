"""What the documentation tells a reader to type exists, and runs."""

import contextlib
import importlib
import io
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tomli

from pipelines.shapes import render_shapes
from tests.docs.commands import ROOT, Command, documented_commands

SCRIPTS: dict[str, str] = tomli.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
COMMANDS = documented_commands()
OURS = [command for command in COMMANDS if command.words[0] in SCRIPTS]

DEVELOPMENT = {
    "uv sync": "the first line of .ci/run",
    "pytest": "this very test run, and .ci/run",
    "mkdocs build --strict": "tests/docs/test_site.py",
}
"""Commands that something else runs."""

SMALLER = {"--epochs": "1", "--imgsz": "64", "--batch-size": "8"}
"""The documentation's values are for real work; for a test they only cost time."""


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_it_is_ours_or_run_elsewhere(command: Command) -> None:
    assert command.words[0] in SCRIPTS or " ".join(command.words) in DEVELOPMENT


@pytest.mark.parametrize("command", OURS, ids=str)
def test_every_flag_is_in_the_help(command: Command) -> None:
    flags = [word.partition("=")[0] for word in command.words[1:] if word.startswith("--")]
    help_text = help_of(command)
    assert [flag for flag in flags if flag not in help_text] == []


def help_of(command: Command) -> str:
    module, _, function = SCRIPTS[command.words[0]].partition(":")
    main = getattr(importlib.import_module(module), function)
    subcommand = [command.words[1]] if command.words[0] == "graph-bench" else []
    output = io.StringIO()
    with contextlib.redirect_stdout(output), pytest.raises(SystemExit):
        main([*subcommand, "--help"])
    return output.getvalue()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_they_run_one_after_another(goldens: Path, tmp_path: Path) -> None:
    """All in one folder and in their order: later ones use what earlier ones wrote."""
    shutil.copytree(render_shapes().parent, tmp_path / "berries")
    (tmp_path / "berries/shapes.yaml").rename(tmp_path / "berries/berries.yaml")
    shutil.copytree(tmp_path / "berries/images/val", tmp_path / "my-photos")
    shutil.copy(tmp_path / "berries/berries.yaml", tmp_path / "my.yaml")
    (tmp_path / "my.yaml").write_text((tmp_path / "my.yaml").read_text().replace("path: .", "path: berries"))
    weights = next(iter(sorted(goldens.rglob("*.pt"))))
    for name in ("yolov5n.pt", "yolov5s.pt"):
        shutil.copy(weights, tmp_path / name)
    for command in [command for command in OURS if command.words[0] != "graph-bench"]:
        ran = subprocess.run(arguments(command), cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
        assert ran.returncode == 0, f"{command}\n{ran.stdout[-2000:]}\n{ran.stderr[-2000:]}"


def arguments(command: Command) -> list[str]:
    module = SCRIPTS[command.words[0]].partition(":")[0]
    words = list(command.words[1:])
    if command.words[0] == "graph-train" and "--resume" not in words:
        # A flag that is given twice has its last value.
        words += [word for pair in SMALLER.items() for word in pair]
    elif command.words[0] in ("graph-val", "graph-predict"):
        words += ["--imgsz", SMALLER["--imgsz"]]
    return [sys.executable, "-m", module, *words]

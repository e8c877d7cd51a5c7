"""The commands and programs in the documentation exist and run."""

import contextlib
import importlib
import io
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import tomli

from models.network import DetectionModel
from models.spec import load_model_spec
from pipelines.data.shapes import render_shapes
from tests.docs.commands import (
    ROOT,
    Command,
    documented_commands,
    documented_programs,
    fence_languages,
    foreign_commands,
    inline_commands,
    multi_host_examples,
    text_block_commands,
)
from tests.models.torch_files import write_network
from tests.python_process import run_python

SCRIPTS: dict[str, str] = tomli.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
LAUNCHER = ("python", "-m", "oneflow.distributed.launch")
COMMANDS = documented_commands()
LAUNCHED = [command for command in COMMANDS if command.words[:3] == LAUNCHER]
OURS = [command for command in COMMANDS if command.words[0] in SCRIPTS]
EXAMPLES = multi_host_examples()
SHOWN = [*text_block_commands(), *inline_commands()]
"""Commands that need a camera, a network, or the reader's own files or values; only their flags are checked."""

PARSERS = {f"graph-{name}": f"graph_train.settings.{name}_options" for name in ("train", "val", "predict", "export")}
DEVELOPMENT = {
    "uv sync": "the first line of .ci/run",
    "GRAPH_TRAIN_WHEEL_KERNELS=1 uv build --wheel --no-build-isolation": "tests/test_wheel.py",
    "pytest": "this very test run, and .ci/run",
    "mkdocs build --strict": "tests/docs/test_site.py",
}
"""Commands that other tests run."""

NOT_RUN = {
    "docker": "needs a Docker daemon; tests/test_shipping.py compares the Dockerfile with the tree",
    "trtexec": "needs TensorRT and a GPU; tests/graph_train/exporting/test_tensorrt.py checks files and shapes",
    "srun": "needs Slurm; the flags of `graph-train` behind it are checked",
    "python -m oneflow.distributed.launch": "needs several hosts; the flags of `graph-train` behind it are checked",
}
"""Programs of others, and the reason why no test runs them."""

SMALLER = {"--epochs": "1", "--imgsz": "64", "--batch-size": "8"}
"""Replacements of documented values, which would make a test slow."""
SMALLER_BENCHMARK = {"--points": "yolov5n:8:64", "--repeats": "1"}
MAX_RANKS = "2"


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_every_command_is_ours_or_excluded(command: Command) -> None:
    assert command in (*OURS, *LAUNCHED) or " ".join(command.words) in DEVELOPMENT


@pytest.mark.parametrize("command", foreign_commands(), ids=str)
def test_untested_commands_have_a_reason(command: Command) -> None:
    assert any(" ".join(command.words).startswith(f"{program} ") for program in NOT_RUN)


def test_every_block_kind_has_commands() -> None:
    assert LAUNCHED and EXAMPLES and documented_programs() and text_block_commands() and inline_commands()
    # Commands in blocks of another type would not be checked.
    assert fence_languages() <= {"bash", "text", "python", "py", "yaml"}


@pytest.mark.parametrize("command", [*OURS, *EXAMPLES, *LAUNCHED, *SHOWN], ids=str)
def test_every_flag_is_in_help(command: Command) -> None:
    assert unknown_flags(command) == []


def unknown_flags(command: Command) -> list[str]:
    """Return the flags that are missing in the command's `--help`."""
    words = command.words
    if command in LAUNCHED:
        words = ("graph-train", *words[words.index("graph_train") + 1 :])
    flags = [word.partition("=")[0] for word in words[1:] if word.startswith("--")]
    help_text = help_of(words)
    known = set(re.findall(r"(?<![\w-])--[A-Za-z][\w-]*", help_text))
    return [flag for flag in flags if flag not in known]


def test_wrong_flag_is_detected() -> None:
    for words in (("graph-train", "--epocs", "3"), ("graph-bench", "step", "--point", "x"), ("graph-check", "--x=1")):
        assert len(unknown_flags(Command(ROOT / "README.md", 1, words))) == 1
    launched = ("python", "-m", "oneflow.distributed.launch", "-m", "graph_train", "--sync-bm")
    assert unknown_flags(Command(ROOT / "README.md", 1, ("graph-train", *launched[5:]))) == ["--sync-bm"]


@pytest.mark.parametrize(
    "command", [command for command in (*OURS, *EXAMPLES, *SHOWN) if command.words[0] in PARSERS], ids=str
)
def test_every_value_is_accepted_by_its_flag(command: Command) -> None:
    parser = importlib.import_module(PARSERS[command.words[0]]).build_parser()
    assert parser.parse_args(command.words[1:])


def main_module(command: str) -> str:
    return "benchmarks.cli" if command == "graph-bench" else f"graph_train.cli.{command.removeprefix('graph-')}"


def help_of(words: Sequence[str]) -> str:
    main = importlib.import_module(main_module(words[0])).main
    # NAME is a placeholder.
    has_own = words[0] == "graph-bench" or tuple(words[:2]) == ("graph-check", "convert")
    subcommand = [words[1].replace("NAME", "step")] if has_own else []
    output = io.StringIO()
    with contextlib.redirect_stdout(output), pytest.raises(SystemExit):
        main([*subcommand, "--help"])
    return output.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create the files that the documented examples use: data sets, photos, YOLOv5 weights."""
    made = tmp_path_factory.mktemp("reader")
    shutil.copytree(render_shapes().parent, made / "berries")
    (made / "berries/shapes.yaml").rename(made / "berries/berries.yaml")
    shutil.copytree(made / "berries/images/val", made / "my-photos")
    for name in ("my.yaml", "data.yaml"):
        (made / name).write_text((made / "berries/berries.yaml").read_text().replace("path: .", "path: berries"))
    weights = write_network(made / "yolov5n.pt", DetectionModel(load_model_spec("yolov5n.yaml", num_classes=3), seed=0))
    shutil.copy(weights, made / "yolov5s.pt")
    return made


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_documented_commands_run_in_order(folder: Path) -> None:
    """Run all in one folder in document order, since later ones use the files of earlier ones."""
    for command in (*OURS, *LAUNCHED):
        ran = subprocess.run(arguments(command), cwd=folder, capture_output=True, text=True, timeout=900, check=False)
        assert ran.returncode == 0, f"{command}\n{ran.stdout[-2000:]}\n{ran.stderr[-2000:]}"
    for program in documented_programs():
        # Excerpts are allowed as for commands.
        code = re.sub(r"imgsz=\d+", "imgsz=64", re.sub(r"epochs=\d+", "epochs=1", program.code))
        ran = run_python("-c", code, cwd=folder, timeout=900)
        assert ran.returncode == 0, f"{program}\n{ran.stdout[-2000:]}\n{ran.stderr[-2000:]}"


def arguments(command: Command) -> list[str]:
    words = list(command.words)
    if command in LAUNCHED:
        number = words.index("--nproc_per_node") + 1
        return [sys.executable, *words[1:number], MAX_RANKS, *words[number + 1 :], *_flags(SMALLER)]
    module = main_module(words[0])
    # A flag that is given twice has its last value.
    if words[0] == "graph-train" and "--resume" not in words:
        words += _flags(SMALLER)
    elif words[0] in ("graph-val", "graph-predict"):
        words += ["--imgsz", SMALLER["--imgsz"]]
    elif words[0] == "graph-bench" and "--repeats" in help_of(words):  # it measures
        words += _flags(SMALLER_BENCHMARK)
    return [sys.executable, "-m", module, *words[1:]]


def _flags(values: dict[str, str]) -> list[str]:
    return [word for pair in values.items() for word in pair]

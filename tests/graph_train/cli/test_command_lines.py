"""Usage errors: a one-line message, exit code 2, and no files left behind."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from graph_train.cli import check, export, predict, train, val
from tests.python_process import run_python

Command = Callable[[Sequence[str]], int]
COMMANDS: dict[str, Command] = {
    "graph-train": train.main,
    "graph-val": val.main,
    "graph-check": check.main,
    "graph-export": export.main,
    "graph-predict": predict.main,
}


def run_command(name: str, arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Run a command and return its exit code, and stderr without OneFlow's lines."""
    capsys.readouterr()
    try:
        code = COMMANDS[name](arguments)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("graph-", "(run", "Trace"))]
    assert len(lines) == 1, lines
    return code, lines[0]


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Yield an empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("graph-train --epoch 3", "unknown flag --epoch; did you mean --epochs?"),
        ("graph-train --epoch=3", "did you mean --epochs?"),
        ("graph-train --batchsize 3", "did you mean --batch-size?"),
        ("graph-predict --soruce x", "did you mean --source?"),
        ("graph-predict --weights a.pt", "--source: give images, a folder, a glob"),
        ("graph-predict --weights a.pt --source x --max-det 0", "--max-det 0: must be at least 1"),
        ("graph-predict --weights a.pt --source x --imgsz 640 16", "--imgsz 16: must be at least 32"),
        ("graph-predict --weights a.pt --source x --classes -1", "--classes -1: classes count from 0"),
        ("graph-export --weights a.pt --include onnx --opset x", "--opset: invalid int value: 'x'"),
        ("graph-export", "--weights: give the weights to export"),
        ("graph-train --zzzzzzz", "unknown flag --zzzzzzz (see graph-train --help)"),
        ("graph-train data.yaml", "unexpected argument 'data.yaml'"),
        ("graph-train --epochs", "--epochs: expected one argument"),
        ("graph-train --epochs abc", "--epochs: invalid int value: 'abc'"),
        ("graph-train --dist-timeout nan", "--dist-timeout nan: must be a number from 1 to"),
        ("graph-train --dist-timeout 0", "--dist-timeout 0.0: must be at least 1"),
        ("graph-train --lr0 0.1", "--lr0: a hyper-parameter, not a flag; write it to a yaml file and give that"),
        ("graph-train --hsv-h=0.1", "--hsv-h: a hyper-parameter, not a flag"),
        ("graph-train data=x.yaml epochs=3", "unexpected argument 'data=x.yaml'; did you mean --data x.yaml?"),
        ("graph-val batch_size=3", "unexpected argument 'batch_size=3'; did you mean --batch-size 3?"),
        ("graph-train --weights yolov5s", "yolov5s: no such weight file; did you mean yolov5s.pt, the published"),
        ("graph-val --weights yolov5x6", "did you mean yolov5x6.pt, the published weights?"),
        ("graph-val --weights runs/yolov5s.pt", "runs/yolov5s.pt: no such weight file; did you mean yolov5s.pt, the"),
        ("graph-train --weights yolov5s-seg.pt", "published weights that can be loaded are yolov5n.pt, yolov5s.pt,"),
        ("graph-train --weights http://x/yolov5s.pt", "http://x/yolov5s.pt: weights are not loaded from URLs; use"),
        ("graph-train --weights http://x/own.pt", "not loaded from URLs; download the file and give its path"),
        ("graph-train --epochs 1e3", "invalid int value: '1e3'"),
        ("graph-train --epochs nan", "invalid int value: 'nan'"),
        ("graph-train --epochs -5", "--epochs -5: must be at least 1"),
        ("graph-train --epochs 99999999999999999999", "--epochs 99999999999999999999: must be at most 1000000"),
        ("graph-train --imgsz 0", "--imgsz 0: must be at least 32"),
        ("graph-train --imgsz 99999999", "--imgsz 99999999: must be at most 16384"),
        ("graph-train --batch-size 0", "--batch-size 0: must be at least 1"),
        ("graph-train --batch-size 99999999", "--batch-size 99999999: must be at most 65536"),
        ("graph-train --seed -1", "--seed -1: must be at least 0"),
        ("graph-train --seed 99999999999", "--seed 99999999999: must be at most 4294967295"),
        ("graph-train --workers -1", "--workers -1: must be at least 0"),
        ("graph-train --label-smoothing nan", "--label-smoothing nan: must be in [0, 1)"),
        ("graph-train --optimizer sgd", "invalid choice: 'sgd'"),
        ("graph-train --freeze -1", "--freeze [-1]: layers count from 0"),
        ("graph-train --device 99 --cfg yolov5n.yaml", "--device 99: this machine has"),
        ("graph-train --device xpu --cfg yolov5n.yaml", "--device 'xpu': must be cpu"),
        ("graph-train --data nowhere.yaml --cfg yolov5n.yaml --hyp none.yaml", "hyper-parameters 'none.yaml'"),
        ("graph-train --resume nowhere", "--resume nowhere: no checkpoint at nowhere"),
        ("graph-val --weight x", "unknown flag --weight; did you mean --weights?"),
        ("graph-val", "--weights: give trained weights"),
        ("graph-val --weights none.pt", "none.pt: no such weight file"),
        ("graph-val --weights x --conf-thres nan", "--conf-thres nan: must be between 0 and 1"),
        ("graph-val --weights x --imgsz 0", "--imgsz 0: must be at least 32"),
        ("graph-check", "--data: give a data set"),
        ("graph-check --dat x", "unknown flag --dat; did you mean --data?"),
        ("graph-check --data none.yaml", "none.yaml: no such dataset yaml"),
        ("graph-check --data shapes --anchor-t nan", "--anchor-t nan: must be above 1"),
        ("graph-check --data shapes --imgsz 0", "--imgsz 0: must be at least 32"),
        ("graph-check env --plots x", "--plots: applies to data sets only"),
        ("graph-check env --single-cls", "--single-cls: applies to data sets only"),
        ("graph-check dataa --data x", "invalid choice: 'dataa'"),
        ("graph-export --weights none.pt", "none.pt: no such weight file"),
        ("graph-export --weights none.pt --include onyx", "--include 'onyx': must be one of safetensors"),
    ],
)
def test_usage_error_is_one_line_and_exit_code_2(
    command: str, expected: str, empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, *arguments = command.split()
    code, message = run_command(name, arguments, capsys)
    assert code == 2
    assert message.startswith(f"{name}: ") and expected in message
    assert not list(empty_folder.iterdir())


@pytest.mark.parametrize("flag", ["weights", "cfg", "hyp"])
def test_pipe_is_not_reported_as_missing(empty_folder: Path, capsys: pytest.CaptureFixture[str], flag: str) -> None:
    os.mkfifo(empty_folder / "pipe")
    given = {"data": "shapes", "cfg": "yolov5n.yaml", flag: "pipe"}
    code, message = run_command("graph-train", [f"--{name}={value}" for name, value in given.items()], capsys)
    assert code == 2
    assert "pipe" in message and "not a regular file" in message


def test_unwritable_project_is_a_user_error(empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (empty_folder / "taken").write_text("a file")
    code, message = run_command("graph-train", ["--cfg", "yolov5n.yaml", "--project", "taken"], capsys)
    assert code == 2
    reason = "the results folder cannot be created (File exists)"
    assert message == f"graph-train: taken/exp: {reason}; choose another --project or --name"


def test_undecodable_names(empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = os.fsdecode(b"a \xff\n.yaml")
    code, message = run_command("graph-check", ["--data", name], capsys)
    assert code == 2 and r"a \xff\n.yaml: no such dataset yaml" in message
    code, message = run_command("graph-train", [f"--{name}"], capsys)
    assert code == 2 and r"unknown flag --a \xff .yaml" in message


@pytest.mark.parametrize(
    ("module", "flag"),
    [
        ("train", "--bbox-iou-optim"),
        ("val", "--conf-thres"),
        ("predict", "--vid-stride"),
        ("export", "--opset"),
        ("check", "--anchor-t"),
    ],
)
def test_help_imports_nothing_heavy(module: str, flag: str) -> None:
    code = (
        f"import sys\nfrom graph_train.cli.{module} import main\n"
        "try: main(['--help'])\nexcept SystemExit as end: assert end.code == 0\n"
        "heavy = {'oneflow', 'nvidia.dali', 'matplotlib', 'numpy', 'cv2', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr
    assert flag in done.stdout

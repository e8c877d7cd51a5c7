import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cli import benchmark_parser, main
from benchmarks.harness.results import read_result
from benchmarks.training import end_to_end
from benchmarks.training.end_to_end import OURS, TORCH, CompletedRun, epoch_speeds

OUTPUT = """Compiled the step for images 16x3x64x64, labels 16x16x5 in 9.1 s

     Epoch   box_loss    obj_loss    cls_loss  Instances    Size    img/s
       0/1     0.1234     0.04567      0.0331         61      64     12.5
time: 1% waiting for data, 98% computing, 1% on the host

     Epoch   box_loss    obj_loss    cls_loss  Instances    Size    img/s
       1/1     0.1111     1.2e-05      0.0300         58      64      250
"""


def test_speeds_are_parsed_from_output() -> None:
    assert epoch_speeds(OUTPUT, 2) == (12.5, 250.0)
    with pytest.raises(ValueError, match="expected 3 epochs"):
        epoch_speeds(OUTPUT, 3)


def test_failing_command_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["end-to-end", "--data", str(tmp_path / "no.yaml"), "--repeats", "1"]) == 2
    assert "no.yaml" in capsys.readouterr().err


def test_ours_gets_requested_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loader gets its threads by a flag, kernels and libraries by environment variables."""
    given: dict[str, Any] = {}

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        given.update(options, workers=command[command.index("--workers") + 1])
        return subprocess.CompletedProcess(command, 0, OUTPUT, "")

    monkeypatch.setattr(end_to_end.subprocess, "run", run)
    flags = benchmark_parser("end-to-end").parse_args(["--threads", "3"])
    assert end_to_end._train_ours(flags, 2, tmp_path).epochs == (12.5, 250.0)
    assert given["workers"] == given["env"]["OMP_NUM_THREADS"] == "3"
    assert given["env"]["PATH"] == os.environ["PATH"]


def test_pytorch_runs_in_faster_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: dict[str, Any] = {}
    versions = {"pytorch": "2", "opencv": "4", "python": "3"}

    class Peer:
        def __init__(self, name: str, *_: object, **__: object) -> None:
            calls["name"] = name

        def __enter__(self) -> "Peer":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def call(self, function: str, **arguments: Any) -> dict[str, Any]:
            calls[function] = arguments
            return {"versions": versions} if function == "prepare" else {"images": 8, "seconds": 2.0}

    monkeypatch.setattr(end_to_end, "Worker", Peer)
    flags = benchmark_parser("end-to-end").parse_args([])
    ran = end_to_end._train_torch(flags, 2, "folder", Path("python"))
    assert calls["prepare"]["options"] == {"channels_last": True, "compiled": False, "amp": False}
    assert "channels-last" in calls["name"]
    row = end_to_end._row(TORCH, [ran], flags)
    assert row["images_per_second"] == 4.0
    assert row.items() >= versions.items()
    assert end_to_end._row(OURS, [CompletedRun((1.0,), 1.0)], flags).items() >= dict.fromkeys(versions).items()


@pytest.mark.slow
def test_both_sides_train(torch_python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "e.json"
    flags = ["--imgsz", "64", "--epochs", "2", "--repeats", "1", "--torch-python", str(torch_python)]
    assert main(["end-to-end", *flags, "--json", str(file), "--plot", str(tmp_path / "e.png")]) == 0
    rows = {row["side"]: row for row in read_result(file)["rows"]}
    assert set(rows) == {OURS, TORCH}
    assert all(row["images_per_second"] > 0 for row in rows.values())
    assert all(rows[TORCH][name] and rows[OURS][name] is None for name in ("pytorch", "opencv", "python"))
    assert sorted(os.listdir(tmp_path)) == ["e.json", "e.png"]

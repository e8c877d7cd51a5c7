import os
from pathlib import Path

import pytest

from benchmarks.cli import main
from benchmarks.end_to_end import OURS, TORCH, epoch_speeds
from benchmarks.results import read_result

OUTPUT = """Compiled the step for images 16x3x64x64, labels 16x16x5 in 9.1 s

     Epoch   box_loss    obj_loss    cls_loss  Instances    Size    img/s
       0/1     0.1234     0.04567      0.0331         61      64     12.5
time: 1% waiting for data, 98% computing, 1% on the host

     Epoch   box_loss    obj_loss    cls_loss  Instances    Size    img/s
       1/1     0.1111     1.2e-05      0.0300         58      64      250
"""


def test_speeds_are_read_from_the_command() -> None:
    assert epoch_speeds(OUTPUT, 2) == (12.5, 250.0)
    with pytest.raises(ValueError, match="expected 3 epochs"):
        epoch_speeds(OUTPUT, 3)


def test_a_failing_command_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["end-to-end", "--data", str(tmp_path / "no.yaml"), "--repeats", "1"]) == 2
    assert "no.yaml" in capsys.readouterr().err


@pytest.mark.slow
def test_both_sides_train(torch_python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "e.json"
    flags = ["--imgsz", "64", "--epochs", "2", "--repeats", "1", "--torch-python", str(torch_python)]
    assert main(["end-to-end", *flags, "--json", str(file), "--plot", str(tmp_path / "e.png")]) == 0
    rows = {row["side"]: row for row in read_result(file)["rows"]}
    assert set(rows) == {OURS, TORCH}
    assert all(row["images_per_second"] > 0 for row in rows.values())
    assert sorted(os.listdir(tmp_path)) == ["e.json", "e.png"]

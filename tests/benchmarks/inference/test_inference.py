"""`graph-bench inference`: our commands on the shapes data set, next to scripts with YOLOv5's flags."""

import sys
from pathlib import Path

import pytest

from benchmarks.cli import benchmark_parser, main
from benchmarks.harness.results import read_result
from benchmarks.inference.inference import ONNX, OURS, YOLOV5, _Commands
from models.network import DetectionModel
from models.spec import load_model_spec
from models.weights import save_weights
from tests.graph_train.tiny import TINY

_SCRIPT = """
import sys
from pathlib import Path
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
assert Path(flags["--weights"]).suffix == ".pt" and Path(flags["--weights"]).is_file()
images = list((Path(flags["--weights"]).parent / "images").iterdir())
assert {image.stem for image in images} == {file.stem for file in (images[0].parents[1] / "labels").iterdir()}
print("WARNING: NMS time limit 0.550s exceeded")
print(f"                 all {len(images)} 12 0.1 0.2 0.125 0.05")
"""


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    network = DetectionModel(load_model_spec(TINY), seed=0)
    save_weights(network, tmp_path / "tiny.safetensors")
    return tmp_path / "tiny.safetensors"


def _yolov5(folder: Path, val: str = _SCRIPT) -> Path:
    folder.mkdir()
    for name, script in (("val.py", val), ("detect.py", _SCRIPT)):
        (folder / name).write_text(script)
    return folder


def test_all_sides_alternate(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.inference.inference.find_torch", Path)
    beside = ["--yolov5", str(_yolov5(tmp_path / "yolov5")), "--torch-python", sys.executable]
    size = ["--imgsz", "64", "--batch-size", "4", "--repeats", "1"]
    file, picture = tmp_path / "i.json", tmp_path / "i.png"
    arguments = ["--weights", str(weights), *size, *beside, "--json", str(file), "--plot", str(picture)]
    assert main(["inference", *arguments]) == 0
    result = read_result(file)
    rows = {(row["work"], row["side"]): row for row in result["rows"]}
    assert rows.keys() == {
        *((work, side) for work in ("validation", "prediction") for side in (OURS, YOLOV5)),
        *((f"network, batch {batch}", side) for batch in (1, 4) for side in (OURS, ONNX)),
    }
    assert all(row["images_per_second"] > 0 for row in rows.values())
    assert rows["validation", YOLOV5]["map50"] == 0.125
    assert rows["validation", OURS]["map50"] < 0.1
    assert result["speedups"].keys() == {f"{work}, {side}" for work, side in rows if side != OURS}
    assert result["notes"] == [
        "YOLOv5 reached its time limit for NMS and dropped detections: its mAP is lower for that."
    ]
    assert picture.stat().st_size > 0
    assert "12 0.1" not in capsys.readouterr().out


def test_rejects_folder_that_is_not_yolov5(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inference", "--weights", str(weights), "--yolov5", str(tmp_path)]) == 2
    assert "has no val.py and detect.py" in capsys.readouterr().err


@pytest.mark.parametrize(("script", "message"), [("raise SystemExit('no luck')", "no luck"), ("", "no metrics")])
def test_failing_command_is_reported(script: str, message: str, weights: Path, tmp_path: Path) -> None:
    flags = benchmark_parser("inference").parse_args(["--weights", str(weights), "--torch-python", sys.executable])
    commands = _Commands(flags, tmp_path, None)
    commands.yolov5, commands._python = _yolov5(tmp_path / "yolov5", script), Path(sys.executable)
    with pytest.raises(ValueError, match=message):
        commands.sides()["validation"][YOLOV5]()

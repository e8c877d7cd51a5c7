import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file

from graph_train.runs.checkpoint import load_checkpoint
from tests.graph_train.tiny import TINY
from tests.python_process import run_python

COMMAND = [sys.executable, "-m", "graph_train"]
COMMON = ["--data", "shapes", "--imgsz", "96", "--batch-size", "16", "--workers", "2"]


def cfg_file(folder: Path) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY), encoding="utf-8")
    return path


def command(folder: Path, *arguments: str, name: str = "run") -> list[str]:
    project = ["--project", str(folder), "--name", name]
    return [*COMMAND, *COMMON, "--cfg", str(cfg_file(folder)), *project, *arguments]


def train(folder: Path, *arguments: str, name: str = "run") -> subprocess.CompletedProcess[str]:
    words = command(folder, *arguments, name=name)
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=400)


def rows(run: Path) -> list[list[str]]:
    with (run / "results.csv").open(encoding="utf-8") as file:
        return [[cell.strip() for cell in row] for row in csv.reader(file)]


def arrays_of(path: Path) -> dict[str, np.ndarray]:
    return dict(load_checkpoint(path).arrays)


def assert_same_run(first: Path, second: Path) -> None:
    assert (first / "results.csv").read_bytes() == (second / "results.csv").read_bytes()
    ours, theirs = (arrays_of(run / "weights" / "last.safetensors") for run in (first, second))
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not np.array_equal(ours[name], theirs[name])] == []
    best, other = (load_file(run / "weights" / "best.safetensors") for run in (first, second))
    assert [name for name in best if not np.array_equal(best[name], other[name])] == []


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Train three epochs in graph mode without interruption; return the run folder and its output."""
    folder = tmp_path_factory.mktemp("runs")
    done = train(folder, "--epochs", "3", "--save-period", "1", name="whole")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "whole", done.stdout


def test_run_writes_yolov5_files(finished: tuple[Path, str]) -> None:
    run, printed = finished
    table = rows(run)
    assert len(table) == 1 + 3
    assert len(table[0]) == 14
    assert table[0][0] == "epoch"
    names = {path.name for path in run.iterdir()}
    assert {"opt.yaml", "hyp.yaml", "results.csv", "results.png", "train.log", "train_batch0.jpg"} <= names
    assert {"val_batch0_labels.jpg", "val_batch0_pred.jpg"} <= names
    assert yaml.safe_load((run / "opt.yaml").read_text())["imgsz"] == 96
    assert "Compiled the step for images 16x3x96x96" in printed
    assert "Graph: 1 compiled" in printed
    assert "23 steps replayed" in printed
    assert "Compiled the step" in (run / "train.log").read_text()


def test_best_weights_use_yolov5_names(finished: tuple[Path, str]) -> None:
    run, _ = finished
    with safe_open(str(run / "weights" / "best.safetensors"), framework="numpy") as file:
        names = list(file.keys())
        assert json.loads(file.metadata()["class_names"]) == ["circle", "square", "triangle"]
    assert "model.0.conv.weight" in names
    assert all(name.startswith("model.") for name in names)


def test_resume_at_epoch_boundary_matches_uninterrupted(finished: tuple[Path, str], tmp_path: Path) -> None:
    run, _ = finished
    # The state after the second epoch, put where a killed run would have left it.
    stopped = tmp_path / "stopped"
    (stopped / "weights").mkdir(parents=True)
    epoch_file = (run / "weights" / "epoch1.safetensors").read_bytes()
    (stopped / "weights" / "last.safetensors").write_bytes(epoch_file)
    (stopped / "results.csv").write_bytes((run / "results.csv").read_bytes())
    best = run / "weights" / "best.safetensors"
    (stopped / "weights" / "best.safetensors").write_bytes(best.read_bytes())
    done = subprocess.run(
        [*COMMAND, "--resume", str(stopped)], capture_output=True, text=True, check=False, timeout=400
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Resuming at epoch 2, batch 0" in done.stdout
    assert_same_run(run, stopped)


def test_interrupt_saves_and_resume_matches_uninterrupted(finished: tuple[Path, str], tmp_path: Path) -> None:
    run, _ = finished
    words = command(tmp_path, "--epochs", "3", "--save-period", "1", name="whole")
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if line.startswith("Compiled the step"):
            time.sleep(0.3)
            process.send_signal(signal.SIGINT)
            break
    rest = process.stdout.read()
    assert process.wait(timeout=120) == 130, "".join(seen) + rest
    assert "continue with: graph-train --resume" in rest
    done = subprocess.run(
        [*COMMAND, "--resume", str(tmp_path / "whole")], capture_output=True, text=True, check=False, timeout=400
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_run(run, tmp_path / "whole")


def test_eager_matches_graph(finished: tuple[Path, str], tmp_path: Path) -> None:
    run, _ = finished
    done = train(tmp_path, "--epochs", "3", "--eager", name="eager")
    assert done.returncode == 0, done.stderr[-3000:]
    assert (run / "results.csv").read_bytes() == (tmp_path / "eager" / "results.csv").read_bytes()
    assert "Graph:" not in done.stdout


def test_stock_kernels_give_close_results(finished: tuple[Path, str], tmp_path: Path) -> None:
    run, message = finished
    assert "Kernels: plugin" in message
    done = train(tmp_path, "--epochs", "1", "--kernels", "off", name="stock")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Kernels: OneFlow's own" in done.stdout
    plugin, stock = ([float(cell) for cell in rows(folder)[1][1:4]] for folder in (run, tmp_path / "stock"))
    assert stock == pytest.approx(plugin, rel=1e-3)  # of the first epoch, as rounding errors grow


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "no/such.yaml"], "no/such.yaml"),
        (["--optimizer", "Rprop"], "Rprop"),
        (["--epochs", "0"], "--epochs 0"),
        (["--no-such-flag"], "--no-such-flag"),
        (["--device", "7"], "--device 7"),
        (["--hyp", "nowhere.yaml"], "nowhere.yaml"),
        (["--weights", "nowhere.pt"], "nowhere.pt"),
        (["--resume", "nowhere"], "nowhere"),
        (["--freeze", "99"], "--freeze"),
    ],
)
def test_user_errors_are_one_line_and_exit_code_2(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = train(tmp_path, *arguments)
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert message in last
    assert "Traceback" not in done.stderr


def test_unknown_block_is_rejected_by_name(tmp_path: Path) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(yaml.safe_dump({**TINY, "backbone": [[-1, 1, "Konv", [8, 3, 2]], *TINY["backbone"][1:]]}))  # type: ignore[index]
    done = train(tmp_path, "--cfg", str(path))
    assert done.returncode == 2
    assert "Konv" in done.stderr
    assert "Conv" in done.stderr.replace("Konv", "")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--epochs", "0"], "--epochs 0"),
        (["--rect", "--quad"], "--rect"),
        (["--entity", "me"], "--entity"),
        (["--data", "shapes"], "no network given: use --cfg"),
        (["--evolve", "2"], "no network given: use --cfg"),
    ],
)
def test_invalid_values_are_rejected_before_oneflow_is_imported(flags: list[str], message: str, tmp_path: Path) -> None:
    code = (
        f"import sys; from graph_train.cli.train import main\nassert main({flags}) == 2\n"
        "assert not {'oneflow', 'nvidia.dali', 'numpy', 'matplotlib'} & set(sys.modules), sorted(sys.modules)"
    )
    done = run_python("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(f"graph-train: {message}")
    assert not [*tmp_path.iterdir()]


def test_real_photos(bccd: Path, tmp_path: Path) -> None:
    done = train(tmp_path, "--data", str(bccd), "--epochs", "1", "--imgsz", "160", name="bccd")
    assert done.returncode == 0, done.stderr[-3000:]
    table = rows(tmp_path / "bccd")
    assert len(table) == 2
    assert all(np.isfinite([float(cell) for cell in table[1]]))


def write_odd_folder(root: Path) -> Path:
    """Write images of 200 to 3000 px: grey, CMYK, rotated by EXIF, PNG.

    There are also images without labels and labels without images.
    """
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        images, labels = root / "images" / split, root / "labels" / split
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        for number, (mode, name, size) in enumerate(
            [
                ("RGB", "a.jpg", (200, 260)),
                ("L", "grey.jpg", (400, 300)),
                ("CMYK", "ink.jpg", (320, 240)),
                ("RGB", "turned.jpg", (640, 480)),
                ("RGB", "big.jpg", (3000, 2000)),
                ("RGBA", "see through.png", (300, 500)),
                ("RGB", "no labels.jpg", (256, 256)),
            ]
        ):
            pixels = random.integers(0, 256, (size[1] // 20, size[0] // 20, 3), dtype=np.uint8)
            image = Image.fromarray(pixels).resize(size).convert(mode)
            exif = Image.Exif()
            if name == "turned.jpg":
                exif[0x0112] = 6
            image.save(images / name, exif=exif)
            if name != "no labels.jpg":
                (labels / name).with_suffix(".txt").write_text(f"0 0.5 0.5 0.{number + 2} 0.3\n0 0.2 0.2 0.2 0.2\n")
        (labels / "orphan.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    path = root / "data.yaml"
    path.write_text("path: .\ntrain: images/train\nval: images/val\nnames: [thing]\n")
    return path


def test_trains_on_unusual_images(tmp_path: Path) -> None:
    data = write_odd_folder(tmp_path / "odd set")
    done = train(tmp_path, "--data", str(data), "--epochs", "1", "--batch-size", "4", name="odd")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "train: 7 images, 12 labels, 1 without labels" in done.stdout
    assert "orphan.txt" in done.stdout
    assert all(np.isfinite([float(cell) for cell in rows(tmp_path / "odd")[1]]))


def test_data_errors_are_one_line_and_exit_code_2(tmp_path: Path) -> None:
    data = write_odd_folder(tmp_path / "set")
    cases = {
        "class 3": ("0 0.5 0.5 0.1 0.1\n3 0.5 0.5 0.1 0.1\n", data.read_text()),
        "data.yaml": (None, "path: .\ntrain: [images/train\nval: images/val\nnames: [thing]\n"),
        "nowhere": (None, "path: .\ntrain: images/nowhere\nval: images/val\nnames: [thing]\n"),
        "nc": (None, "path: .\ntrain: images/train\nval: images/val\nnames: [thing]\nnc: 2\n"),
    }
    for message, (label, content) in cases.items():
        label_file = data.parent / "labels" / "train" / "a.txt"
        kept = label_file.read_text()
        label_file.write_text(label or kept)
        data.write_text(content)
        done = train(tmp_path, "--data", str(data))
        label_file.write_text(kept)
        assert done.returncode == 2, done.stderr
        assert message in done.stderr.strip().splitlines()[-1]
        assert "Traceback" not in done.stderr


def test_incomplete_known_data_set_leaves_no_run_folder(tmp_path: Path) -> None:
    (tmp_path / "datasets/coco128/images/train2017").mkdir(parents=True)
    (tmp_path / "datasets/coco128/images/train2017/1.jpg").touch()
    flags = ("--data", "coco128", "--cfg", "yolov5n.yaml", "--device", "cpu")
    done = run_python("-m", "graph_train", *flags, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "datasets/coco128/labels/train2017 is missing or empty" in done.stderr.strip().splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["datasets"]


def test_empty_train_set_is_rejected(tmp_path: Path) -> None:
    data = write_odd_folder(tmp_path / "set")
    for image in (data.parent / "images" / "train").iterdir():
        image.unlink()
    done = train(tmp_path, "--data", str(data))
    assert done.returncode == 2, done.stderr
    assert "no usable image" in done.stderr or "no image" in done.stderr


def test_failing_plots_only_warn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "none")  # makes plots by matplotlib fail
    data = write_odd_folder(tmp_path / "odd set")
    done = train(tmp_path, "--data", str(data), "--epochs", "1", "--batch-size", "4", name="odd")
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("labels.jpg", "results.png"):
        assert f"{name}: plotting failed: " in done.stdout + done.stderr
    assert list(tmp_path.rglob("odd/train_batch0.jpg"))

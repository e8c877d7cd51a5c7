"""`graph-check`: report with known values, exit codes, and no writes outside the allowed places."""

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from graph_train.checks import environment
from graph_train.checks.environment import _extra
from graph_train.cli.check import main
from kernels.build import plugin_build
from kernels.runtime import flow
from tests.pipelines.data_sets import add_image, write_yaml

BOX = "0 .5 .5 .2 .4\n"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Write two train images with 3 boxes, none of class 1, and one val image without boxes; all 40 x 30 px."""
    folder = tmp_path / "set"
    add_image(folder, "train/a.png", BOX + "0 .5 .5 .05 .05\n")
    add_image(folder, "train/b.jpg", "0 .1 .1 .9 .1 .5 .9\n")
    add_image(folder, "val/c.jpg")
    return write_yaml(folder, "path: .\ntrain: images/train\nval: images/val\nnames: [cat, dog]\n")


def report(data: Path, tmp_path: Path, *flags: str) -> tuple[int, dict[str, Any]]:
    code = main(["--data", str(data), "--json", str(tmp_path / "report.json"), *flags])
    return code, json.loads((tmp_path / "report.json").read_text())


def contents(folder: Path) -> dict[Path, tuple[int, bytes]]:
    return {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in folder.rglob("*") if file.is_file()}


def test_report_of_small_data_set(data: Path, tmp_path: Path) -> None:
    code, found = report(data, tmp_path, "--imgsz", "40")
    train, val = found["splits"]["train"], found["splits"]["val"]
    assert code == 0 and found["errors"] == 0 and found["class_names"] == ["cat", "dog"]
    assert (train["images"], train["background_images"], train["boxes"], train["polygons"]) == (2, 0, 3, 1)
    assert train["boxes_per_class"] == {"cat": 3, "dog": 0}
    assert train["width_px"] == {"smallest": 40, "median": 40, "largest": 40}
    assert train["boxes_per_image"] == {"smallest": 1, "median": 1.5, "largest": 2}
    assert train["tiny_boxes"] == 1  # 0.05 of 40 px
    assert train["label_capacities"] == {"16": 2} and train["mosaic_capacity"] == [16, 16]
    assert train["cache"]["decoded"] == train["cache"]["decoded_at_imgsz"] == 2 * 40 * 30 * 3
    files = list((data.parent / "images" / "train").iterdir())
    assert train["cache"]["encoded"] == sum(file.stat().st_size for file in files)
    assert (val["images"], val["background_images"], val["boxes"], val["anchors"]) == (1, 1, 0, None)


def test_anchor_recall_known_values(data: Path, tmp_path: Path) -> None:
    # boxes at 640 px: 128x192, 32x24, 512x384; with ratios up to 4 the anchors 10x13 ... 373x326 reach all
    assert report(data, tmp_path)[1]["splits"]["train"]["anchors"]["best_possible_recall"] == 1.0
    # up to 1.35: 156x198 (1.22) suits the first and 33x23 (1.04) the second, 373x326 (1.37) does not suit the third
    _, found = report(data, tmp_path, "--anchor-t", "1.35")
    assert found["splits"]["train"]["anchors"]["best_possible_recall"] == pytest.approx(2 / 3)


def test_every_problem_is_printed_with_file_and_line(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = data.parent
    add_image(folder, "train/d.jpg", BOX + "5 .5 .5 .1 .1\n0 nan 0 0 0\n")
    (folder / "images" / "train" / "e.jpg").write_bytes(b"")
    (folder / "images" / "val" / "copy.png").write_bytes((folder / "images" / "train" / "a.png").read_bytes())
    code, found = report(data, tmp_path, "--problems", str(tmp_path / "problems.txt"))
    assert code == 1 and found["errors"] == 3
    printed = capsys.readouterr().out
    labels = folder / "labels" / "train" / "d.txt"
    for line in (
        f"{labels}:2: error: class 5, but the data set has 2",
        f"{labels}:3: error: 'nan' is not a finite number",
        f"{folder}/images/train/e.jpg: error: empty file",
        f"{folder}/images/val/copy.png: warning: 2 images of val (this is the first) are also in train",  # c.jpg
        f"{data}: warning: train has no boxes of 1 class: dog",
        "3 errors, 3 warnings",
    ):
        assert line in printed
    assert len((tmp_path / "problems.txt").read_text().splitlines()) == len(found["problems"]) == 6


def test_data_set_is_not_modified(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(data.parent)
    assert main(["--data", str(data), "--plots", str(tmp_path / "plots")]) == 0
    assert {file.name for file in (tmp_path / "plots").iterdir()} == {"labels_train.png", "labels_val.png"}
    for place in ("r.json", "images/r.json", "images/train/r.json", "labels/val/r.json"):
        assert main(["--data", str(data), "--json", str(data.parent / place)]) == 2
        assert "inside the data set" in capsys.readouterr().err
    assert contents(data.parent) == before


def test_user_errors_are_one_line_and_exit_code_2(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = (["--data", "none.yaml"], ["--data", str(data), "--imgsz", "0"], ["--data", str(data), "--cfg", "no"])
    for flags in ([], *settings):
        assert main(flags) == 2
        error = capsys.readouterr().err
        assert error.startswith("graph-check: ") and error.count("\n") == 1
    with pytest.raises(SystemExit) as caught:
        main(["--data", str(data), "--unknown"])
    assert caught.value.code == 2


def test_split_without_usable_image_is_an_error(data: Path, tmp_path: Path) -> None:
    (data.parent / "images" / "val" / "c.jpg").write_text("text")
    code, found = report(data, tmp_path)
    assert code == 1
    assert [problem["text"] for problem in found["problems"] if problem["code"] == "source"] == [
        "val has no usable image"
    ]


def test_environment_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env", "--json", str(tmp_path / "env.json")]) == 0
    facts = {fact["name"]: fact for fact in json.loads((tmp_path / "env.json").read_text())}
    assert facts["oneflow"]["value"] == "0.9.0"
    assert facts["OneFlow loads"]["value"] == facts["DALI loads"]["value"] == "yes"
    assert facts["python"]["value"].startswith("3.10") and not any(fact["fatal"] for fact in facts.values())
    assert "kernel plugin" in capsys.readouterr().out


def test_environment_report_of_user_without_home_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unknown() -> Path:
        raise OSError("user 12345 has no home folder for the cache")

    monkeypatch.setattr("graph_train.checks.environment.user_cache_folder", unknown)
    main(["env"])
    assert "-> user 12345 has no home folder for the cache" in capsys.readouterr().out


def test_wheel_with_kernels_needs_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-compiler")
    assert environment._compiler().remedy
    monkeypatch.setattr(plugin_build, "PACKAGED_FOLDER", tmp_path)
    (tmp_path / plugin_build.LIBRARY_NAME).touch()
    (tmp_path / plugin_build.KEY_NAME).write_text(plugin_build.packaged_key())
    assert environment._compiler() == environment.Fact("compiler", "not needed: the kernels are in the wheel")


def test_environment_report_explains_unusable_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow.cuda, "is_available", lambda: False)
    monkeypatch.setattr(environment, "driver_problem", lambda: "the driver is too old")
    for module, remedy in ((True, "the driver is too old"), (False, "")):
        monkeypatch.setattr(environment, "has_driver_module", lambda module=module: module)
        assert environment._devices() == [
            environment.Fact("GPU", "none that OneFlow can use; training on the CPU", remedy)
        ]


def test_environment_report_suggests_install_commands() -> None:
    installed = _extra("plots", ["numpy==1.26.4; extra == 'plots'"])
    assert (installed.value, installed.remedy) == ("installed", "")
    absent = _extra("more", ["numpy==1.26.4; extra == 'more'", "no-such-package[x]>=2; extra == 'more'"])
    assert absent.value == "not installed: no-such-package" and not absent.fatal
    assert absent.remedy == "optional: uv sync --inexact --extra more"


def test_real_data(bccd: Path, tmp_path: Path) -> None:
    before = contents(bccd.parent)
    code, found = report(bccd, tmp_path)
    assert code == 0 and found["problems"] == []
    assert found["splits"]["train"]["boxes_per_class"] == {"RBC": 2381, "WBC": 214, "Platelets": 209}
    assert found["splits"]["train"]["anchors"]["best_possible_recall"] > 0.99
    assert contents(bccd.parent) == before


def test_train_split_without_labels_is_an_error(data: Path, tmp_path: Path) -> None:
    for file in (data.parent / "labels" / "train").iterdir():
        file.unlink()
    code, found = report(data, tmp_path)
    assert code == 1 and found["errors"] == 1
    errors = [problem["text"] for problem in found["problems"] if problem["severity"] == "error"]
    assert errors[0].startswith("train: none of the 2 images has labels")


def test_results_never_overwrite_data_or_each_other(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(data.parent)
    before = contents(data.parent)
    assert main(["--data", "data.yaml", "--json", "data.yaml"]) == 2
    assert "is a file of the data set and would be overwritten" in capsys.readouterr().err
    assert main(["--data", "data.yaml", "--json", "../a", "--problems", "../a"]) == 2
    assert "give two different files" in capsys.readouterr().err
    assert contents(data.parent) == before and not Path("../a").exists()
    # A list names files anywhere, here in a folder of the user's own.
    Path("list.txt").write_text("images/train/a.png\n")
    listed = write_yaml(data.parent / "listed", "train: ../list.txt\nval: ../list.txt\nnames: [cat, dog]\n")
    for flag, file in (("--json", "labels/train/a.txt"), ("--problems", "images/train/a.png")):
        before = contents(data.parent)
        assert main(["--data", str(listed), flag, file]) == 2
        assert "is a file of the data set and would be overwritten" in capsys.readouterr().err
        assert contents(data.parent) == before
    monkeypatch.chdir("images/train")
    assert main(["--data", str(data)]) == 0  # nothing is written


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("", None),
        ("nowhere/a.json", "nowhere not found; create it first"),
        ("folder", "is a folder; give the name of a file in it"),
        ("socket", "is a block device or socket"),
        ("loop", "is a symbolic link that leads back to itself; remove it"),
    ],
)
@pytest.mark.parametrize("what", ["data", "env"])
def test_unwritable_results_are_rejected_up_front(
    data: Path, what: str, place: str, message: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    tmp_path = data.parents[1]
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "socket"))
    subject = ["env"] if what == "env" else ["--data", str(data)]
    code = main([*subject, "--json", str(tmp_path / place) if place else ""])
    printed = capsys.readouterr()
    if message is None:
        assert code == 0
    else:
        assert code == 2 and message in printed.err and not printed.out


def test_report_can_be_written_to_pipe(data: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    assert main(["--data", str(data), "--json", str(pipe)]) == 0
    assert json.loads(os.read(reader, 1 << 16))["class_names"] == ["cat", "dog"]
    os.close(reader)
    assert pipe.is_fifo()


def test_duplicate_class_names_warn(data: Path, tmp_path: Path) -> None:
    data.write_text(data.read_text().replace("[cat, dog]", "[cat, cat]"))
    code, found = report(data, tmp_path)
    assert code == 0 and [p["code"] for p in found["problems"]].count("class-repeated") == 1


def test_empty_network_name_is_rejected(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(data), "--cfg", ""]) == 2
    assert "--cfg '': empty; give a value, or remove the flag to use yolov5s.yaml" in capsys.readouterr().err

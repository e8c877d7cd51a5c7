"""The command line of graph-bench and the output of each benchmark."""

import json
from importlib import import_module
from pathlib import Path

import pytest

from benchmarks.cli import benchmark_parser, main
from benchmarks.harness.results import envelope, read_result
from benchmarks.registry import BENCHMARKS, COMMANDS


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_implements_the_interface(name: str) -> None:
    module = import_module(BENCHMARKS[name].module)
    for function in ("add_arguments", "run", "tables", "plot"):
        assert callable(getattr(module, function))


@pytest.mark.parametrize("name", [*BENCHMARKS, *COMMANDS])
def test_help_exits_with_0(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0
    assert "--debug" in capsys.readouterr().out


def test_rejects_unknown_subcommand(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["speed"])
    assert stopped.value.code == 2
    assert "ceilings" in capsys.readouterr().err


def test_rejects_missing_folder_before_measuring(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ceilings", "--json", str(tmp_path / "no" / "x.json")]) == 2
    assert "not found; create it first" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ceilings", "--json", "."], "--json .: is a folder; give the name of a file in it"),
        (["ceilings", "--json", ""], "--json '': not a file name"),
        (["ceilings", "--threads", "99999999999"], "--threads 99999999999: must be at most 4096"),
        (["ceilings", "--repeats", "-1"], "--repeats -1: must be at least 1"),
        (["end-to-end", "--batch-size", "0"], "--batch-size 0: must be at least 1"),
        (["pipeline", "--imgsz", "320", "-64"], "--imgsz -64: must be at least 1"),
        (["data-scale", "--images", "0"], "--images 0"),
    ],
)
def test_impossible_settings_are_rejected_before_measuring(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_ceilings_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, picture = tmp_path / "c.json", tmp_path / "c.png"
    assert main(["ceilings", "--repeats", "1", "--json", str(file), "--plot", str(picture)]) == 0
    result = read_result(file)
    assert {row["what"] for row in result["rows"]} == {"float32 matmul", "copy"}
    assert all(row["value"] > 0 for row in result["rows"])
    assert result["machine"]["cores"] >= 1
    assert result["versions"]["oneflow"] == "0.9.0"
    assert result["settings"]["repeats"] == 1
    assert picture.stat().st_size > 0
    assert "float32 matmul" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "flag"),
    [
        *((name, "--repeats=3") for name in ("kills", "accuracy", "soak")),
        *((name, "--quick") for name in ("ceilings", "kernels", "kills", "accuracy", "soak")),
    ],
)
def test_rejects_flags_without_effect(name: str, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([name, flag])
    assert stopped.value.code == 2
    assert f"unknown flag {flag.partition('=')[0]}" in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name, entry in BENCHMARKS.items() if entry.in_all is not None])
def test_flags_used_by_all_exist(name: str) -> None:
    benchmark_parser(name).parse_args(BENCHMARKS[name].in_all or ())


def test_recorded_setting_drops_parent_folders() -> None:
    settings = {
        "data": "/tmp/bccd/bccd.yaml",
        "torch_python": "/root/peer/bin/python",
        "points": ["/home/me/own.yaml:4:320", "yolov5n:4:320"],
        "train_flags": "--hyp=/a/b.yaml --weights ../w.pt --save-dir /runs/one/ --noplots",
        "seeds": 3,
        "work": None,
    }
    assert envelope("accuracy", settings)["settings"] == {
        "data": "bccd.yaml",
        "torch_python": "python",
        "points": ["own.yaml:4:320", "yolov5n:4:320"],
        "train_flags": "--hyp=b.yaml --weights w.pt --save-dir one/ --noplots",
        "seeds": 3,
        "work": None,
    }


def test_allocator_variables_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {"MALLOC_ARENA_MAX": "2", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "OMP_WAIT_POLICY": "passive"}
    for name, value in {**kept, "EDITOR": "vi"}.items():
        monkeypatch.setenv(name, value)
    found = envelope("soak", {})["environment"]
    assert found.items() >= kept.items()
    assert "EDITOR" not in found


def test_rejects_foreign_json(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text(json.dumps({"rows": []}))
    with pytest.raises(ValueError, match="not a graph-bench result"):
        read_result(file)

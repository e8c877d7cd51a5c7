"""`graph-bench report` and `graph-bench all`."""

import os
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cli import main
from benchmarks.harness.results import envelope, is_result, read_result, write_result
from benchmarks.registry import BENCHMARKS
from benchmarks.report import PAGE, RESULTS_FOLDER, newest, page_text, superseded, tables_text


def result(benchmark: str, **body: Any) -> dict[str, Any]:
    settings = {"device": "cpu", "threads": 2, "repeats": 3, "quick": True, "torch_python": "/somewhere/python"}
    return envelope(benchmark, settings) | body


def ceiling_rows(gflops: float) -> list[dict[str, Any]]:
    quartiles = {"value": gflops, "lower_quartile": gflops * 0.9, "upper_quartile": gflops * 1.1, "highest": gflops * 2}
    return [{"what": "float32 matmul", "unit": "GFLOP/s", **quartiles}]


def test_page_has_figures_provenance_and_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, page = tmp_path / "results" / "one", tmp_path / "page.md"
    results.mkdir(parents=True)
    write_result(results / "ceilings.json", result("ceilings", rows=ceiling_rows(123.0)))
    assert main(["report", "--results", str(results.parent), "--out", str(page)]) == 0
    text = page.read_text()
    assert "## ceilings" in text
    assert "| float32 matmul | 123 |" in text
    assert "`--quick`" in text
    assert "/somewhere" not in text
    assert "raw file `ceilings.json`" in text
    assert "images/benchmarks/one-ceilings.png" in text
    assert (tmp_path / "images/benchmarks/one-ceilings.png").stat().st_size > 0
    assert "1 results" in capsys.readouterr().out


def test_shows_newest_result_per_machine(tmp_path: Path) -> None:
    for name, day, value in (("a", "2026-01-02", 2.0), ("b", "2026-01-03", 3.0), ("c", "2026-01-01", 1.0)):
        write_result(tmp_path / f"{name}.json", result("ceilings", rows=ceiling_rows(value)) | {"created": day})
    other = result("ceilings", rows=ceiling_rows(9.0))
    other["machine"]["gpus"] = ["some GPU"]
    write_result(tmp_path / "d.json", other)
    (tmp_path / "e.json").write_text('{"benchmark": "of somebody else"}')
    assert [path.stem for path, _ in newest(tmp_path)] == ["b", "d"]


def test_no_results_is_a_user_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--results", str(tmp_path), "--out", str(tmp_path / "page.md")]) == 2
    assert "no graph-bench results found" in capsys.readouterr().err


DAMAGES: dict[str, dict[str, Any]] = {
    "created is 5": {"created": 5},
    "machine is []": {"machine": []},
    "machine.cores is None": {"machine": {"processor": "x", "cores": None, "gpus": [], "load_average": 0.0}},
    "no 'processor'": {"machine": {}},
    "rows is None": {"rows": None},
    "": {"rows": [{"what": 5}]},
    "benchmark is []": {"benchmark": []},
}


@pytest.mark.parametrize("reason", DAMAGES)
def test_damaged_result_is_named(tmp_path: Path, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "results").mkdir()
    file = tmp_path / "results" / "damaged.json"
    write_result(file, result("ceilings", rows=ceiling_rows(1.0)) | DAMAGES[reason])
    assert main(["report", "--results", str(file.parent), "--out", str(tmp_path / "page.md")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"graph-bench report: {file}: damaged graph-bench result (") and error.count("\n") == 1
    assert reason in error
    assert not (tmp_path / "page.md").exists()


@pytest.mark.parametrize("content", ["[" * 100_000, '{"benchmark": "step", ', "\0", None])
def test_other_files_are_skipped(tmp_path: Path, content: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    if content is None:
        os.mkfifo(tmp_path / "x.json")
    else:
        (tmp_path / "x.json").write_text(content)
    assert main(["report", "--results", str(tmp_path), "--out", str(tmp_path / "page.md")]) == 2
    assert f"{tmp_path / 'x.json'}: skipped, not a graph-bench result" in capsys.readouterr().out


def test_results_are_grouped_by_measured_settings(tmp_path: Path) -> None:
    """Another image size is a new result; a repetition with the same settings replaces the old one."""
    base = {
        "device": "cpu",
        "threads": 2,
        "cfg": "yolov5n.yaml",
        "imgsz": 320,
        "seeds": 3,
        "epochs": 70,
        "data": "/tmp/bccd/bccd.yaml",
    }
    changes: dict[str, dict[str, Any]] = {
        "a": {},
        "b": {"imgsz": 160},
        "c": {"cfg": "yolov5s.yaml"},
        "d": {"data": "shapes"},
        "e": {"threads": 4},
        "f": {"train_flags": "--cos-lr"},
        "g": {"data": "bccd.yaml", "work": "there", "first_seed": 0},
    }
    for day, (name, change) in enumerate(changes.items(), 1):
        kept = envelope("accuracy", {}) | {"rows": [], "settings": base | change, "created": f"2026-01-0{day}"}
        write_result(tmp_path / f"{name}.json", kept)
    # The last one has the settings of the first: the folder is ignored, and the new setting has its default value.
    assert [path.stem for path, _ in newest(tmp_path)] == ["b", "c", "d", "e", "f", "g"]


def steps(day: int, commit: str, *rows: str, **settings: Any) -> dict[str, Any]:
    """Return a result of `step` with rows given as VARIANT:BATCH."""
    cells = (row.split(":") for row in rows)
    found = [{"variant": name, "model": "m", "batch_size": int(batch), "imgsz": 64} for name, batch in cells]
    asked = {"device": "cpu", "threads": 2, "variants": sorted({row.split(":")[0] for row in rows}), **settings}
    around = {"settings": asked, "commit": commit, "created": f"2026-01-0{day}"}
    return envelope("step", {}) | around | {"rows": found}


def test_fully_remeasured_result_is_dropped(tmp_path: Path) -> None:
    written = {
        "few": steps(1, "one", "a:1", "b:1"),
        "all": steps(2, "two", "a:1", "b:1", "c:1", points=["m:1:64"]),
        "other-threads": steps(1, "one", "a:1", "b:1", threads=1),
    }
    for name, content in written.items():
        write_result(tmp_path / f"{name}.json", content)
    assert [path.stem for path, _ in newest(tmp_path)] == ["all", "other-threads"]


def test_older_result_lists_remeasured_rows() -> None:
    older, newer = steps(1, "one", "a:1", "b:1", "a:2"), steps(2, "two", "a:1", "b:1", "c:1")
    found = [(Path("older.json"), older), (Path("newer.json"), newer)]
    assert superseded(older, found) == (
        " **Older code: superseded by `newer.json`, except for a (m batch 2 at 64 px).**"
    )
    assert superseded(newer, found) == ""
    same_code = steps(1, "two", "a:1", "d:1")
    assert superseded(same_code, [*found, (Path("same.json"), same_code)]) == ""
    other_rows = steps(1, "one", "d:1")
    assert superseded(other_rows, [*found, (Path("rest.json"), other_rows)]) == ""


STORED = [path for path in sorted(RESULTS_FOLDER.rglob("*.json")) if is_result(path)]


@pytest.mark.parametrize("path", STORED, ids=lambda path: str(path.relative_to(RESULTS_FOLDER)))
def test_every_stored_result_has_tables(path: Path) -> None:
    tables = import_module(BENCHMARKS[read_result(path)["benchmark"]].module).tables(read_result(path))
    assert tables and all(table.rows for table in tables)


def test_page_has_notes_once_and_no_single_trainings() -> None:
    text = tables_text(read_result(RESULTS_FOLDER / "intel-xeon-2-cores" / "accuracy.json"))
    assert "**float32 - pytorch**" in text and "**amp - float32**" in text and "**Trainings**" not in text
    assert text.count("The side amp computes in bfloat16") == 1


def test_page_is_up_to_date_with_results() -> None:
    """Tables, provenance and remarks are identical, and the plots are exactly those referenced."""
    text = page_text(newest(RESULTS_FOLDER), RESULTS_FOLDER)
    assert PAGE.read_text(encoding="utf-8") == text, "run graph-bench report"
    shown = set(re.findall(r"\]\(images/benchmarks/(.*?)\)", text))
    assert {path.name for path in (PAGE.parent / "images" / "benchmarks").iterdir()} == shown


def test_only_newest_results_are_stored() -> None:
    assert set(STORED) - {path for path, _ in newest(RESULTS_FOLDER)} == set(), "superseded: take them out"


def test_all_continues_after_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--only", "step", "ceilings", "--repeats", "1", "--torch-python", "/bin/false"]
    assert main(["all", "--out", str(tmp_path / "out"), *flags]) == 1
    assert (tmp_path / "out" / "ceilings.json").exists()
    assert (tmp_path / "out" / "ceilings.png").exists()
    assert "pip install torch" in (tmp_path / "out" / "step.txt").read_text()
    assert "failed: step" in capsys.readouterr().err


def test_all_rejects_unknown_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["all", "--out", str(tmp_path), "--only", "speed"]) == 2
    assert "must be one of" in capsys.readouterr().err

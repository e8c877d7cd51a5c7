"""Result files become a page; all benchmarks run with one command."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.cli import main
from benchmarks.report import RESULTS_FOLDER, newest
from benchmarks.results import envelope, write_result


def result(benchmark: str, **body: Any) -> dict[str, Any]:
    settings = {"device": "cpu", "threads": 2, "repeats": 3, "quick": True, "torch_python": "/somewhere/python"}
    return envelope(benchmark, settings) | body


def ceiling_rows(gflops: float) -> list[dict[str, Any]]:
    quartiles = {"value": gflops, "lower_quartile": gflops * 0.9, "upper_quartile": gflops * 1.1, "highest": gflops * 2}
    return [{"what": "float32 matmul", "unit": "GFLOP/s", **quartiles}]


def test_page_has_numbers_origin_and_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_the_newest_result_of_a_machine_is_shown(tmp_path: Path) -> None:
    for name, day, value in (("a", "2026-01-02", 2.0), ("b", "2026-01-03", 3.0), ("c", "2026-01-01", 1.0)):
        write_result(tmp_path / f"{name}.json", result("ceilings", rows=ceiling_rows(value)) | {"created": day})
    other = result("ceilings", rows=ceiling_rows(9.0))
    other["machine"]["gpus"] = ["some GPU"]
    write_result(tmp_path / "d.json", other)
    (tmp_path / "e.json").write_text('{"benchmark": "of somebody else"}')
    assert [path.stem for path, _ in newest(tmp_path)] == ["b", "d"]


def test_no_results_is_the_users_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--results", str(tmp_path), "--out", str(tmp_path / "page.md")]) == 2
    assert "no result of graph-bench" in capsys.readouterr().err


def test_every_kept_result_can_be_read() -> None:
    assert all(body["benchmark"] for _, body in newest(RESULTS_FOLDER))


def test_all_goes_on_after_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--only", "step", "ceilings", "--repeats", "1", "--torch-python", "/bin/false"]
    assert main(["all", "--out", str(tmp_path / "out"), *flags]) == 1
    assert (tmp_path / "out" / "ceilings.json").exists()
    assert (tmp_path / "out" / "ceilings.png").exists()
    assert "pip install torch" in (tmp_path / "out" / "step.txt").read_text()
    assert "failed: step" in capsys.readouterr().err


def test_all_refuses_unknown_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["all", "--out", str(tmp_path), "--only", "speed"]) == 2
    assert "choose from" in capsys.readouterr().err

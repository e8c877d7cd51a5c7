"""`graph-bench step` and `graph-vs-eager`: rows and tables."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.cli import main
from benchmarks.harness import plots
from benchmarks.harness.results import read_result
from benchmarks.step import competitors, whole_step
from benchmarks.step.competitors import Comparison, ComparisonSettings
from tests.graph_train.tiny import TINY

REQUIRED = set("variant model batch_size imgsz images_per_second ms_per_step spread peak_rss_mb compile_s".split())
QUARTILES = {"median": 2.0, "lower_quartile": 1.5, "upper_quartile": 2.5}


def measured(variant: str, ms: float) -> dict[str, Any]:
    rest = {
        "lower_quartile": ms,
        "upper_quartile": ms,
        "images_per_second": 4 / ms * 1e3,
        "peak_rss_mb": 1.0,
        "compile_s": None,
        "gflops_per_second": 50.0,
        "share_of_matmul": 0.5,
    }
    return {"variant": variant, "model": "m", "batch_size": 4, "imgsz": 64, "ms_per_step": ms, **rest}


def row(variant: str, ms: float, group: int = 1) -> dict[str, Any]:
    return {"group": group, **measured(variant, ms)}


def pair(against: str, times: float, group: int = 1) -> dict[str, Any]:
    point = {"model": "m", "batch_size": 4, "imgsz": 64}
    return {"group": group, **point, "variant": "a", "against": against, **QUARTILES, "median": times}


def body(rows: list[dict[str, Any]], pairs: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    ceilings = [{"what": "float32 matmul", "highest": 100.0, "without": ["OPENBLAS_CORETYPE"]}]
    around = {"ceilings": ceilings, "notes": []}
    return {"rows": rows, "speedups": pairs, **around, **more}


GROUPED = body(
    [row("a", 10, 1), row("b", 20, 1), row("c", 30, 1), row("d", 40, 1), row("a", 12, 2), row("e", 36, 2)],
    [pair("b", 2.0, 1), pair("c", 3.0, 1), pair("d", 4.0, 1), pair("e", 3.0, 2)],
)


def shown(result: dict[str, Any], column: str) -> list[str]:
    (table,) = whole_step.tables(result)
    return [cells[table.columns.index(column)] for cells in table.rows]


def test_first_variant_has_row_in_every_group(monkeypatch: pytest.MonkeyPatch) -> None:
    variants = list(competitors.VARIANTS)[:6]

    def compared(_point: object, group: list[str], _setting: object) -> Comparison:
        return Comparison([measured(name, 10.0) for name in group], {name: [10.0] for name in group}, [])

    monkeypatch.setattr(whole_step, "compare", compared)
    monkeypatch.setattr(whole_step, "find_torch", lambda _: Path("python"))
    monkeypatch.setattr(whole_step, "measured_setting", lambda *_: (ComparisonSettings("cpu", 1, 1, None), []))
    flags = step_flags(variants)
    found = whole_step.run(flags)
    assert [(item["group"], item["variant"]) for item in found["rows"]] == [
        *((1, name) for name in variants[:4]),
        (2, variants[0]),
        *((2, name) for name in variants[4:]),
    ]
    assert [(item["group"], item["against"]) for item in found["speedups"]] == [
        *((1, name) for name in variants[1:4]),
        *((2, name) for name in variants[4:]),
    ]


def step_flags(variants: list[str]) -> Any:
    from benchmarks.cli import benchmark_parser

    return benchmark_parser("step").parse_args(["--points", "m:4:64", "--variants", *variants])


def test_groups_are_shown_if_several() -> None:
    assert shown(GROUPED, "group") == ["1", "1", "1", "1", "2", "2"]
    assert shown(GROUPED, "variant") == ["a", "b", "c", "d", "a", "e"]
    assert [cell[:4] for cell in shown(GROUPED, "baseline speedup")] == ["1", "2.00", "3.00", "4.00", "1", "3.00"]
    alone = body([row("a", 10, 1), row("b", 20, 1)], [pair("b", 2.0, 1)])
    assert whole_step.tables(alone)[0].columns == whole_step.COLUMNS


def test_every_group_has_a_bar(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drawn: dict[str, Any] = {}
    monkeypatch.setattr(plots, "bars", lambda groups, *_, **__: drawn.update(groups))
    whole_step.plot(GROUPED, tmp_path / "s.png")
    assert list(drawn["m batch 4 at 64 px"]) == ["a", "b", "c", "d", "a, group 2", "e"]
    assert drawn["m batch 4 at 64 px"]["a"][0] == pytest.approx(400)
    assert drawn["m batch 4 at 64 px"]["a, group 2"][0] == pytest.approx(4 / 0.012)


def test_half_precision_has_no_share_of_float32_ceiling() -> None:
    settings, size = ComparisonSettings("cpu", 1, 1, None, matmul_gflops=100.0), {"step_gflop": 0.5, "images": 4}
    names = ("plugin-graph", "plugin-graph-amp", "pytorch-amp")
    rates = [competitors._rate(name, [10.0], size, settings)["share_of_matmul"] for name in names]
    assert rates == [pytest.approx(0.5), None, None]
    both = body([{**row(name, 10), "share_of_matmul": rate} for name, rate in zip(names, rates, strict=True)], [])
    assert shown(both, "share of matmul") == ["50%", "–", "–"]
    assert any("half precision" in note for note in whole_step.tables(both)[0].notes)


def tiny_point(folder: Path) -> str:
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    return "tiny.yaml:2:64"


@pytest.mark.slow
def test_step_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--points", tiny_point(tmp_path), "--variants", "plugin-graph", "plugin-eager", "--repeats", "1"]
    assert main(["step", *flags, "--json", "s.json", "--plot", "s.png"]) == 0
    result = read_result(tmp_path / "s.json")
    assert [(item["variant"], item["group"]) for item in result["rows"]] == [("plugin-graph", 1), ("plugin-eager", 1)]
    for item in result["rows"]:
        assert item.keys() >= REQUIRED
        assert item["images_per_second"] == pytest.approx(2 / item["ms_per_step"] * 1e3)
        assert item["pytorch"] is item["opencv"] is item["python"] is None
    graph, eager = result["rows"]
    assert graph["compile_s"] > 0 and eager["compile_s"] is None
    assert result["speedups"][0]["median"] == pytest.approx(eager["ms_per_step"] / graph["ms_per_step"])
    assert (tmp_path / "s.png").stat().st_size > 0
    assert "plugin-eager" in capsys.readouterr().out


@pytest.mark.slow
def test_graph_vs_eager_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--points", tiny_point(tmp_path), "--repeats", "1", "--json", "g.json", "--plot", "g.png"]
    assert main(["graph-vs-eager", *flags]) == 0
    result = read_result(tmp_path / "g.json")
    assert [item["variant"] for item in result["rows"]] == ["plugin-graph", "plugin-eager"]
    assert all(item.keys() >= REQUIRED for item in result["rows"])
    assert 0 < result["rows"][0]["main_thread_ms"] < result["rows"][1]["main_thread_ms"]
    assert all(item["main_thread_ms"] < item["process_ms"] for item in result["rows"])
    (point,) = result["points"]
    graph, eager = (item["ms_per_step"] for item in result["rows"])
    assert point["speedup"]["median"] == pytest.approx(eager / graph)
    assert (tmp_path / "g.png").stat().st_size > 0

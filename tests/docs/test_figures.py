"""All measured figures in README.md and the documentation agree with the raw result files."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.docs.figure_sources import SourceError, number_of
from tests.docs.figures import DOCUMENTS, Claims, measured_looking, problems, read_claims, write

POINT = {"model": "m", "batch_size": 2, "imgsz": 64}
STEPS = ((1, "ours", 20.0, 1200.0), (1, "slow", 30.0, 1000.0), (2, "ours", 22.0, 1210.0), (2, "half", 11.0, 800.0))
RATIOS = ((1, "slow", 1.526), (2, "half", 0.5))
STEP: dict[str, Any] = {
    "format": 1,
    "benchmark": "step",
    "rows": [
        {"group": group, "variant": name, "ms_per_step": ms, "peak_rss_mb": mb, **POINT}
        for group, name, ms, mb in STEPS
    ],
    "speedups": [
        {"group": group, "variant": "ours", "against": name, "median": median, **POINT}
        for group, name, median in RATIOS
    ],
    "growth": {"rss": {"grown": -0.0126}},
}
FILES = {"step": "step.json", "epochs": "epochs.csv"}


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "step.json").write_text(json.dumps(STEP))
    (tmp_path / "epochs.csv").write_text(" epoch, metrics/mAP_0.5, metrics/mAP_0.5:0.95\n0, 0.5, 0.2\n1, 0.4, 0.3\n")
    # Figures are recomputed from this folder instead of the stored results.
    monkeypatch.setattr("tests.docs.figures.RESULTS_FOLDER", tmp_path)
    return tmp_path


def document(folder: Path, text: str, *measured: str, not_measured: tuple[str, ...] = ()) -> tuple[Path, Claims]:
    path = folder / "page.md"
    path.write_text(text, encoding="utf-8")
    return path, Claims(FILES, {"page.md": measured}, {"page.md": not_measured})


def found(folder: Path, text: str, *measured: str, not_measured: tuple[str, ...] = ()) -> list[str]:
    path, claims = document(folder, text, *measured, not_measured=not_measured)
    return problems(claims, folder, [path])


def test_documented_figures_match_raw_files() -> None:
    assert problems(read_claims()) == []


def test_documents_and_claims_are_not_empty() -> None:
    claims = read_claims()
    assert {"README.md", "kernels.md", "speed.md"} <= {path.name for path in DOCUMENTS}
    assert "benchmarks.md" not in {path.name for path in DOCUMENTS}
    assert sum(sentence.count("{") for sentences in claims.measured.values() for sentence in sentences) > 50


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("step ms m:2:64 ours", 20.0),
        ("step ms m:2:64 ours half", 22.0),
        ("step peak-mb m:2:64 half", 800.0),
        ("step memory m:2:64 ours slow", 1.2),
        ("step speedup m:2:64 ours slow", 1.526),
        ("step speedup m:2:64 half ours", 2.0),
        ("step speedup m:2:64 half slow", 3.052),
        ("step value growth.rss.grown", -0.0126),
        ("step row rows variant=slow ms_per_step", 30.0),
        ("step lowest rows ms_per_step", 11.0),
        ("step highest rows variant=ours peak_rss_mb", 1210.0),
        ("epochs best-epoch metrics/mAP_0.5", 0.4),
    ],
)
def test_statistics_known_values(results: Path, source: str, expected: float) -> None:
    assert number_of(source, FILES, results) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("step", "write FILE STATISTIC"),
        ("peers ms m:2:64 ours", "no file 'peers'"),
        ("step eval 1", "no statistic 'eval'"),
        ("step ms m:2:64 theirs", "no group of m:2:64 has theirs"),
        ("step speedup m:4:64 ours slow", "no ratios at m:4:64"),
        ("step speedup m:2:64 half slow upper_quartile", "no turns of half and slow"),
        ("step value growth.cpu.grown", "no such number"),
        ("step row rows variant=other ms_per_step", "no row of rows"),
        ("step ms", "no such number"),
    ],
)
def test_source_without_number_is_reported(results: Path, source: str, reason: str) -> None:
    with pytest.raises(SourceError, match=reason):
        number_of(source, FILES, results)


def test_wrong_figure_is_reported_with_line(results: Path) -> None:
    sentence = "takes {step ms m:2:64 ours} ms and is {step speedup m:2:64 ours slow} times as fast"
    assert found(results, "One.\nIt takes 20 ms\nand is 1.53 times as fast.\n", sentence) == []
    wrong = found(results, "One.\nIt takes 20 ms\nand is 1.54 times as fast.\n", sentence)
    assert wrong == ["page.md:3: 1.54 is 1.53 by {step speedup m:2:64 ours slow}"]


def test_figures_keep_written_format(results: Path) -> None:
    text = "1,200 MB and −0.013 and 20.00 ms"
    sentence = "{step peak-mb m:2:64 ours} MB and {step value growth.rss.grown} and {step ms m:2:64 ours} ms"
    assert found(results, text, sentence) == []
    assert len(found(results, text.replace("1,200", "1200"), sentence)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "2 times as fast",
        "10 % less",
        "168 ms",
        "19 s",
        "500 images/s",
        "1,351 MB",
        "mAP50 0.8",
        "by 1.03",
        "loss 0.012",
    ],
)
def test_measurement_without_source_is_reported(results: Path, text: str) -> None:
    wrong = found(results, f"First line.\n{text}\n")
    assert len(wrong) == 1
    assert wrong[0].startswith("page.md:2: ")
    assert "has no source" in wrong[0]
    assert found(results, f"First line.\n{text}\n", not_measured=(text,)) == []


@pytest.mark.parametrize(
    "text", ["`--imgsz 1.25 ms`", "```\n12 ms\n```", "OneFlow 0.9.0", "mAP50-95", "[a](x-1.25.md)", "3 files, 320 px"]
)
def test_code_versions_and_counts_need_no_source(text: str) -> None:
    assert list(measured_looking(text)) == []


def test_every_figure_in_sentence_needs_source(results: Path) -> None:
    text = "takes 20 and 30 ms"
    assert len(found(results, text, "takes {step ms m:2:64 ours} and")) == 1
    assert found(results, text, "takes {step ms m:2:64 ours} and {step ms m:2:64 slow} ms") == []


def test_unused_claims_are_reported(results: Path) -> None:
    path, claims = document(results, "Nothing.", "takes {step ms m:2:64 ours} ms", not_measured=("60 s",))
    wrong = problems(claims, results, [path])
    assert len(wrong) == 2
    assert any("the sentence of figures.yaml is not there: takes {step ms m:2:64 ours} ms" in line for line in wrong)
    assert any("the phrase of figures.yaml is not there, or has no figure: 60 s" in line for line in wrong)
    assert problems(Claims({}, {"gone.md": ()}, {}), results, [path]) == [
        "gone.md: in figures.yaml, but not a document"
    ]


def test_write_updates_figures(results: Path) -> None:
    sentence = (
        "takes {step ms m:2:64 ours} ms, {step speedup m:2:64 ours slow} times as fast, {step value growth.rss.grown}"
    )
    path, claims = document(results, "It takes 7 ms, 9.99 times\nas fast, +0.001.\n", sentence)
    write(claims, results)
    assert path.read_text(encoding="utf-8") == "It takes 20 ms, 1.53 times\nas fast, −0.013.\n"
    assert problems(claims, results, [path]) == []


def test_moved_result_needs_one_changed_line(results: Path) -> None:
    """Changing a path in `files` is enough to take a figure from another result."""
    rows = [row | {"ms_per_step": 40.0} for row in STEP["rows"]]
    (results / "newer.json").write_text(json.dumps(STEP | {"rows": rows}))
    path, claims = document(results, "takes 20 ms", "takes {step ms m:2:64 ours} ms")
    moved = Claims({"step": "newer.json"}, claims.measured, claims.not_measured)
    assert problems(moved, results, [path]) == ["page.md:1: 20 is 40 by {step ms m:2:64 ours}"]

"""Label files: known rows, every kind of bad row, and random content."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipelines.data import labels
from pipelines.data.labels import (
    MAX_REPORTS_PER_FILE,
    MAX_ROWS,
    LabelRows,
    box_corners,
    parse_label_files,
    parse_labels,
)

FILE = Path("a.txt")


def parse(content: str | bytes, num_classes: int | None = 3) -> LabelRows:
    return parse_labels(content if isinstance(content, bytes) else content.encode(), FILE, num_classes=num_classes)


def test_boxes_are_kept_as_written() -> None:
    rows = parse("1 0.5 0.25 0.5 0.125\n0 1 1 1 1\n2.0 0.1 0.2 0.3 1e-2")
    np.testing.assert_array_equal(
        rows.boxes, np.array([[1, 0.5, 0.25, 0.5, 0.125], [0, 1, 1, 1, 1], [2, 0.1, 0.2, 0.3, 0.01]], np.float32)
    )
    assert rows.boxes.dtype == np.float32
    assert rows.segments == () and rows.problems == () and rows.usable


def test_polygon_gives_bounding_box_and_boxes_give_corners() -> None:
    rows = parse("1 0.25 0.5 0.75 0.5 0.5 1.0\n0 0.5 0.5 0.5 0.25\n")
    # triangle: x 0.25 ... 0.75, y 0.5 ... 1
    np.testing.assert_array_equal(rows.boxes, np.array([[1, 0.5, 0.75, 0.5, 0.5], [0, 0.5, 0.5, 0.5, 0.25]]))
    np.testing.assert_array_equal(rows.segments[0], [[0.25, 0.5], [0.75, 0.5], [0.5, 1.0]])
    np.testing.assert_array_equal(rows.segments[1], [[0.25, 0.375], [0.75, 0.375], [0.75, 0.625], [0.25, 0.625]])
    assert all(polygon.dtype == np.float32 for polygon in rows.segments)


@pytest.mark.parametrize("content", ["", "\n \r\n\t\n", "\ufeff"])
def test_empty_file_is_background(content: str) -> None:
    rows = parse(content)
    assert rows.boxes.shape == (0, 5) and rows.boxes.dtype == np.float32
    assert rows.usable and rows.problems == ()


@pytest.mark.parametrize(
    "content",
    [b"\xef\xbb\xbf0 .5 .5 .1 .1\n", b"0 .5 .5 .1 .1\r\n", b"0\t.5  .5 .1 .1 ", b"\n\n0 .5 .5 .1 .1\r\r"],
    ids=["bom", "crlf", "tabs", "blank lines and old line ends"],
)
def test_equivalent_row_formats(content: bytes) -> None:
    np.testing.assert_allclose(parse(content).boxes, [[0, 0.5, 0.5, 0.1, 0.1]], rtol=1e-6)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("0 .5 .5 .1", "4 columns"),
        ("0 .5 .5 .1 .1 .9", "6 columns"),
        ("0 .5 .5 .1 .1 .9 .9 .3", "8 columns"),
        ("0 .5 .5 .1 x", "'x' is not a number"),
        ("0,.5,.5,.1,.1", "1 column (separate them with spaces); expected 5"),
        ("cat .5 .5 .1 .1", "'cat' is not a number"),
        ("0 .5 .5 .1 nan", "'nan' is not a finite number"),
        ("0 .5 .5 inf .1", "'inf' is not a finite number"),
        ("0 .5 .5 .1 1_0", "'1_0' is not a number"),
        ("-1 .5 .5 .1 .1", "class '-1' is not an integer"),
        ("0.5 .5 .5 .1 .1", "class '0.5' is not an integer"),
        ("1e30 .5 .5 .1 .1", "class '1e30' is too large; at most 99999"),
        ("1000000000 .5 .5 .1 .1", "class '1000000000' is too large"),
        ("0 1.01 .5 .1 .1", "coordinate '1.01' is outside"),
        ("0 -0.01 .5 .1 .1", "coordinate '-0.01' is outside"),
        ("0 320 240 64 48", "divide pixels by the image size"),
        ("0 .5 .5 0 .1", "no area"),
        ("0 .1 .1 .2 .1 .3 .1", "no area"),
        ("0 .5 .5 .1 \u0665", "is not a number"),
    ],
)
def test_bad_row_is_dropped_and_others_kept(row: str, reason: str) -> None:
    rows = parse(f"0 .5 .5 .1 .1\n\n{row}\n1 .5 .5 .1 .1\n")
    assert rows.boxes[:, 0].tolist() == [0, 1] and rows.usable
    (problem,) = rows.problems
    assert (problem.file, problem.line, problem.severity, problem.code) == (FILE, 3, "error", "row-dropped")
    assert reason in problem.text and problem.text.endswith("row dropped")


def test_unnamed_class_has_its_own_problem_kind() -> None:
    rows = parse("0 .5 .5 .1 .1\n3 .5 .5 .1 .1")
    (problem,) = rows.problems
    assert (problem.line, problem.code) == (2, "class-range")
    assert "class 3, but the data set has 3 (0 to 2)" in problem.text
    assert parse("3 .5 .5 .1 .1", num_classes=None).problems == ()


def test_duplicate_rows_are_removed_in_file_order() -> None:
    rows = parse("1 .5 .5 .1 .1\n0 .2 .2 .1 .1\n1 0.50 .5 .1 .1\n")
    assert rows.boxes[:, 0].tolist() == [1, 0]
    (problem,) = rows.problems
    assert (problem.line, problem.severity, problem.code) == (3, "warning", "row-repeated")
    assert "repeats line 1" in problem.text


@pytest.mark.parametrize("content", [b"\x00\x01", b"\xff\xfe0\x00 \x00", b"\x89PNG\r\n\x1a\n", b"junk", b"0 9 9 9 9"])
def test_file_without_valid_row_is_not_background(content: bytes) -> None:
    rows = parse(content)
    assert not rows.usable and len(rows.boxes) == 0
    assert rows.problems[-1].code == "label-unusable" and "image skipped" in rows.problems[-1].text


def test_hundred_thousand_rows() -> None:
    same = parse("0 .5 .5 .1 .1\n" * 100_000)
    assert len(same.boxes) == 1 and len(same.problems) == MAX_REPORTS_PER_FILE + 1
    assert "99898 more invalid or repeated rows" in same.problems[-1].text
    different = parse("".join(f"0 .5 .5 .1 {n / 200_000:.7f}\n" for n in range(1, 100_001)))
    assert not different.usable and f"at most {MAX_ROWS}" in different.problems[0].text


def test_class_out_of_range_is_reported_after_many_bad_rows() -> None:
    rows = parse("0 .5 .5 .1 .1\n" + "x\n" * 500 + "7 .5 .5 .1 .1\n")
    assert [problem.line for problem in rows.problems if problem.code == "class-range"] == [502]


def test_box_corners_run_clockwise_from_upper_left() -> None:
    corners = box_corners(np.array([5.0, 5.0, 2.0, 4.0], np.float32))
    np.testing.assert_array_equal(corners, [[4, 3], [6, 3], [6, 7], [4, 7]])


tokens = st.one_of(
    st.floats(width=32).map(repr),
    st.floats(0, 1, width=32).map(repr),
    st.integers(-3, 5).map(str),
    st.text(max_size=5),
    st.sampled_from(["nan", "-inf", "1e999", "0x1", "1_0", "١", "\ufeff", "\0"]),
)
lines = st.lists(tokens, max_size=12).map(" ".join)
texts = st.lists(lines, max_size=8).map(lambda rows: "\n".join(rows).encode("utf-8", "surrogatepass"))


@given(st.one_of(st.binary(max_size=300), texts), st.sampled_from([None, 1, 3]))
@example(b"0 0.5 0.5 1e-7 0.5", 3)
@example(b"1 1 1 1 1 1 1", 3)
def test_any_content_gives_valid_rows_or_problems(content: bytes, num_classes: int | None) -> None:
    rows = parse_labels(content, FILE, num_classes=num_classes)
    assert rows.boxes.dtype == np.float32 and rows.boxes.shape == (len(rows.boxes), 5)
    assert np.isfinite(rows.boxes).all()
    assert (rows.boxes[:, 1:] >= 0).all() and (rows.boxes[:, 1:] <= 1).all() and (rows.boxes[:, 3:] > 0).all()
    assert (rows.boxes[:, 0] == np.floor(rows.boxes[:, 0])).all()
    if num_classes is not None:
        assert (rows.boxes[:, 0] < num_classes).all()
    assert len(rows.segments) in (0, len(rows.boxes))
    assert len(np.unique(rows.boxes, axis=0)) == len(rows.boxes)
    lines_with_text = sum(bool(line.split()) for line in content.removeprefix(b"\xef\xbb\xbf").splitlines())
    if rows.usable:
        assert len(rows.boxes) + len(rows.problems) == lines_with_text
    else:
        assert rows.problems
    assert all("\n" not in str(problem) for problem in rows.problems)


def same(first: LabelRows, second: LabelRows) -> bool:
    return (
        first.boxes.tobytes() == second.boxes.tobytes()
        and first.boxes.shape == second.boxes.shape
        and [polygon.tobytes() for polygon in first.segments] == [polygon.tobytes() for polygon in second.segments]
        and (first.problems, first.usable) == (second.problems, second.usable)
    )


good_rows = st.lists(
    st.tuples(st.integers(0, 4), *[st.floats(0, 1.25, width=32)] * 4).map(lambda row: " ".join(map(str, row))),
    max_size=6,
).map(lambda rows: "\n".join(rows).encode())


@given(st.lists(st.one_of(st.binary(max_size=60), texts, good_rows), max_size=6), st.sampled_from([None, 1, 3]))
@example([b"0 .5 .5 .1 .1\n", b"0 0.5 0.5 0.1 0.1\n1 0.5 0.5 0.1 0.1 \r\n", b"1 1.0000000001 1 1 1"], 3)
@example([b"1 1 1 1 1\n" * 2, b"", b"9 1 1 1 1", b"0 1 1 1 1e-7", b"2 1 1 1 1e-3\n2 1 1 1 0.001000000001"], 3)
@example([b"0 1 1 1 1 0 1 1 1 1\n", b"0 1 1 1\n1 0 1 1 1 1\n"], 3)
def test_batch_parsing_matches_single_files(contents: list[bytes], num_classes: int | None) -> None:
    files = [Path(f"{number}.txt") for number in range(len(contents))]
    alone = [parse_labels(one, file, num_classes=num_classes) for one, file in zip(contents, files, strict=True)]
    together = parse_label_files(contents, files, num_classes=num_classes)
    assert len(together) == len(alone) and all(map(same, together, alone))


def test_valid_files_skip_row_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels, "parse_labels", None)
    found = parse_label_files([b"0 0.5 0.5 0.1 0.1\n2 1 1 1 1", b"1 0.5 0.25 1e-1 0.1\r\n"], ["a", "b"], num_classes=3)
    assert [rows.boxes[:, 0].tolist() for rows in found] == [[0, 2], [1]]


def test_too_many_boxes_raise_in_batch() -> None:
    content = "".join(f"0 0.5 0.5 0.1 {n / 20_000:.7f}\n" for n in range(1, MAX_ROWS + 2)).encode()
    (found,) = parse_label_files([content], [FILE], num_classes=3)
    assert not found.usable and f"at most {MAX_ROWS}" in found.problems[0].text

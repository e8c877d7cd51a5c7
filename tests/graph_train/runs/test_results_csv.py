"""`results.csv`: YOLOv5's bytes, resuming, incomplete lines."""

import csv
from pathlib import Path

import pytest

from graph_train.runs.results_csv import COLUMNS, HEADER, EpochRow, ResultsCsv, differing_epoch


def _row(epoch: int) -> EpochRow:
    return EpochRow(
        epoch,
        train_losses=(0.12345678, 0.02, 1e-7),
        metrics=(0.5, 0.25, 1 / 3, 0.1),
        val_losses=(0.1, 0.0, 123456.0),
        learning_rates=(0.0701, 0.0033333333, 0.0033333333),
    )


def _reference_line(epoch: int) -> str:
    # as train.py's logger formats a row
    values = (epoch, *_row(epoch).values())
    return ("%20.5g," * 14 % values).rstrip(",")


def test_bytes_match_yolov5(tmp_path: Path) -> None:
    file = ResultsCsv(tmp_path / "results.csv")
    file.append(_row(0))
    file.append(_row(1))
    header = ("%20s," * 14 % COLUMNS).rstrip(",")
    expected = f"{header}\n{_reference_line(0)}\n{_reference_line(1)}\n"
    assert (tmp_path / "results.csv").read_text() == expected
    assert len(COLUMNS) == 14


def test_csv_reader_parses_columns(tmp_path: Path) -> None:
    ResultsCsv(tmp_path / "results.csv").append(_row(7))
    with (tmp_path / "results.csv").open() as stream:
        rows = [{key.strip(): float(value) for key, value in row.items()} for row in csv.DictReader(stream)]
    assert rows[0]["epoch"] == 7
    assert rows[0]["metrics/mAP_0.5"] == 0.33333


@pytest.mark.parametrize("tail", ["", "                   2,     0.1", "garbage\udcff"])
def test_resumed_file_matches_uninterrupted(tmp_path: Path, tail: str) -> None:
    whole, cut = ResultsCsv(tmp_path / "whole.csv"), ResultsCsv(tmp_path / "cut.csv")
    for epoch in range(4):
        whole.append(_row(epoch))
        if epoch < 3:
            cut.append(_row(epoch))
    with (tmp_path / "cut.csv").open("ab") as stream:
        stream.write(tail.encode(errors="surrogateescape"))  # a write that a power cut ended
    resumed = ResultsCsv(tmp_path / "cut.csv", cut.lines[:2])
    resumed.begin()
    for epoch in (2, 3):
        resumed.append(_row(epoch))
    assert (tmp_path / "cut.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_deleted_rows_are_restored(tmp_path: Path) -> None:
    first = ResultsCsv(tmp_path / "results.csv")
    first.append(_row(0))
    content = (tmp_path / "results.csv").read_bytes()
    (tmp_path / "results.csv").unlink()
    ResultsCsv(tmp_path / "results.csv", first.lines).begin()
    assert (tmp_path / "results.csv").read_bytes() == content


def test_unwritten_row_is_written_with_next_one(tmp_path: Path) -> None:
    file = ResultsCsv(tmp_path / "later" / "results.csv")
    with pytest.raises(OSError, match=r"results\.csv"):
        file.append(_row(0))
    (tmp_path / "later").mkdir()
    file.append(_row(1))
    assert (tmp_path / "later" / "results.csv").read_text().count("\n") == 3


def test_new_run_in_old_folder_truncates_file(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    ResultsCsv(path).begin()  # no file yet
    assert not path.exists()
    ResultsCsv(path).append(_row(0))
    again = ResultsCsv(path)
    again.begin()
    assert path.read_text() == HEADER + "\n"
    again.append(_row(0))
    assert path.read_text().count("epoch") == 1


def test_differing_epoch_is_the_first_with_other_numbers(tmp_path: Path) -> None:
    path, rows = tmp_path / "results.csv", [_row(epoch).line() for epoch in range(4)]
    assert differing_epoch(path, rows) is None  # no file
    path.write_text("\n".join([HEADER, *rows, ""]))
    for saved in ([], rows[:2], rows, [*rows, _row(4).line()]):
        assert differing_epoch(path, saved) is None
    # As a spreadsheet writes it, and with a write that a power cut ended.
    path.write_text("\n".join([HEADER, *(row.replace(" ", "").replace("1e-07", "0.0000001") for row in rows), "4,0.1"]))
    assert differing_epoch(path, [*rows, _row(4).line()]) is None
    path.write_bytes(path.read_bytes() + b"\xff\x00\n")
    assert differing_epoch(path, [*rows, *rows]) is None
    other = [rows[0], rows[1], rows[2].replace("0.25", "0.26"), rows[3]]
    assert differing_epoch(path, other) == 2
    assert differing_epoch(path, other[:2]) is None
    unknown = rows[0].replace("0.25", " nan")
    path.write_text(f"{HEADER}\n{unknown}\n")
    assert differing_epoch(path, [unknown]) is None and differing_epoch(path, rows) == 0


def test_foreign_file_is_not_modified(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.write_text("a,b,c\n1,2,3\n")
    with pytest.raises(ValueError, match=r"results\.csv:1"):
        ResultsCsv(path).begin()
    assert path.read_text() == "a,b,c\n1,2,3\n"

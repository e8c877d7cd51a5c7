"""Tests on another checkout import its code, and only failed assertions count as failures."""

import sys
from pathlib import Path

import pytest

from tests.gpu.on_checkout import results

TESTS = """
import pytest
import of_the_checkout

def test_passes() -> None:
    assert of_the_checkout.NUMBER == 5

def test_wrong() -> None:
    assert of_the_checkout.NUMBER == 6, "the reason"

def test_missing_name() -> None:
    of_the_checkout.other()

@pytest.mark.distributed
def test_skipped() -> None:
    pytest.skip("no such machine")
"""


def test_results_of_checkout(tmp_path: Path) -> None:
    (tmp_path / "checkout").mkdir()
    (tmp_path / "checkout" / "of_the_checkout.py").write_text("NUMBER = 5\n")
    (tmp_path / "test_one.py").write_text(TESTS)
    assert results(tmp_path / "checkout", Path(sys.executable), [tmp_path / "test_one.py"]) == {
        "test_passes": "PASS",
        "test_wrong": "FAIL",
        "test_missing_name": "ERROR",
        "test_skipped": "SKIP",
    }
    assert {path.name for path in (tmp_path / "checkout").iterdir()} == {"of_the_checkout.py"}


def test_tests_that_cannot_start_raise(tmp_path: Path) -> None:
    (tmp_path / "test_one.py").write_text(TESTS)
    assert set(results(tmp_path, Path(sys.executable), [tmp_path / "test_one.py"]).values()) == {"ERROR"}
    with pytest.raises(FileNotFoundError):
        results(tmp_path, tmp_path / "no-python", [tmp_path / "test_one.py"])

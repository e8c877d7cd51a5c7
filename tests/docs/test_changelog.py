"""CHANGELOG.md lists each change once."""

import re
from collections import Counter
from pathlib import Path

CHANGELOG = Path(__file__).resolve().parents[2] / "CHANGELOG.md"


def test_each_change_is_listed_once() -> None:
    entries = re.split(r"(?m)^- ", CHANGELOG.read_text(encoding="utf-8"))[1:]
    repeated = [entry for entry, count in Counter(" ".join(entry.split()) for entry in entries).items() if count > 1]
    assert len(entries) > 20
    assert repeated == []

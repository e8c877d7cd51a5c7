"""The README is short and shows a result; links of pages outside the site are valid."""

import re
from pathlib import Path

import pytest

from tests.docs.commands import ROOT
from tests.docs.picture import PICTURE

MAX_LINES = 65
"""Maximum number of lines: a screen and a half."""
MAX_PICTURE_BYTES = 200_000
PAGES = (*ROOT.glob("*.md"), *(ROOT / "benchmarks").rglob("*.md"))
"""Pages outside the site; `mkdocs build --strict` checks the links within it."""


def test_readme_is_short_and_shows_result() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= MAX_LINES
    assert f"]({PICTURE.relative_to(ROOT)})" in text
    assert PICTURE.stat().st_size < MAX_PICTURE_BYTES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_are_valid(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (page.parent / link).exists()] == []

"""The documentation builds without warnings, and the messages in it exist in the source."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.commands import DOCUMENTS, ROOT
from tests.docs.references import Reference, references

MESSAGES = re.findall(r"^### `(.+)`$", (ROOT / "docs/guide/messages.md").read_text(), re.MULTILINE)


def test_site_builds_in_strict_mode(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    ran = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "WARNING" not in ran.stderr
    assert (tmp_path / "guide/own-data/index.html").is_file()


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Return all string literals in the sources, and the fixed parts of f-strings."""
    files = [
        path
        for package in ("graph_train", "pipelines", "models", "kernels")
        for path in ROOT.glob(f"{package}/**/*.py")
    ]
    return [
        node.value
        for path in files
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]


def test_documentation_explains_messages() -> None:
    assert len(MESSAGES) >= 10


@pytest.mark.parametrize("message", MESSAGES)
def test_explained_message_exists_in_source(message: str, texts: list[str]) -> None:
    assert any(message in text for text in texts)


REFERENCES = list(references())
DRIFT = 40
"""Allowed error of a reference in lines: still on the same screen. `python -m tests.docs.references` updates them."""


def test_every_reference_is_checked() -> None:
    lines = [line for document in DOCUMENTS for line in re.findall(r"`[^`]*\.py:\d+[^`]*`", document.read_text())]
    assert len(lines) == len(REFERENCES)


def test_architecture_page_references_many_files() -> None:
    assert len({reference.file for reference in REFERENCES}) >= 8


@pytest.mark.parametrize("reference", REFERENCES, ids=lambda item: f"{item.file}:{item.name}")
def test_reference_points_to_definition(reference: Reference) -> None:
    assert reference.defined is not None
    assert abs(reference.defined - reference.line) <= DRIFT

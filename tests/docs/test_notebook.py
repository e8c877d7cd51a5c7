"""The notebooks in the documentation run completely and are stored without outputs."""

import json
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.docs.commands import ROOT

NOTEBOOKS = sorted((ROOT / "docs").rglob("*.ipynb"))
CELL_SECONDS = 900


def test_documentation_links_to_notebook() -> None:
    pages = "".join(page.read_text() for page in (ROOT / "docs").rglob("*.md"))
    assert NOTEBOOKS
    assert all(f"{notebook.relative_to(ROOT / 'docs')})" in pages for notebook in NOTEBOOKS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_valid_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert cells
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells)
    # Nor other machine-specific metadata.
    assert notebook.metadata.kernelspec.name == "python3"
    assert set(notebook.metadata) == {"kernelspec", "language_info"}


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_first_steps_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook = nbformat.read(ROOT / "docs/notebooks/first-steps.ipynb", as_version=4)
    NotebookClient(notebook, timeout=CELL_SECONDS, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
    assert printed(shown["metrics"]).count("box loss") == 3
    for name in ("labels", "plot"):
        assert [output.data.get("image/png", "")[:5] for output in shown[name]] == ["iVBOR"]
    assert printed(shown["load"]).count(" px, ") == 4
    assert "32 images" in printed(shown["predict"])
    assert "file,frame,class,name,confidence" in printed(shown["predict"])
    (table,) = tmp_path.glob("first-steps-*/detect/exp/predictions.csv")
    assert len(table.read_text().splitlines()) > 1


def printed(outputs: list[Any]) -> str:
    """Return the output of a cell and the value of its last line."""
    texts = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs]
    return "".join(texts)


def test_stored_outputs_are_detected(tmp_path: Path) -> None:
    content = json.loads(NOTEBOOKS[0].read_text())
    cell = next(cell for cell in content["cells"] if cell["cell_type"] == "code")
    cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": ["x"]}]
    kept = tmp_path / "kept.ipynb"
    kept.write_text(json.dumps(content))
    with pytest.raises(AssertionError):
        test_notebook_is_valid_without_outputs(kept)

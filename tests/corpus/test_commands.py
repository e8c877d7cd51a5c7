"""The real commands on the damaged data set: valid files are used, all others are reported."""

from pathlib import Path

import pytest
import yaml

from benchmarks.harness.training_command import as_flags
from kernels.host.paths import printable
from tests.corpus.commands import DONE, ERRORS_FOUND, USER_ERROR, run_child
from tests.corpus.data_set import CorpusFile
from tests.graph_train.tiny import TINY


@pytest.fixture(scope="module")
def cfg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("cfg") / "tiny.yaml"
    file.write_text(yaml.safe_dump({**TINY, "nc": 2}))
    return file


def unnamed(files: list[CorpusFile], text: str) -> list[str]:
    """Return the damaged images that the text does not mention."""
    return [file.image.name for file in files if file.expected == "reported" and printable(file.fault) not in text]


def test_check_reports_every_damaged_file(corpus: tuple[Path, list[CorpusFile]], tmp_path: Path) -> None:
    ended = run_child("graph-check", "--data", corpus[0], cwd=tmp_path, may_end=[ERRORS_FOUND])
    assert unnamed(corpus[1], ended.output) == []


@pytest.mark.parametrize(
    "how", [["--eager", "--noplots"], pytest.param(["--graph", "--cache", "ram"], marks=pytest.mark.slow)]
)
def test_training_uses_valid_files_and_reports_the_rest(
    corpus: tuple[Path, list[CorpusFile]], cfg: Path, tmp_path: Path, how: list[str]
) -> None:
    size = as_flags(epochs=1, imgsz=64, batch_size=16)
    place = as_flags(data=corpus[0], cfg=cfg, device="cpu", project=tmp_path / "runs")
    ended = run_child("graph-train", *place, *size, *how, cwd=tmp_path, may_end=[DONE])
    assert "errors" in ended.output
    assert unnamed(corpus[1], (tmp_path / "runs/exp/problems.txt").read_text(encoding="utf-8")) == []
    assert (tmp_path / "runs/exp/weights/last.safetensors").exists()


@pytest.mark.slow
def test_strict_training_stops_at_first_problem(
    corpus: tuple[Path, list[CorpusFile]], cfg: Path, tmp_path: Path
) -> None:
    ended = run_child("graph-train", "--data", corpus[0], "--cfg", cfg, "--strict", cwd=tmp_path, may_end=[USER_ERROR])
    assert "strict: " in ended.error and "problems in the data set; first: " in ended.error

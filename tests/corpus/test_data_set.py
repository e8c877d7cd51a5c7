"""The index of the damaged data set: every file is either used or reported."""

import time
from pathlib import Path

import pytest

from pipelines.data.dataset import load_dataset
from pipelines.data.index import ImageIndex, scan_images
from tests.corpus.data_set import CorpusFile

SECONDS = 60.0


@pytest.fixture(scope="module")
def index(corpus: tuple[Path, list[CorpusFile]], tmp_path_factory: pytest.TempPathFactory) -> ImageIndex:
    dataset = load_dataset(corpus[0])
    start = time.monotonic()
    found = scan_images(dataset.train, dataset.class_names, cache_dir=tmp_path_factory.mktemp("cache"))
    assert time.monotonic() - start < SECONDS
    return found


def test_corpus_is_large(corpus: tuple[Path, list[CorpusFile]]) -> None:
    assert len(corpus[1]) > 300
    assert len({file.image for file in corpus[1]}) == len(corpus[1])


def test_every_file_is_used_or_reported(corpus: tuple[Path, list[CorpusFile]], index: ImageIndex) -> None:
    used, reported = set(index.paths), {problem.file for problem in index.problems}
    wrong = []
    for file in corpus[1]:
        fate = (file.image in used, file.fault in reported)
        if fate == (False, False):
            wrong.append(f"{file.image.name!r}: dropped in silence")
        elif file.expected == "reported" and not fate[1]:
            wrong.append(f"{file.image.name!r}: used without a report")
        elif file.expected == "used" and fate != (True, False):
            wrong.append(f"{file.image.name!r}: {[str(p) for p in index.problems if p.file == file.fault]}")
    assert wrong == []


def test_every_problem_is_one_short_printable_line(index: ImageIndex) -> None:
    for problem in index.problems:
        text = str(problem)
        assert text.isprintable() and len(text.encode()) < 2000

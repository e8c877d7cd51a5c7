"""The damaged data set, written once for all tests in this folder."""

from pathlib import Path

import pytest

from tests.corpus.data_set import CorpusFile, write_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[CorpusFile]]:
    """Return the dataset yaml and the files of its train split; tests must not modify them."""
    return write_corpus(tmp_path_factory.mktemp("corpus"))

"""The damaged data set, written once for all tests of this folder."""

from pathlib import Path

import pytest

from tests.corpus.data_set import CorpusFile, write_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[CorpusFile]]:
    """Return the corpus's yaml and the files of its train split; not to be changed."""
    return write_corpus(tmp_path_factory.mktemp("corpus"))

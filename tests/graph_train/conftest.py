"""Fixtures of the tests that train."""

import pytest

from tests.graph_train.lab import Lab


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """Return a lab in its own folder for each test module."""
    return Lab(tmp_path_factory.mktemp("lab"))

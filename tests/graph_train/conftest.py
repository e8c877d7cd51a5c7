"""Fixtures of the tests that train."""

import pytest

from tests.graph_train.training_runner import TrainingRunner


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> TrainingRunner:
    """Return a runner in its own folder for each test module."""
    return TrainingRunner(tmp_path_factory.mktemp("runner"))
